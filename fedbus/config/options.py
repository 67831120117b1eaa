"""What can be set about discovery; `settings` fills these in."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

DNS_PORT = 53


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsOptions:
    """Where in the DNS endpoints are listed, and how often to ask."""

    domain: str  # such as _fedbus._tcp.example.org, without a dot at its end
    servers: tuple[str, ...] = ()  # IP, or IP:PORT; none: those of the system
    timeout: float = 5.0  # seconds for one look-up, all its questions together
    min_interval: float = 5.0  # seconds between two look-ups, however short the TTL
    max_interval: float = 300.0  # and however long
    endpoints: int = 1000  # in one answer, at most

    def __post_init__(self) -> None:
        for server in self.servers:
            parse_server(server)
        if not 0.0 < self.timeout <= 60.0:
            raise ValueError("timeout must be more than 0 and at most 60 seconds")
        if not 0.0 < self.min_interval <= self.max_interval:
            raise ValueError("min_interval must be more than 0 and at most max_interval")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryOptions:
    """How running programs learn of endpoints that were added, moved or removed."""

    look_interval: float = 2.0  # seconds between two looks at the files, which are stats only
    dns: DnsOptions | None = None


def parse_server(text: str) -> tuple[str, int]:
    """Return the address and port that ``IP``, ``IP:PORT`` or ``[IPV6]:PORT`` names.

    Raises:
        ValueError: It names none; a name would need a DNS server to find the DNS server.
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::([0-9]{1,5}))?|([0-9A-Fa-f:.]+)", text)
    if match:
        host, port = match[1] or match[2] or match[4], int(match[3] or DNS_PORT)
        try:
            if 1 <= port <= 65535:
                return str(ipaddress.ip_address(host)), port
        except ValueError:
            pass
    raise ValueError(f"{text!r} is no DNS server; write 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:5353")
