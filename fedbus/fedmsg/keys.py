"""What becomes of each configuration key of fedmsg; `doc/migrate-from-fedmsg.rst` has the same in words."""

from __future__ import annotations

from typing import Literal

Status = Literal["translated", "no counterpart", "needs a hand"]

TRANSLATED: Status = "translated"
NONE: Status = "no counterpart"
HAND: Status = "needs a hand"

# every key that fedmsg 1.1.7 and moksha.hub know, and what is true whatever its value; one that ends in * is a prefix
KEYS: dict[str, tuple[Status, str]] = {
    "endpoints": (TRANSLATED, "endpoints, each marked `wire: fedmsg`"),
    "srv_endpoints": (HAND, "discovery.dns reads SRV records of another form; see doc/discovery.rst"),
    "name": (NONE, "a program says with Bus.publisher or --as which endpoint it is"),
    "active": (NONE, "mark an endpoint `relay: true`, and hand in to `fedbus relay`"),
    "relay_inbound": (NONE, "`fedbus relay` listens on a local socket, relay.socket"),
    "publish_endpoint": (NONE, "an endpoint's address stands in endpoints"),
    "mute": (NONE, "nothing is printed about sockets"),
    "topic_prefix": (TRANSLATED, "topic_prefix, and fedmsg.topic_prefix"),
    "topic_prefix_re": (NONE, "filters and texts take topics by whole fields"),
    "environment": (TRANSLATED, "environment, and fedmsg.environment"),
    "high_water_mark": (TRANSLATED, "fedmsg.receive_hwm and fedmsg.send_hwm"),
    "post_init_sleep": (NONE, "a publisher waits for subscribers, not for time; for the bridge: bridge.fedmsg.settle"),
    "zmq_linger": (NONE, "what was accepted is in the journal, so nothing lingers"),
    "io_threads": (NONE, "one is enough"),
    "timeout": (NONE, "each command has --timeout or --idle-exit"),
    "zmq_tcp_keepalive": (NONE, "always on"),
    "zmq_tcp_keepalive_cnt": (NONE, "3, as in fedmsg"),
    "zmq_tcp_keepalive_idle": (NONE, "60 s, as in fedmsg"),
    "zmq_tcp_keepalive_intvl": (NONE, "5 s, as in fedmsg"),
    "zmq_reconnect_ivl": (NONE, "100 ms"),
    "zmq_reconnect_ivl_max": (NONE, "grows with the number of endpoints, to 30 s"),
    "zmq_enabled": (NONE, "there is no other transport"),
    "zmq_strict": (NONE, "a filter is a prefix by whole fields"),
    "sign_messages": (NONE, "every message is signed"),
    "validate_signatures": (NONE, "every message is verified before anybody sees it"),
    "crypto_backend": (NONE, "x509; gpg proves neither topic nor id"),
    "crypto_validate_backends": (NONE, "x509; gpg proves neither topic nor id"),
    "ssldir": (TRANSLATED, "with certnames: certificate and key of endpoints"),
    "certnames": (TRANSLATED, "certificate and key of endpoints"),
    "certname": (NONE, "certificate and key stand with each endpoint"),
    "cert_prefix": (NONE, "certificate and key stand with each endpoint"),
    "ca_cert_location": (TRANSLATED, "fedmsg.ca"),
    "ca_cert_cache": (NONE, "dead since fedmsg 1.1"),
    "ca_cert_cache_expiry": (NONE, "dead since fedmsg 1.1"),
    "crl_location": (TRANSLATED, "fedmsg.crl"),
    "crl_cache": (NONE, "dead since fedmsg 1.1"),
    "crl_cache_expiry": (NONE, "dead since fedmsg 1.1"),
    "routing_policy": (TRANSLATED, "fedmsg.routing_policy"),
    "routing_nitpicky": (TRANSLATED, "fedmsg.routing_nitpicky"),
    "gpg_home": (NONE, "gpg proves neither topic nor id"),
    "gpg_signing_key": (NONE, "gpg proves neither topic nor id"),
    "gpg_keys": (NONE, "gpg proves neither topic nor id"),
    "replay_endpoints": (NONE, "every endpoint of ours has `replay`; that of fedmsg never worked"),
    "persistent_store": (NONE, "the journal"),
    "status_directory": (NONE, "cursors, in the folder `state`"),
    "datagrepper_url": (NONE, "a consumer catches up from journals, by its cursor"),
    "skip_last_message": (NONE, "`since: now` of a consumer"),
    "moksha.workers_per_consumer": (HAND, "consumers.NAME.workers, for each consumer"),
    "moksha.blocking_mode": (NONE, "each consumer has threads of its own"),
    "moksha.monitoring.socket": (HAND, "hub.http: /live, /ready and /metrics"),
    "moksha.monitoring.socket.mode": (NONE, "hub.http is on the loopback"),
    "moksha.livesocket.websocket.port": (NONE, "there is no websocket server"),
    "moksha.livesocket.backend": (NONE, "there is no websocket server"),
    "fedmsg.consumers.gateway.enabled": (
        NONE,
        "readers connect to endpoints; for those of fedmsg: `fedbus bridge fedmsg`",
    ),
    "fedmsg.consumers.gateway.port": (HAND, "a `wire: fedmsg` endpoint, and bridge.fedmsg.publish"),
    "fedmsg.consumers.gateway.high_water_mark": (HAND, "fedmsg.send_hwm"),
    "fedmsg.consumers.relay.enabled": (NONE, "`fedbus relay`"),
    "fedmsg.consumers.*": (HAND, "consumers.NAME"),
    "stomp_*": (NONE, "there is no other transport"),
    "amqp_*": (NONE, "there is no other transport"),
    "irc": (HAND, "a consumer with `use: fedbus_consumers.irc`: consumers.NAME.settings.networks"),
    "irc_*": (HAND, "a consumer with `use: fedbus_consumers.irc`: consumers.NAME.settings.networks"),
    "logging": (HAND, "log.level and log.format"),
}


def find(key: str) -> tuple[Status, str] | None:
    """Return what becomes of *key*; None for one that neither fedmsg nor moksha knows."""
    found = KEYS.get(key)
    if found is not None:
        return found
    prefixes = [name for name in KEYS if name.endswith("*") and key.startswith(name[:-1])]
    return KEYS[max(prefixes, key=len)] if prefixes else None
