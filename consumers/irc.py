"""Announces messages in IRC channels: several networks, filters, colours, commands, never faster than a server bears.

A message is done as soon as it stands in the queues of its channels, in memory: a server that is down, slow or hostile
holds up neither the hub nor another network. Where a queue is full its oldest message is left out and counted, and the
channel is told "… and 214 more". What still waits when the hub stops has ``linger`` to be said, and is lost then; so is
what waits when the hub is killed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from fedbus import ConfigError, Consumer, Message, parse_duration

try:
    from .irc_parts.network import Network
    from .irc_parts.rules import Seen
    from .irc_parts.settings import SCHEMA, NetworkOptions
except ModuleNotFoundError as missing:
    raise ImportError(f"the IRC relay needs {missing.name}; install it with: pip install 'fedbus[irc]'") from missing

log = logging.getLogger(__name__)

_START_SECONDS = 60.0
_CLOSE_SECONDS = 2.0  # for the servers to close the connection after QUIT


class IrcRelay(Consumer):
    """Says in channels what happens on the bus; `doc/irc.rst` explains the settings."""

    name: ClassVar[str] = "irc"
    topics: ClassVar[tuple[str, ...]] = ("#",)
    schema: ClassVar[Mapping[str, Any] | None] = SCHEMA

    def __init__(self, networks: Mapping[str, Any], linger: float | str = 3.0) -> None:
        """*networks*: by name, as the schema says. *linger*: how long to go on saying what waits when the hub stops.

        Raises:
            ConfigError: A regular expression, a topic filter, a colour or a duration is none, or SASL lacks something.
        """
        try:
            self._linger = parse_duration(linger)
        except ValueError as error:
            raise ConfigError(f"linger: {error}") from None
        self._wanted = networks
        self._networks = self._build("")
        self._root = ""
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()

    def _build(self, root: str) -> list[Network]:
        made, problems = [], []
        for name, wanted in self._wanted.items():
            try:
                made.append(Network(NetworkOptions(name, wanted, root)))
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)
        return made

    def start(self) -> None:
        """Start the thread in which all networks live; connecting is not waited for."""
        self._root = self.texts.root
        self._networks = self._build(self._root)
        for network in self._networks:
            network.root = self._root
        if not self._networks:
            log.warning("irc: no networks are configured, so nothing is said; add one below settings: networks:")
            return
        ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)), name="irc", daemon=True)
        self._thread.start()
        if not ready.wait(_START_SECONDS):
            raise RuntimeError("the thread of the IRC relay did not start; is the machine overloaded?")

    def consume(self, message: Message) -> None:
        """Put *message* into the queues of the channels that want it; never waits for a server."""
        if not self._networks:
            return
        seen = Seen(message, self.texts.of(message))
        service = self._service(message.topic)
        for network in self._networks:
            network.offer(seen, service)

    def stop(self) -> None:
        """Say what can still be said within ``linger``, and leave."""
        thread, loop = self._thread, self._loop
        if thread is None or loop is None:
            return
        try:
            loop.call_soon_threadsafe(self._stop.set)
        except RuntimeError:
            pass  # it has ended by itself
        thread.join(self._linger + 2 * _CLOSE_SECONDS)
        self._thread = None
        lost = sum(network.forget() for network in self._networks)
        if lost:
            waited = "1 message was" if lost == 1 else f"{lost} messages were"
            log.warning("irc: %s still waiting when the hub stopped, and not said", waited)

    def _service(self, topic: str) -> str:
        root = self._root
        inner = topic[len(root) + 1 :] if root and topic.startswith(root + ".") else topic
        return inner.partition(".")[0]

    # --- in the thread of the networks ------------------------------------------------------------------------------

    async def _main(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        lives = [asyncio.create_task(network.run()) for network in self._networks]
        ready.set()
        await self._stop.wait()
        deadline = time.monotonic() + self._linger
        while time.monotonic() < deadline and not all(network.idle for network in self._networks):
            await asyncio.sleep(0.02)
        sessions = [network.session for network in self._networks if network.session is not None]
        leaving = [asyncio.create_task(one.quit()) for one in sessions if one.registered]
        if leaving:
            await asyncio.wait(leaving, timeout=_CLOSE_SECONDS)
            await asyncio.wait(
                [asyncio.create_task(_ended(network)) for network in self._networks], timeout=_CLOSE_SECONDS
            )
        for task in (*lives, *leaving):
            task.cancel()
        await asyncio.gather(*lives, *leaving, return_exceptions=True)


async def _ended(network: Network) -> None:
    session = network.session
    while session is not None and network.session is session:
        await asyncio.sleep(0.01)
