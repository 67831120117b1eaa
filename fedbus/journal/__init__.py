"""The durable home of a stream: append-only segments of signed parcels, and the positions of its readers."""
