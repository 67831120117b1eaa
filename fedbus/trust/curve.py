"""CURVE keys, with which ZeroMQ encrypts links: making, writing and reading them. They sign nothing.

A pair of keys stands in a file of the form that CZMQ and pyzmq write, too (ZPL, RFC 4); keys are text, Z85 (RFC 32).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from fedbus.errors import KeysError
from fedbus.trust.files import read_private, read_public, write_atomic

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_VALUES = {digit: value for value, digit in enumerate(_DIGITS)}
LINK_KEY = "link.curve"  # in the folder of keys: the pair of a host as a reader
SUFFIX = ".curve"  # of the pair of an endpoint, behind its name
_KEY_LENGTH = 40  # of 32 bytes
_FIELD = re.compile(r'\s*(public|secret)-key\s*=\s*"([^"]*)"\s*')
_CLIENT = re.compile(r"(\S+)\s+(\S.*)")
_MOST_CLIENTS = 100_000

_HEADER = """\
# A CURVE key pair of fedbus: {what}
# Keep this file secret; it is the public key alone that others need.

metadata
curve
"""


@dataclass(frozen=True, slots=True)
class CurvePair:
    """A public key, which others know, and its secret key, both in Z85."""

    public: str
    secret: str = field(repr=False)


def make() -> CurvePair:
    """Return a new pair whose public key can stand in any YAML file."""
    import zmq  # whoever reads a configuration needs to know what a key looks like, and no sockets

    while True:
        public, secret = zmq.curve_keypair()
        text = public.decode("ascii")
        # "${" would be taken for a variable there, and a list of clients takes "#" for a comment
        if "${" not in text and not text.startswith("#"):
            return CurvePair(text, secret.decode("ascii"))


def is_key(text: str) -> bool:
    """Whether *text* is the Z85 form of 32 bytes."""
    try:
        return len(text) == _KEY_LENGTH and len(raw(text)) == 32
    except ValueError:
        return False


def raw(text: str) -> bytes:
    """Return the bytes of *text*, Z85: five digits for each four.

    Raises:
        ValueError: It is no Z85.
    """
    found = bytearray()
    for start in range(0, len(text), 5):
        number = 0
        for digit in text[start : start + 5].ljust(5):
            value = _VALUES.get(digit)
            if value is None:
                raise ValueError(f"{text!r} is not Z85")
            number = number * 85 + value
        if number >= 2**32:
            raise ValueError(f"{text!r} is not Z85: five of its digits are more than four bytes hold")
        found += number.to_bytes(4, "big")
    return bytes(found)


def write_pair(path: Path, pair: CurvePair, what: str) -> None:
    """Put *pair* at *path*, readable by its owner alone; *what* says whose it is.

    Raises:
        KeysError: The folder or the disk refused.
    """
    text = f'{_HEADER.format(what=what)}    public-key = "{pair.public}"\n    secret-key = "{pair.secret}"\n'
    write_atomic(path, text.encode("ascii", "replace"), mode=0o600)


def load_pair(path: Path) -> CurvePair:
    """Read a pair of keys.

    Raises:
        KeysError: Missing, readable by others, no pair of keys, or the two do not belong together.
    """
    import zmq

    text = read_private(path, "CURVE key").decode("utf-8", "replace")
    found: dict[str, str] = {}
    for line in text.splitlines():
        if match := _FIELD.fullmatch(line):
            found[match[1]] = match[2]
    for kind in ("public", "secret"):
        if not is_key(found.get(kind, "")):
            raise KeysError(
                f"cannot read CURVE key {path}: it has no line `{kind}-key` with a key of 40 characters in double "
                "quotes; make a new pair with `fedbus keys curve` or `fedbus keys link`"
            )
    if zmq.curve_public(found["secret"].encode("ascii")).decode("ascii") != found["public"]:
        raise KeysError(f"cannot use CURVE key {path}: its public key is not that of its secret key; make a new pair")
    return CurvePair(found["public"], found["secret"])


def load_clients(path: Path) -> dict[bytes, str]:
    """Read who may connect: a line for each client, its public key and a name; ``#`` begins a comment line.

    Returns the names by key, 32 bytes.

    Raises:
        KeysError: Missing, writable by others, or a line is neither; the first such line is named.
    """
    clients: dict[bytes, str] = {}
    lines = read_public(path, "list of clients").decode("utf-8", "replace").splitlines()
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("# ") or text == "#":
            continue
        match = _CLIENT.fullmatch(text)
        if match is None or not is_key(match[1]) or not match[2].isprintable():
            raise KeysError(
                f"{path}:{number}: not a client; write its public key (40 characters, `fedbus keys link` shows it), a "
                "blank and a name"
            )
        if len(clients) >= _MOST_CLIENTS:
            raise KeysError(f"{path}:{number}: more than {_MOST_CLIENTS} clients")
        clients[raw(match[1])] = match[2]
    return clients
