"""Real servers of Debian, on free loopback ports, each in a folder of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.query
import pytest

from fedbus.config.init import free_ports
from tests.support import need_program, wait_until

_CONFIG = """\
server:
  ip-address: 127.0.0.1@{port}
  username: ""
  chroot: ""
  database: ""
  zonesdir: "{folder}"
  zonelistfile: "{folder}/zone.list"
  pidfile: "{folder}/nsd.pid"
  xfrdfile: "{folder}/ixfr.state"
  logfile: "{folder}/nsd.log"
  server-count: 1
  rrl-ratelimit: 0
remote-control:
  control-enable: no
zone:
  name: example.org
  zonefile: example.org.zone
"""
_HEAD = """\
$ORIGIN example.org.
$TTL {ttl}
@ IN SOA ns1 hostmaster ( {serial} 3600 600 604800 {ttl} )
@ IN NS ns1
ns1 IN A 127.0.0.1
"""


class Nsd:
    """An authoritative name server for ``example.org``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (self.port,) = free_ports(1)
        self.address = f"127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self._serial = 1
        self._program = need_program("nsd", "/usr/sbin")
        (folder / "nsd.conf").write_text(_CONFIG.format(port=self.port, folder=folder))

    def write(self, records: str, *, ttl: int = 1) -> None:
        """Put *records* into the zone; a server that runs takes them up."""
        self.write_zone(_HEAD.format(ttl=ttl, serial=self._serial + 1) + records)

    def write_zone(self, text: str) -> None:
        """Put a whole zone file in place."""
        self._serial += 1
        (self.folder / "new").write_text(text)
        (self.folder / "new").replace(self.folder / "example.org.zone")
        if self.process is not None:
            self.process.send_signal(signal.SIGHUP)

    def start(self) -> None:
        """Start, and return when it answers."""
        self.process = subprocess.Popen(
            [self._program, "-d", "-c", str(self.folder / "nsd.conf")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_until(self._answers, 60.0)
        except AssertionError:
            raise AssertionError(f"nsd does not answer at port {self.port}: {self._log()}") from None

    def stop(self) -> None:
        """End it, with all that it has forked."""
        process, self.process = self.process, None
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)

    def _answers(self) -> bool:
        try:
            query = dns.message.make_query("example.org", "SOA")
            return bool(dns.query.udp(query, "127.0.0.1", timeout=0.5, port=self.port).answer)
        except (OSError, dns.exception.DNSException):
            return False

    def _log(self) -> str:
        path = self.folder / "nsd.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def nsd(tmp_path: Path) -> Iterator[Nsd]:
    """A name server that is not started yet."""
    folder = tmp_path / "nsd"
    folder.mkdir()
    server = Nsd(folder)
    yield server
    server.stop()
