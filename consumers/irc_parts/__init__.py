"""What `fedbus_consumers.irc` is made of: settings, rules, lines, pacing, and a connection over time."""
