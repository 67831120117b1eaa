"""How programs show themselves: counters as text, and the local HTTP port that serves it."""
