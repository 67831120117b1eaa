"""Sockets: publisher, subscriber, and replay."""
