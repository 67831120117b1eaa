"""Runs one command: feeds it, keeps the end of what it prints, and ends it when its time is over."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

from fedbus import escape

from .warden import Warden

_PIECE = 65536
_LAST_PIECES = 64  # that are read of a pipe after the command has ended


class CommandFailed(Exception):
    """The command could not be run, ended with a code that means failure, or was ended at its time limit."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its exit code (negative: the signal that ended it), and the end of what it printed."""

    code: int
    timed_out: bool
    output: bytes
    cut: int  # bytes of output before those that were kept


class Runner:
    """Runs *command* as often as it is asked to; may be called from several threads."""

    def __init__(
        self,
        command: list[str],
        *,
        directory: str,
        environment: Mapping[str, str],
        timeout: float,
        kill_after: float,
        output_bytes: int,
        warden: Warden,
    ) -> None:
        self._command = command
        self._directory = directory
        self._environment = environment
        self._timeout = timeout
        self._kill_after = kill_after
        self._output_bytes = output_bytes
        self._warden = warden

    def run(self, data: bytes) -> Ended:
        """Run the command with *data* on its standard input.

        Raises:
            OSError: It cannot be started.
        """
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._directory,
            env=self._environment,
            start_new_session=True,  # so that it ends with all that it has started
        )
        try:
            self._warden.add(process.pid)
            return self._attend(process, data)
        finally:
            # before it is reaped: until then nobody else can have its number
            _kill_group(process.pid, signal.SIGKILL)
            self._warden.remove(process.pid)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def _attend(self, process: subprocess.Popen[bytes], data: bytes) -> Ended:
        """Feed the command, keep the end of what it prints, and end it when its time is over."""
        assert process.stdin is not None and process.stdout is not None
        left = memoryview(data)
        output = _Tail(self._output_bytes)
        now = time.monotonic()
        deadline, asked = now + self._timeout, 0
        handle = os.pidfd_open(process.pid)  # readable when it has ended, before it is reaped
        with selectors.DefaultSelector() as selector:
            try:
                for pipe, events in ((process.stdin, selectors.EVENT_WRITE), (process.stdout, selectors.EVENT_READ)):
                    os.set_blocking(pipe.fileno(), False)
                    selector.register(pipe, events)
                selector.register(handle, selectors.EVENT_READ)
                while True:
                    ready = [key.fileobj for key, _ in selector.select(max(0.0, deadline - time.monotonic()))]
                    if process.stdin in ready:
                        left = left[_write(process.stdin.fileno(), left) :]
                        if not left:
                            selector.unregister(process.stdin)
                            process.stdin.close()
                    if process.stdout in ready and not output.read(process.stdout.fileno()):
                        selector.unregister(process.stdout)
                    if handle in ready:
                        break
                    if time.monotonic() >= deadline:
                        _kill_group(process.pid, signal.SIGKILL if asked else signal.SIGTERM)
                        asked += 1
                        deadline = time.monotonic() + self._kill_after
                for _ in range(_LAST_PIECES):
                    if not output.read(process.stdout.fileno(), wait=False):
                        break
            finally:
                os.close(handle)
        state = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert state is not None
        code = state.si_status if state.si_code == os.CLD_EXITED else -state.si_status
        return Ended(code, bool(asked), bytes(output.kept), output.cut)


class _Tail:
    """The end of an output of any length."""

    def __init__(self, limit: int) -> None:
        self.kept = bytearray()
        self.cut = 0
        self._limit = limit

    def read(self, descriptor: int, *, wait: bool = True) -> bool:
        """Take what there is; False: there will be no more, or with ``wait=False`` there is none now."""
        try:
            data = os.read(descriptor, _PIECE)
        except BlockingIOError:
            return wait
        except OSError:
            return False
        self.kept += data
        over = len(self.kept) - self._limit
        if over > 0:
            del self.kept[:over]
            self.cut += over
        return bool(data)


def _write(descriptor: int, data: memoryview) -> int:
    """Write what fits; return how much is done with, which is all when nobody reads."""
    try:
        return os.write(descriptor, data[:_PIECE])
    except BlockingIOError:
        return 0
    except OSError:
        return len(data)


def _kill_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def shown(ended: Ended) -> str:
    """Return what a command printed for one line of a log, or nothing where it printed nothing."""
    text = escape(ended.output.rstrip(b"\n").decode("utf-8", "backslashreplace"))
    if not text and not ended.cut:
        return ""
    return f"; it printed: [{ended.cut} bytes cut] {text}" if ended.cut else f"; it printed: {text}"


def signal_name(number: int) -> str:
    """Return what a signal is called."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
