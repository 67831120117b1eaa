"""The history: every message once, with its signed bytes and its seal, in SQLite or PostgreSQL."""
