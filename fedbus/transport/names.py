"""Host names to addresses, looked up in threads of their own.

libzmq would look them up itself, in its one I/O thread, at every attempt to connect: a single name whose DNS server
does not answer then stops the traffic of all other endpoints, for seconds each time. So sockets are given addresses
only, and whoever finds an endpoint silent asks here again.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from fedbus.clock import Clock
from fedbus.transport.endpoint import Address, is_ip

log = logging.getLogger(__name__)

_FRESH_SECONDS = 5.0  # an answer this old is good enough; PUB and replay of one endpoint ask for the same host
_RETRY_SECONDS = (0.5, 30.0)  # between two questions about a name that is not known
_THREADS = 8  # a question to a dead server keeps one busy for 10 s and more; nothing can cut it short
_IDLE_SECONDS = 5.0  # after which a thread without work ends
_HOSTS = 8192  # remembered at most
_ADDRESSES = 16  # of one name


@dataclass(slots=True)
class _Host:
    addresses: tuple[str, ...] = ()  # the last that were found, IPv4 first
    asked_at: float = float("-inf")  # monotonic
    answered_at: float = float("-inf")
    pending: bool = False
    failures: int = 0  # since it was last found
    failed_at: float = float("-inf")


def look_up(host: str) -> list[str]:
    """Return the addresses of *host* by the system's own means, IPv4 first; blocks for as long as these take.

    Raises:
        OSError: The name is not known, or nobody answers.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    # as for binding: a publisher that binds a name binds its first IPv4 address
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Names:
    """Knows the addresses of host names, as of a few seconds ago; thread-safe, and never waits.

    The threads are daemons, started when there is something to ask, and end when there is not.
    """

    def __init__(self, clock: Clock, *, ask: Callable[[str], list[str]] = look_up) -> None:
        self._clock = clock
        self._ask = ask
        self._hosts: dict[str, _Host] = {}
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._threads = 0
        self._asking = 0  # questions that have no answer yet

    def addresses(self, address: str) -> tuple[str, ...]:
        """Return what *address* (``tcp://HOST:PORT`` or ipc) stands for, best first; empty while that is not known.

        An answer that is some seconds old, or none, has the name looked up once more in the background; until then
        the old one is returned.
        """
        parsed = Address.parse(address)
        if parsed.scheme == "ipc" or is_ip(parsed.host):
            return (address,)
        return tuple(str(Address("tcp", host=ip, port=parsed.port)) for ip in self._known(parsed.host))

    def asking(self, address: str, *, since: float) -> bool:
        """Return whether a question about the host of *address* was put after the time *since* and has no answer."""
        known = self._hosts.get(Address.parse(address).host)
        return known is not None and known.pending and known.asked_at > since

    def _known(self, host: str) -> tuple[str, ...]:
        now = self._clock.monotonic()
        with self._lock:
            known = self._hosts.get(host)
            if known is None:
                if len(self._hosts) >= _HOSTS:
                    self._hosts = {name: one for name, one in self._hosts.items() if one.pending}
                known = self._hosts[host] = _Host()
            if not known.pending and now >= self._due(known):
                known.pending = True
                known.asked_at = now
                self._asking += 1
                self._queue.put(host)
                if self._threads < min(_THREADS, self._asking):
                    self._threads += 1
                    threading.Thread(target=self._work, name="fedbus-names", daemon=True).start()
            return known.addresses

    @staticmethod
    def _due(known: _Host) -> float:
        if known.failures:
            least, most = _RETRY_SECONDS
            return known.failed_at + min(most, least * 2.0 ** min(known.failures - 1, 10))
        return known.answered_at + _FRESH_SECONDS

    def _work(self) -> None:
        while True:
            try:
                host = self._queue.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    # asked under the lock, so no question is put between this look and the end of the last thread
                    if self._queue.empty():
                        self._threads -= 1
                        return
                continue
            self._answer(host)

    def _answer(self, host: str) -> None:
        error = ""
        found: list[str] = []
        try:
            found = self._ask(host)[:_ADDRESSES]
        except (OSError, ValueError) as problem:
            error = getattr(problem, "strerror", None) or str(problem)
        now = self._clock.monotonic()
        with self._lock:
            self._asking -= 1
            known = self._hosts[host]
            known.pending = False
            before, known.failures = known.failures, 0 if found else known.failures + 1
            if found:
                known.addresses, known.answered_at = tuple(found), now
            else:
                known.failed_at = now
        if found and before:
            log.info("host %s is known again: %s", host, ", ".join(found))
        elif not found and not before:
            log.warning("host %s is not known here (%s); it is looked up again from time to time", host, error)
