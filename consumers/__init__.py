"""The consumers that come with fedbus: each a file of its own that uses the public names of `fedbus` alone.

They install as the package ``fedbus_consumers``; a configuration names one with ``use: fedbus_consumers.irc``.
"""
