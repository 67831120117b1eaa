"""The older format of fedmsg, both ways: its bytes and its trust, a feed, a publisher, and a bridge of whole buses."""
