"""Ends the commands of a hub that has ended, however that came about."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading

# Waits until the hub's end of its standard input is closed, which the kernel does however the hub ends; then ends the
# process groups that are still on its list: SIGTERM, and SIGKILL after a while.
_PROGRAM = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
grace, groups, rest = float(sys.argv[1]), set(), b""
while data := os.read(0, 4096):
    *lines, rest = (rest + data).split(b"\\n")
    for line in lines:
        (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
def send(number):
    for group in list(groups):
        try:
            os.killpg(group, number)
        except OSError:
            groups.discard(group)
send(signal.SIGTERM)
end = time.monotonic() + grace
while groups and time.monotonic() < end:
    time.sleep(0.02)
    send(0)
send(signal.SIGKILL)
"""


class Warden:
    """A small process that ends the commands of a hub that has ended, however that came about."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._groups: set[int] = set()

    def start(self) -> None:
        """Start the process, unless it is there."""
        with self._lock:
            if self._process is None:
                self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, repr(self._grace)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        for group in self._groups:
            self._tell(b"+%d\n" % group)

    def _tell(self, line: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        os.write(self._process.stdin.fileno(), line)

    def add(self, group: int) -> None:
        """Have the process *group* end with the hub."""
        with self._lock:
            self._groups.add(group)
            try:
                if self._process is None:
                    self._start()
                else:
                    self._tell(b"+%d\n" % group)
            except BrokenPipeError:  # somebody has killed it
                self._start()

    def remove(self, group: int) -> None:
        """Forget the process *group*, which has ended."""
        with self._lock:
            self._groups.discard(group)
            with contextlib.suppress(OSError):
                if self._process is not None:
                    self._tell(b"-%d\n" % group)

    def stop(self) -> None:
        """Have all groups that are left ended; returns when that is done, within the grace and a second."""
        with self._lock:
            process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        try:
            process.wait(self._grace + 1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
