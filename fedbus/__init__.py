"""fedbus: a decentralized, signed and durable message bus for infrastructure services."""
