"""What the bodies of messages are made of: JSON Schemas by topic, and what becomes of a body that does not fit."""
