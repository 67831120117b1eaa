"""An endpoint: the name of one publisher, the addresses that it binds, and the files that prove who it is."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedbus.errors import BindError, ConfigError

NAME_PATTERN = r"[a-z0-9][a-z0-9_-]*(\.[a-z0-9][a-z0-9_-]*)*"  # as in a certificate: fedbus/trust/names.py
NAME_LIMIT = 64  # an X.509 common name holds no more (ub-common-name of RFC 5280)
_NAME = re.compile(NAME_PATTERN)
_TAKEN = ("ca", "link")  # ca.key and ca.crt are of the CA, link.curve of the readers of a host
_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\.?")
_IPC_LIMIT = 107  # bytes; sun_path holds 108, the last one NUL

Wire = Literal["native", "fedmsg"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Also:
    """A second pair of addresses that a publisher binds, and that no reader uses: those of before, or of later."""

    publish: str
    replay: str
    curve: str = ""
    curve_key: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One publisher, as every host knows it.

    ``publish`` and ``replay`` are addresses in the form that `Address.parse` returns; ``replay`` is empty for an
    endpoint that speaks the fedmsg format and offers no replay. ``origin`` is the ``FILE:LINE`` that defines it.
    ``curve`` is the public key, in Z85, with which links to it are encrypted; empty for links that are not.
    """

    name: str
    publish: str
    replay: str
    wire: Wire = "native"
    origin: str = ""
    certificate: Path | None = None
    key: Path | None = None
    curve: str = ""
    curve_key: Path | None = None  # where the host that publishes has the pair that `curve` belongs to
    also: Also | None = None
    relay: bool = False  # published by the relay of its host, to which programs hand in what they have to say

    @property
    def service(self) -> str:
        """The SERVICE of its topics: all before the first dot of the name."""
        return self.name.partition(".")[0]

    @property
    def host(self) -> str:
        """All after the first dot of the name."""
        return self.name.partition(".")[2]

    def is_where(self, other: Endpoint) -> bool:
        """Return whether readers find this one and *other* at the same place and in the same way.

        Where it is written does not count: a line inserted above it moves nothing.
        """
        return (self.publish, self.replay, self.wire, self.curve) == (
            other.publish,
            other.replay,
            other.wire,
            other.curve,
        )


def check_name(name: str) -> None:
    """Return when *name* can name an endpoint.

    Raises:
        ConfigError: It is not SERVICE.HOST, nor SERVICE alone, or longer than 64 characters.
    """
    if len(name) > NAME_LIMIT:
        raise ConfigError(f"endpoint name {name[:NAME_LIMIT]!r}… has {len(name)} characters; {NAME_LIMIT} at most")
    if name in _TAKEN:
        raise ConfigError(f"endpoint name {name!r} is that of another file among the keys; choose another one")
    if _NAME.fullmatch(name):
        return
    hint = "use a-z, 0-9, '_' and '-' in fields joined by dots, such as koji.build01"
    if _NAME.fullmatch(name.lower()):
        hint = f"write it in lower case: {name.lower()}"
    raise ConfigError(f"endpoint name {name!r} is not of the form SERVICE.HOST; {hint}")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a socket is: ``tcp://HOST:PORT`` (name, IPv4, or IPv6 in brackets) or ``ipc://PATH``."""

    scheme: Literal["tcp", "ipc"]
    host: str = ""  # without brackets; a name in lower case
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str, folder: Path | None = None) -> Address:
        """Read *text*; a relative ipc path is taken below *folder*.

        The address stands in a file that all hosts share, so it must be one that others can connect to: wildcards
        and port 0 are refused.

        Raises:
            ConfigError: What is wrong with it, without saying where it was written.
        """
        scheme, separator, rest = text.partition("://")
        if not separator or scheme not in ("tcp", "ipc"):
            raise ConfigError(f"address {text!r} is neither tcp://HOST:PORT nor ipc://PATH")
        if scheme == "ipc":
            return cls("ipc", path=_parse_path(text, rest, folder))
        host, separator, port_text = rest.rpartition(":")
        if not separator or not re.fullmatch(r"[0-9]{1,5}", port_text):
            raise ConfigError(f"address {text!r} has no port; write tcp://HOST:PORT")
        port = int(port_text)
        if not 1 <= port <= 65535:
            raise ConfigError(f"address {text!r} has port {port}; it must be between 1 and 65535")
        return cls("tcp", host=_parse_host(text, host), port=port)

    @property
    def is_ipv6(self) -> bool:
        """Whether the host is an IPv6 address, so that the socket needs the option for it."""
        return ":" in self.host

    def __str__(self) -> str:
        if self.scheme == "ipc":
            return f"ipc://{self.path}"
        return f"tcp://[{self.host}]:{self.port}" if self.is_ipv6 else f"tcp://{self.host}:{self.port}"


def bind_address(address: str, *, endpoint: str) -> str:
    """Return *address* in the form that ``zmq_bind`` takes: ZeroMQ resolves names for connecting, never for binding.

    Raises:
        BindError: The host name is not known here.
    """
    parsed = Address.parse(address)
    if parsed.scheme == "ipc" or parsed.is_ipv6 or is_ip(parsed.host):
        return str(parsed)
    try:
        found = socket.getaddrinfo(parsed.host, parsed.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise BindError(
            f"cannot bind {address} for endpoint {endpoint!r}: the name {parsed.host!r} does not resolve here "
            f"({error}); correct the address, or write the IP address of this host",
            endpoint=endpoint,
            address=address,
        ) from error
    # IPv4 first: subscribers whose sockets do not speak IPv6 must find the same one
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return str(Address("tcp", host=str(found[0][4][0]), port=parsed.port))


def is_ip(host: str) -> bool:
    """Return whether *host*, without brackets, is an address rather than a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _parse_host(text: str, host: str) -> str:
    if host in ("*", "0.0.0.0", "[::]"):
        raise ConfigError(
            f"address {text!r} names no host that others could connect to; write the name or address of the host "
            "that publishes"
        )
    if host.startswith("[") and host.endswith("]"):
        try:
            ip = ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ConfigError(f"address {text!r}: {host} is not an IPv6 address") from None
        return _parse_host(text, "[::]") if ip.is_unspecified else str(ip)
    if ":" in host:
        raise ConfigError(f"address {text!r}: write an IPv6 address in brackets, such as tcp://[::1]:3000")
    if re.fullmatch(r"[0-9.]+", host):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise ConfigError(f"address {text!r}: {host} is not an IPv4 address") from None
    if not _HOST.fullmatch(host):
        raise ConfigError(f"address {text!r}: {host!r} is not a host name")
    return host.lower()


def _parse_path(text: str, path: str, folder: Path | None) -> str:
    if not path or path.startswith("@") or any(ord(letter) < 32 or letter == "*" for letter in path):
        raise ConfigError(f"address {text!r} names no path; write ipc://PATH of a socket in a folder of its own")
    whole = Path(path)
    if not whole.is_absolute():
        if folder is None:
            raise ConfigError(f"address {text!r} is relative; write ipc:///PATH with three slashes")
        whole = folder / whole
    if len(str(whole).encode(errors="replace")) > _IPC_LIMIT:
        raise ConfigError(
            f"address {text!r}: the path of a socket has at most {_IPC_LIMIT} bytes; choose a shorter one"
        )
    return str(whole)
