"""A complete private set-up in one folder: CA, certificates, endpoints on free loopback ports, policy."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import secrets
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedbus.config.files import resolve
from fedbus.errors import ConfigError
from fedbus.model.topic import ENVIRONMENTS
from fedbus.transport.endpoint import check_name
from fedbus.trust import curve
from fedbus.trust.authority import Authority
from fedbus.trust.files import write_atomic

_FIRST_PORT = 20000  # of those that are given to endpoints; below it stand many well-known services

_BUS = """\
# What all programs of this bus share. `fedbus config` shows the merged result of all files in this folder.
# Relative paths are taken below this folder. Durations: 30s, 5m, 7d; sizes: 512KiB, 64MiB, 1GiB.

topic_prefix: {prefix}  # every topic is PREFIX.ENVIRONMENT.SERVICE.OBJECT.EVENT
environment: {environment}  # dev, stg or production

state: state  # journals and cursors

keys:
  directory: keys  # NAME.crt and NAME.key of each endpoint
  ca: keys/ca.crt
  crl: keys/crl.pem  # certificates that are no longer good; `fedbus keys revoke` writes it

# The journals of endpoints; an endpoint may have a `journal:` of its own with some of these.
#journal:
#  sync: always        # always: a publish that returned is on the disk; interval; async
#  sync_interval: 50ms
#  segment_bytes: 64MiB
#  retain_bytes: 1GiB  # 0: no limit
#  retain_age: 7d      # 0: no limit

#publisher:
#  signatures_per_second: 2000  # how many seals subscribers are asked to verify

{links}
#limits:
#  message_bytes: 1MiB

#hub:
#  folder: consumers    # Python files with consumers
#  http: 127.0.0.1:9140 # /metrics, /ready
#  drain_timeout: 10s

#consumers:
#  NAME:
#    use: module:Class
#    topics: [koji.package.#]

log:
  level: info  # debug, info, warning, error
  format: text  # or json
"""

_ENDPOINTS = """\
# Who publishes, and where: this file is the service discovery, the same on all hosts. Running programs notice a
# change by themselves. `publish` is bound by the service itself (PUB), and so is `replay` (ROUTER).
# One more: `fedbus keys issue SERVICE.HOST`, then three lines here. An entry with `curve` has encrypted links.

endpoints:
"""

_PLAIN_LINKS = """\
# Links are not encrypted (messages are signed all the same); `fedbus keys curve` makes keys for that.
#links:
#  clients: any             # or a file with the public keys of those who may connect
#  connections_per_address: 512
"""

_ENCRYPTED_LINKS = """\
links:
  key: keys/link.curve   # with which the readers of this host connect; `fedbus keys link` makes one
  clients: keys/clients  # who may connect to the endpoints of this host; any: all who have the endpoints file
"""

_CLIENTS = """\
# Who may connect to the encrypted endpoints of this host: a public key, a blank, and a name, on each line.
# `fedbus keys link`, run on another host, shows its line. Running publishers take a change up by themselves.
{key} {name}
"""

_POLICY = """\
# Who may say what. Without any rule a certificate speaks only for the topics of its own service:
# koji.build01 may publish PREFIX.ENVIRONMENT.koji.…, and nothing else. A rule grants more, for instance:
#
#policy:
#  - signer: koji.build01
#    topics: ["bodhi.update.#"]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """What `create` wrote."""

    directory: Path
    files: tuple[Path, ...]
    endpoints: dict[str, tuple[str, str]]  # name -> addresses of publish and replay


def create(
    directory: Path,
    endpoints: Sequence[str],
    *,
    prefix: str = "org.example",
    environment: str = "dev",
    force: bool = False,
    encrypted: bool = False,
) -> Created:
    """Write a set-up for *endpoints* into *directory* that works at once; folders get mode 0700, files 0600.

    With *encrypted* the links between its processes are, and nobody else may connect.

    With *force* a folder that holds something already is used too: its YAML files are written anew, while its CA,
    certificates and journals are kept.

    Raises:
        ConfigError: The folder is in use, a name is no good, or the disk refuses; all problems together.
        KeysError: The CA that is there cannot be used.
    """
    check(endpoints, prefix=prefix, environment=environment)
    directory = directory.absolute()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not force and any(directory.iterdir()):
            raise ConfigError(f"{directory}: is not empty; choose a new folder, or add --force to write over its files")
        for folder in (directory, directory / "keys", directory / "state"):
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)  # whatever umask says, and for a folder that was there
    except FileExistsError as error:
        raise ConfigError(f"{error.filename}: is no folder; choose another name") from error
    except OSError as error:
        raise ConfigError(f"{error.filename or directory}: cannot be used: {error.strerror}") from error
    keys = directory / "keys"
    if force and (keys / "ca.crt").exists():
        authority = Authority.open(keys)
    else:
        authority = Authority.create(keys, common_name=f"fedbus CA of {prefix}.{environment}"[:64])
    for name in endpoints:
        if not (keys / f"{name}.crt").exists():
            authority.issue(name)
    authority.write_crl()
    ports = free_ports(2 * len(endpoints))
    addresses = {
        name: (f"tcp://127.0.0.1:{publish}", f"tcp://127.0.0.1:{replay}")
        for name, publish, replay in zip(endpoints, ports[::2], ports[1::2], strict=True)
    }
    public = {name: _curve(keys / f"{name}{curve.SUFFIX}", name) for name in endpoints} if encrypted else {}
    if encrypted:
        key = _curve(keys / curve.LINK_KEY, "the readers of this host")
        write_atomic(keys / "clients", _CLIENTS.format(key=key, name="this host").encode(), mode=0o600)
    blocks = [
        f"  {_plain(name)}:\n    publish: {publish}\n    replay: {replay}\n"
        + (f'    curve: "{public[name]}"\n' if encrypted else "")
        for name, (publish, replay) in addresses.items()
    ]
    links = _ENCRYPTED_LINKS if encrypted else _PLAIN_LINKS
    texts = {
        "10-bus.yaml": _BUS.format(prefix=_plain(prefix), environment=_plain(environment), links=links),
        "20-endpoints.yaml": _ENDPOINTS + "\n".join(blocks),
        "30-policy.yaml": _POLICY,
    }
    for file, text in texts.items():
        write_atomic(directory / file, text.encode(), mode=0o600)
    return Created(directory=directory, files=tuple(directory / file for file in texts), endpoints=addresses)


def _curve(path: Path, what: str) -> str:
    """Return the public key of the pair at *path*, which is made where there is none."""
    if path.exists():
        return curve.load_pair(path).public
    pair = curve.make()
    curve.write_pair(path, pair, what)
    return pair.public


def free_ports(count: int) -> list[int]:
    """Return *count* different TCP ports of the loopback that nobody holds at this moment.

    They lie below those that the kernel lends to outgoing connections: one of these could take the port of a service
    while that restarts. Only where all tries there fail is the kernel asked for any.
    """
    with contextlib.ExitStack() as stack:
        ports = []
        # all are held until the last is found, so that no two are the same
        for _ in range(count):
            held = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            for port in itertools.chain(itertools.islice(_candidates(), 50), [0]):
                with contextlib.suppress(OSError):
                    held.bind(("127.0.0.1", port))
                    break
            ports.append(int(held.getsockname()[1]))
        return ports


def _candidates() -> Iterator[int]:
    while True:
        yield _FIRST_PORT + secrets.randbelow(_lent_from() - _FIRST_PORT)


def _lent_from() -> int:
    """The first port that the kernel lends to outgoing connections (``ip_local_port_range`` of ip-sysctl.txt)."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = 32768  # Linux's default
    return first if first > _FIRST_PORT else 65536


def check(endpoints: Sequence[str], *, prefix: str, environment: str) -> None:
    """Raise unless :func:`create` can make a set-up of these.

    Raises:
        ConfigError: With all that is wrong.
    """
    problems = []
    if not endpoints:
        problems.append("no endpoint is named; add --endpoint SERVICE.HOST, such as --endpoint koji.build01")
    for place, name in enumerate(endpoints):
        try:
            check_name(name)
        except ConfigError as error:
            problems += error.problems
        if name in endpoints[:place]:
            problems.append(f"endpoint {name!r} is named twice; remove one")
    if len(prefix) > 100 or not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+", prefix):
        problems.append(f"prefix {prefix!r} is not two or more lower-case labels joined by dots, such as org.example")
    if environment not in ENVIRONMENTS:
        problems.append(f"environment {environment!r} is not one of {', '.join(ENVIRONMENTS)}")
    if problems:
        raise ConfigError(problems)


def _plain(text: str) -> str:
    """Return *text* as a YAML scalar, in quotes where a reader could take it for something else."""
    try:
        plain = isinstance(resolve(text), str) and re.fullmatch(r"[a-z0-9_][a-z0-9_.-]*", text)
    except ValueError:
        plain = None
    return text if plain else json.dumps(text)
