"""What a message is: topics, envelopes, positions in a stream; no bytes on a wire and no socket."""
