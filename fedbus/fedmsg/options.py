"""What can be set about the fedmsg format and the bridge; apart from them, so that `config` loads no cryptography."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ENVIRONMENTS = {"dev": "dev", "stg": "stg", "production": "prod"}  # ours -> what fedmsg calls it


@dataclass(frozen=True, slots=True, kw_only=True)
class FedmsgOptions:
    """Whom endpoints that are marked ``wire: fedmsg`` trust, how their topics begin, and how much they hold."""

    ca: Path  # PEM; several certificates while one CA takes over from another
    crl: Path | None  # PEM, one list for each CA; None: revocation is not checked, which is logged
    crl_grace: float = 0.0  # seconds that a list may be out of date and still count
    topic_prefix: str = "org.example"
    environment: str = "dev"  # as fedmsg writes it: dev, stg, prod
    routing_policy: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # topic or filter -> common names
    routing_nitpicky: bool = True  # whether topics that the policy does not list are refused
    max_age: float = 3600.0  # seconds; an older message is a replayed one; 0.0: any age
    remember: int = 100_000  # ids that are known again when they come once more
    receive_hwm: int = 10_000  # messages of one endpoint waiting to be read; with more of them libzmq drops
    send_hwm: int = 10_000  # messages waiting for one slow subscriber; with more of them libzmq drops
    username: str = "fedbus"  # what our messages say in that field

    @property
    def root(self) -> str:
        """``PREFIX.ENV`` of its topics."""
        return f"{self.topic_prefix}.{self.environment}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeOptions:
    """What ``fedbus bridge fedmsg`` carries, and as whom."""

    endpoint: str = ""  # in whose journal messages of fedmsg are kept; empty: none are carried in
    publish: str = ""  # on which endpoint, marked ``wire: fedmsg``, our messages go out; empty: none do
    endpoints: tuple[str, ...] = ()  # which are read; empty: all that are marked ``wire: fedmsg``, but *publish*
    topics: tuple[str, ...] = ()  # filters of what goes out; empty: all within PREFIX.ENV
    http: str | None = None  # HOST:PORT of /live, /ready and /metrics; None: not served
    settle: float = 2.0  # seconds for which the first messages wait for subscribers, who connect again by themselves
    drain_timeout: float = 10.0  # seconds to bring what was taken into the journal on SIGTERM
