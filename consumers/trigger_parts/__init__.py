"""What `fedbus_consumers.trigger` is made of: settings, a command, what ends it with the hub, waiting for quiet."""
