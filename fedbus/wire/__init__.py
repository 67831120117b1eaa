"""Bytes in, values out: parcels, seals, beats, and replay, as doc/wire.rst specifies them; no socket, no clock."""
