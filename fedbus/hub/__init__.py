"""The daemon that delivers messages to consumers."""
