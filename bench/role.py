"""The inside of a process that a measurement starts: `python -m bench.role MODULE FUNCTION`.

The harness and the process talk in lines of JSON over stdin and stdout, one object with an "event" each; the first
line holds the settings, the last one that the process says is its report. Only the standard library is used here:
the environment of fedmsg imports this module too.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import queue
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO


def die_with_parent() -> None:
    """Ask Linux to kill this process when the one that started it dies, however it dies."""
    pr_set_pdeathsig = 1  # <linux/prctl.h>
    try:
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    except (OSError, AttributeError):
        pass  # not Linux: the harness still stops what it started when it ends in order


class Line:
    """The line to the harness."""

    def __init__(self, incoming: TextIO, outgoing: TextIO) -> None:
        self._outgoing = outgoing
        self._heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, args=(incoming,), daemon=True).start()

    def _listen(self, incoming: TextIO) -> None:
        for text in incoming:
            self._heard.put(json.loads(text))

    def say(self, event: str, **data: Any) -> None:
        """Tell the harness *event*."""
        self._outgoing.write(json.dumps({"event": event, **data}) + "\n")
        self._outgoing.flush()

    def wait(self, event: str, timeout: float = 120.0) -> dict[str, Any]:
        """Return the next thing the harness says, which has to be *event*; seconds until queue.Empty is raised."""
        heard = self._heard.get(timeout=timeout)
        if heard["event"] != event:
            raise RuntimeError(f"waited for {event!r}, heard {heard!r}")
        return heard

    def heard(self) -> bool:
        """Whether something waits to be taken by wait()."""
        return not self._heard.empty()


def resident_bytes() -> int:
    """The memory of this process that is in RAM now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def usage() -> dict[str, Any]:
    """CPU seconds so far, resident bytes now and at their peak."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"cpu_s": time.process_time(), "rss": resident_bytes(), "rss_peak": peak}


class Arrivals:
    """The callback of every consumer: takes a body, checks that none is missing, notes when the last one came.

    Numbers below 0 are greetings of a publisher that looks for subscribers; 0 … warm-1 warm both ends up; the
    *count* after them are measured. Anything but the next number is an error: a rate with losses is not a rate.
    """

    def __init__(self, line: Line, settings: dict[str, Any]) -> None:
        self._line = line
        self._warm: int = settings["warm"]
        self._count: int = settings["count"]
        self._expected = 0
        self._milestone = self._warm - 1
        self._joined = False
        self._cpu_start = 0.0
        self.done = False
        self.last_ns = 0

    def join(self) -> None:
        """Say that nothing published from now on can be missed."""
        if not self._joined:
            self._joined = True
            self._line.say("joined")

    def __call__(self, body: dict[str, Any]) -> None:
        number = body["counter"]
        if number != self._expected:
            if number >= 0:
                raise RuntimeError(f"message {self._expected} expected, {number} received")
            self.join()
            return
        self._expected = number + 1
        if number == self._milestone:
            self._pass_milestone()

    def _pass_milestone(self) -> None:
        if self._milestone == self._warm - 1:
            self._milestone = self._warm + self._count - 1
            self._cpu_start = time.process_time()
            self._line.say("warm")
        else:
            self.last_ns = time.monotonic_ns()
            self.done = True

    def report(self) -> dict[str, Any]:
        """When the last message came (monotonic nanoseconds), and what the measured part cost this process."""
        now = usage()
        return {**now, "last_ns": self.last_ns, "count": self._count, "cpu_s": now["cpu_s"] - self._cpu_start}


class Departures:
    """The clock of every producer: tells which numbers to publish, and when the first measured one was."""

    def __init__(self, line: Line, settings: dict[str, Any]) -> None:
        self._line = line
        self._warm: int = settings["warm"]
        self._count: int = settings["count"]
        self._cpu_start = 0.0
        self.first_ns = 0

    def greet(self, publish: Callable[[int], None]) -> None:
        """Publish greetings until the consumer has heard one; for sockets that forget what nobody listens to."""
        while not self._line.heard():
            publish(-1)
            time.sleep(0.005)

    def warm_up(self) -> range:
        """The numbers to publish before the measurement; waits until the consumer is there."""
        self._line.wait("joined")
        return range(self._warm)

    def measured(self) -> range:
        """The numbers to publish and measure; waits until the consumer has everything before them."""
        self._line.wait("go")
        self._cpu_start = time.process_time()
        self.first_ns = time.monotonic_ns()
        return range(self._warm, self._warm + self._count)

    def report(self) -> dict[str, Any]:
        """When the first measured message left (monotonic nanoseconds), and what the measured part cost."""
        now = usage()
        return {**now, "first_ns": self.first_ns, "cpu_s": now["cpu_s"] - self._cpu_start}


def main(arguments: list[str]) -> int:
    """Run FUNCTION(line, settings) of MODULE and say what it returns as the report."""
    module, function = arguments
    die_with_parent()
    outgoing = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not end up between the lines of JSON
    settings = json.loads(sys.stdin.readline())
    line = Line(sys.stdin, outgoing)
    report = getattr(importlib.import_module(module), function)(line, settings)
    line.say("report", **report)
    outgoing.flush()
    # Threads of clients that linger (a closed nats loop, an idle twisted) are not part of what was measured.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
