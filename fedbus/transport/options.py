"""What can be set about publishers, subscribers and the relay; apart from them, so that `config` loads no sockets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherOptions:
    """How much a publisher takes in, how it groups, and how often it signs."""

    signatures_per_second: float = 2000.0  # what one subscriber's core verifies with room to spare
    signature_burst: int = 32
    queue_messages: int = 10_000
    queue_bytes: int = 64 * 2**20
    beat_interval: float = 1.0
    batch_messages: int = 1024
    batch_bytes: int = 2**20
    parcel_messages: int = 256
    parcel_bytes: int = 128 * 2**10
    send_hwm: int = 1000  # parcels waiting for one slow subscriber; what is beyond it reads from the journal
    replay_bytes: int = 256 * 2**10  # one answer frame
    replay_sessions: int = 1000  # readers that are served at the same time


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriberOptions:
    """How much a subscriber holds, and how it reads journals."""

    receive_hwm: int = 1000  # frames of one endpoint waiting to be read
    pending_bytes: int = 8 * 2**20  # live parcels of one stream held while its journal is read
    fetch_bytes: int = 4 * 2**20  # what one request asks for
    concurrent_fetches: int = 64
    commit_interval: float = 1.0  # seconds between two writes of a named cursor
    silence: float = 5.0  # seconds without a sign of life after which an endpoint is connected anew, at the earliest
    refresh_interval: float = 5.0  # seconds between two looks at the files of CA and revocation list


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkOptions:
    """Who may connect to the endpoints of this host, and how much each may ask for; with which key we connect."""

    key: Path | None = None  # the CURVE pair of this host as a reader; without one each program makes its own
    clients: Path | None = (
        None  # public keys of those who may connect to encrypted endpoints; None: all who know theirs
    )
    connections: int = 4096  # to one socket, from all addresses
    connections_per_address: int = 512
    subscriptions: int = 1000  # of one connection; a fedbus reader needs three
    ban: float = 60.0  # seconds for which an address is refused that has broken the rules; 0.0: not at all


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayRule:
    """Lets *users* and members of *groups* (names or numbers) hand in messages for *endpoints*."""

    endpoints: tuple[str, ...]  # names; `*` stands for one whole field: `koji.*`
    users: tuple[str | int, ...] = ()
    groups: tuple[str | int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayOptions:
    """Where the relay of this host listens, whom it lets hand in messages, and how much it holds."""

    socket: Path
    mode: str = "0600"  # of the socket, octal; the folders of spools follow it
    group: str | int | None = None  # of the socket and the folders of spools; None: that of the relay's process
    allow: tuple[RelayRule, ...] = ()  # besides root and the user of the relay
    connections: int = 1000
    request_timeout: float = 10.0  # seconds for a request that was begun, and for one who does not read answers
    idle_timeout: float = 60.0  # seconds after which a connection that asks nothing is closed; clients connect anew
    window: int = 1000  # messages of one connection that wait for their answer
    queue_bytes: int = 64 * 2**20  # of large requests under way, all connections together
    remember: int = 100_000  # submissions of one endpoint that are known again when they come once more
    spool_bytes: int = 64 * 2**20  # of one user and endpoint, waiting on the disk while there is no relay
    http: str | None = None  # HOST:PORT of /live, /ready and /metrics; None: not served
    drain_timeout: float = 10.0  # seconds to bring what was taken into the journals on SIGTERM
