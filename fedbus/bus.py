"""What user code holds: a configuration, and from it publishers and subscribers."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload
from uuid import UUID

import zmq

from fedbus.clock import Clock, SystemClock
from fedbus.config.discovery import Discovery, HubWatch
from fedbus.config.schemas import load as load_schemas
from fedbus.config.schemas import open_schemas
from fedbus.config.settings import ConfigWatcher, Settings
from fedbus.config.units import parse_duration
from fedbus.errors import ConfigError, FedbusError, ForkedError, KeysError, Reason, TrustError
from fedbus.journal.cursors import CursorStore
from fedbus.journal.journal import JournalReader
from fedbus.model.message import Message, MessageKey
from fedbus.model.position import Cursor, Position
from fedbus.model.stream import StreamHome
from fedbus.model.topic import TopicFilter
from fedbus.schemas.registry import Schemas
from fedbus.texts.texts import Texts
from fedbus.transport.endpoint import Endpoint
from fedbus.transport.names import Names
from fedbus.transport.publisher import Publisher
from fedbus.transport.state import Loss, Since
from fedbus.transport.subscriber import Subscriber
from fedbus.transport.zap import Gate, LinkStats
from fedbus.trust import curve
from fedbus.trust.curve import LINK_KEY, CurvePair
from fedbus.trust.keyring import Keyring
from fedbus.trust.signer import Signer
from fedbus.trust.verifier import Verifier

if TYPE_CHECKING:
    from fedbus.fedmsg.feed import FedmsgFeed
    from fedbus.fedmsg.publisher import FedmsgPublisher
    from fedbus.fedmsg.validator import Validator
    from fedbus.hub.consumer import Consumer
    from fedbus.hub.dead import DeadLetters
    from fedbus.hub.enabled import Enabled
    from fedbus.hub.hub import Hub
    from fedbus.hub.options import HubOptions
    from fedbus.hub.roster import Renew
    from fedbus.monitor.http import StatusServer
    from fedbus.transport.asubscriber import AsyncSubscriber
    from fedbus.transport.relay_client import RelayPublisher

log = logging.getLogger(__name__)

_SPOOL_SECONDS = 60.0  # to send what waits for a publisher that is opened
_STAMP = 1e9  # a number from here on is no age in seconds but a moment, as time.time() says it: refused, not guessed

SinceLike = str | datetime | timedelta | float | MessageKey | Cursor


class Bus:
    """One configuration and its sockets' context; thread-safe, for one process.

    ``with Bus.open() as bus`` closes everything that was opened from it. A bus that was opened from a folder notices
    when its files change: subscribers and hubs go on with the endpoints that were added, moved or removed, and with
    the new rules and CAs. One made of :class:`Settings` keeps to these.
    """

    def __init__(self, settings: Settings | ConfigWatcher, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self.discovery = Discovery(settings, clock=self._clock, adopt=self._adopt)
        self.settings = self.discovery.settings  # in force now
        self._names = Names(self._clock)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        # every connection takes a descriptor and a slot here; 500 endpoints and some subscribers fit
        self._context.set(zmq.MAX_SOCKETS, 8192)
        self._pid = os.getpid()
        self._closed = False
        self._opened_at = self._clock.monotonic()
        self._servers: list[StatusServer] = []
        self._verifier: Verifier | None = None
        self._store: CursorStore | None = None
        self._dead: DeadLetters | None = None
        self._schemas: tuple[Schemas, Texts] | None = None
        self._publishers: list[Publisher] = []
        self._relayed: list[RelayPublisher] = []
        self._fedmsg_publishers: list[FedmsgPublisher] = []
        self._fedmsg_validator: Validator | None = None
        self._subscribers: list[Subscriber] = []
        self._gate: Gate | None = None
        self._opening = threading.Lock()

    @classmethod
    def open(cls, config: str | Path | Settings | None = None) -> Bus:
        """Read the configuration folder *config*, or the default one.

        Raises:
            ConfigError: It cannot be used; every fault is listed with file and line.
        """
        return cls(config if isinstance(config, Settings) else ConfigWatcher(config))

    def reload(self) -> None:
        """Have the files read soon, even where they look the same; safe in any thread and in a signal handler.

        Subscribers do so while they receive, a hub in its own thread. What cannot be used is refused and logged.
        """
        self.discovery.force()

    @overload
    def publisher(self, endpoint: str) -> Publisher | RelayPublisher | FedmsgPublisher: ...

    @overload
    def publisher(self, endpoint: str, *, direct: Literal[True]) -> Publisher: ...

    def publisher(self, endpoint: str, *, direct: bool = False) -> Publisher | RelayPublisher | FedmsgPublisher:
        """Open the publishing end of *endpoint*: bind its sockets, open its journal, load its key.

        For one that is marked ``relay: true`` nothing is opened: messages are handed in to the relay of this host. With
        *direct* it is opened all the same, as the relay itself does. One that is marked ``wire: fedmsg`` has no
        journal; what it publishes, readers of fedmsg take.

        Raises:
            ConfigError: There is no such endpoint.
            KeysError: Its key or certificate cannot be used.
            TrustError: Its certificate is one that readers refuse: revoked, or of an unknown CA.
            JournalLocked, BindError: Another process has it.
        """
        self._check_process()
        settings = self.settings
        found = settings.endpoint(endpoint)
        if found.wire != "native":
            if direct:
                raise ConfigError(f"{found.origin}: endpoint {endpoint!r} speaks {found.wire}, and has no journal")
            return self.fedmsg_publisher(endpoint)
        if found.relay and not direct:
            return self._relay_publisher(found)
        certificate = found.certificate or settings.keys / f"{endpoint}.crt"
        key = found.key or settings.keys / f"{endpoint}.key"
        signer = Signer.load(endpoint, certificate, key, clock=self._clock)
        self._check_readers_would_accept(signer)
        publisher = Publisher.open(
            found,
            naming=settings.naming,
            journal=settings.journal_for(endpoint),
            signer=signer,
            options=settings.publisher,
            limits=settings.limits,
            context=self._context,
            clock=self._clock,
            may_publish=lambda topic: self._check_policy(endpoint, topic),
            gate=self._open_gate(),
            schemas=self.schemas,
        )
        self._publishers.append(publisher)
        if not direct:
            self._send_spooled(publisher)
        return publisher

    def fedmsg_publisher(self, endpoint: str, *, check_policy: bool = True) -> FedmsgPublisher:
        """Open the publishing end of an endpoint that speaks fedmsg; a bridge speaks for others, so no policy holds it.

        Raises:
            ConfigError: There is no such endpoint, or it does not speak fedmsg.
            KeysError: Its key or certificate cannot be used.
            BindError: Its address is taken.
        """
        from fedbus.fedmsg.publisher import FedmsgPublisher
        from fedbus.fedmsg.signer import FedmsgSigner

        self._check_process()
        settings = self.settings
        found = settings.endpoint(endpoint)
        if found.wire != "fedmsg":
            raise ConfigError(f"{found.origin}: endpoint {endpoint!r} does not speak fedmsg")
        certificate = found.certificate or settings.keys / f"{endpoint}.crt"
        publisher = FedmsgPublisher(
            found,
            naming=settings.naming,
            signer=FedmsgSigner.load(certificate, found.key or settings.keys / f"{endpoint}.key", clock=self._clock),
            options=settings.fedmsg,
            limits=settings.limits,
            context=self._context,
            clock=self._clock,
            may_publish=(lambda topic: self._check_policy(endpoint, topic)) if check_policy else None,
            gate=self._open_gate(),
            schemas=self.schemas,
        )
        self._fedmsg_publishers.append(publisher)
        return publisher

    @property
    def fedmsg_validator(self) -> Validator:
        """What checks messages of fedmsg; all readers of this bus share it, so that a certificate is looked at once.

        Raises:
            KeysError: The CA, or its revocation list, cannot be used.
        """
        from fedbus.fedmsg.validator import Validator

        if self._fedmsg_validator is None:
            self._fedmsg_validator = Validator(self.settings.fedmsg, clock=self._clock)
        return self._fedmsg_validator

    def fedmsg_feed(self, filters: Iterable[TopicFilter] = (), **more: Any) -> FedmsgFeed:
        """Open what reads endpoints that speak fedmsg; *filters* are ours, *more* goes to :class:`FedmsgFeed`.

        Raises:
            KeysError: The CA, or its revocation list, cannot be used.
        """
        from fedbus.fedmsg.feed import FedmsgFeed
        from fedbus.fedmsg.topics import filters_for

        settings = self.settings
        return FedmsgFeed(
            validator=self.fedmsg_validator,
            options=settings.fedmsg,
            filters=filters_for(filters, settings.naming, settings.fedmsg.root),
            limits=settings.limits,
            context=self._context,
            clock=self._clock,
            names=self._names,
            **more,
        )

    def _relay_publisher(self, endpoint: Endpoint) -> RelayPublisher:
        from fedbus.transport.relay_client import RelayPublisher

        settings = self.settings
        publisher = RelayPublisher(
            endpoint,
            naming=settings.naming,
            limits=settings.limits,
            options=settings.relay,
            spool=settings.spools / endpoint.name,
            clock=self._clock,
            may_publish=lambda topic: self._check_policy(endpoint.name, topic),
            schemas=self.schemas,
        )
        self._relayed.append(publisher)
        return publisher

    def _send_spooled(self, publisher: Publisher) -> None:
        """Publish what was spooled while *publisher*'s endpoint still was one of a relay's."""
        folder = self.settings.spools / publisher.endpoint.name
        if not folder.is_dir():
            return
        from fedbus.transport.relay_outlet import send_spooled

        try:
            send_spooled(publisher, folder, limits=self.settings.limits, timeout=_SPOOL_SECONDS)
        except FedbusError as error:
            # it stays where it is, and the next one tries again
            log.error("endpoint %s: what is spooled in %s was not sent: %s", publisher.endpoint.name, folder, error)

    def _check_policy(self, endpoint: str, topic: str) -> None:
        try:
            self.settings.policy.check(endpoint, topic)
        except TrustError:
            # a rule may have been added since; nothing else in a program that only publishes looks at the files
            self.discovery.look()
            self.settings.policy.check(endpoint, topic)

    def _check_readers_would_accept(self, signer: Signer) -> None:
        """Raise if readers are known to refuse what *signer* signs; a receipt for it would be worth nothing."""
        try:
            self.verifier.identify(signer.certificate)
        except TrustError as error:
            if error.reason is not Reason.CRL:
                raise
            # only readers need the revocation list; without one here nothing is known against the certificate
            log.warning("endpoint %s: %s", signer.name, error)
        except KeysError as error:
            log.warning("endpoint %s: its certificate cannot be checked here: %s", signer.name, error)

    def subscribe(
        self,
        *filters: str,
        since: SinceLike = "now",
        cursor: str | None = None,
        endpoints: list[str] | None = None,
        strict: bool = False,
        on_loss: Callable[[Loss], None] | None = None,
        positions: Cursor | None = None,
    ) -> Subscriber:
        """Read the bus; iterate what is returned.

        *filters* are topic prefixes (``koji.package``, with ``*`` and ``#``), none meaning everything. *since* says
        where to begin: ``"now"``, ``"beginning"``, a time (RFC 3339 text or ``datetime``), how long ago (``"10m"``,
        ``timedelta``, or a number of seconds), behind a message (its ``key``, or the text of it), or
        :meth:`Subscriber.positions` of another subscriber. A named *cursor* is kept on this host: a later subscriber of
        that name goes on where this one came to, and *since* counts only the first time. *positions*, of another
        subscriber, count before *since* for the streams that are in them. With *strict*, messages known to be lost
        raise :class:`~fedbus.errors.LossError`; otherwise *on_loss* is told, or the log.

        Raises:
            ConfigError, KeysError: The configuration, or the CA and its revocation list, cannot be used.
            MessageError: A filter is none.
            ValueError: *since* is none of these.
        """
        return self._subscribe(filters, since, cursor, endpoints, strict, on_loss, positions, wait=True)

    def _subscribe(
        self,
        filters: tuple[str, ...],
        since: SinceLike,
        cursor: str | None,
        endpoints: list[str] | None,
        strict: bool,
        on_loss: Callable[[Loss], None] | None,
        positions: Cursor | None = None,
        *,
        wait: bool,
        foreign: bool = True,
    ) -> Subscriber:
        self._check_process()
        if isinstance(endpoints, str):
            raise ConfigError(f"endpoints is a list of names; write endpoints=[{endpoints!r}]")
        if cursor is not None:
            _check_cursor(cursor)
        start, named = parse_since(since, self._clock)  # first: "now" is before the DNS has answered
        self.discovery.begin(wait=wait)
        settings = self.settings
        self._check_names(endpoints or ())
        following = self.discovery.following(endpoints)
        parsed = [TopicFilter.parse(text, settings.naming) for text in filters]
        subscriber = Subscriber(
            following.endpoints,
            parsed,
            since=start,
            verifier=self.verifier,
            limits=settings.limits,
            options=settings.subscriber,
            context=self._context,
            clock=self._clock,
            positions={**named, **(positions or {})},
            store=self.cursors if cursor is not None else None,
            cursor=cursor,
            local=self._local_journal,
            on_loss=on_loss,
            strict=strict,
            pair=load_link_pair(settings),
            schemas=self.schemas,
            names=self._names,
            follow=following,
            foreign=(lambda: self.fedmsg_feed(parsed)) if foreign else None,
        )
        self._subscribers.append(subscriber)
        return subscriber

    def native_subscriber(self, filters: Iterable[str], *, cursor: str) -> Subscriber:
        """Like :meth:`subscribe` with a *cursor*, from now on, but leave out endpoints that speak another format."""
        return self._subscribe(tuple(filters), "now", cursor, None, False, None, wait=True, foreign=False)

    @property
    def publishers(self) -> list[Publisher]:
        """Those that this bus has opened, with a journal, and that are open."""
        return [one for one in list(self._publishers) if not one.closed]

    def _check_names(self, endpoints: Iterable[str]) -> None:
        """Raise unless all *endpoints* are known, or could still become known by an answer of the DNS."""
        dns = self.discovery.dns
        for name in endpoints:
            if dns is not None and not dns.answers and name not in self.settings.endpoints:
                log.warning("endpoint %s is not known yet; it is read when the DNS lists it", name)
            else:
                self.settings.endpoint(name)

    def asubscribe(
        self,
        *filters: str,
        since: SinceLike = "now",
        cursor: str | None = None,
        endpoints: list[str] | None = None,
        strict: bool = False,
        on_loss: Callable[[Loss], None] | None = None,
    ) -> AsyncSubscriber:
        """Like :meth:`subscribe`, for ``async for`` and ``async with``.

        It does not wait for the first answer of the DNS: endpoints from there join when it comes.
        """
        from fedbus.transport.asubscriber import (
            AsyncSubscriber,
        )  # asyncio takes 25 ms to import, and scripts start often

        return AsyncSubscriber(self._subscribe(filters, since, cursor, endpoints, strict, on_loss, wait=False))

    def hub(
        self,
        consumers: Iterable[Consumer | Enabled | Callable[[Message], object]],
        *,
        options: HubOptions | None = None,
        problems: Sequence[str] = (),
        watch: Callable[[bool], Mapping[str, Endpoint] | None] | None = None,
        renew: Renew | None = None,
    ) -> Hub:
        """Prepare a hub for *consumers*: objects of :class:`Consumer` and functions marked with ``@fedbus.consumer``.

        ``bus.hub([Announce(channel)]).run()`` delivers until it is stopped; see :class:`~fedbus.hub.hub.Hub`. Without
        *watch* it follows the configuration of this bus; *renew* says which consumers to run after ``Hub.reload()``.

        Raises:
            ConfigError: Two consumers have one name, one names no topics, or a filter is none.
            KeysError, JournalError: The CA, or the cursor store, cannot be used.
        """
        # programs that only publish need not load it
        from fedbus.hub.enabled import Enabled
        from fedbus.hub.hub import Hub
        from fedbus.hub.registry import enable
        from fedbus.hub.source import Source

        self._check_process()
        self.discovery.begin(wait=True)
        settings = self.settings
        clock = self._clock
        foreign = sorted(name for name, one in settings.endpoints.items() if one.wire != "native")
        if foreign and not settings.bridge.endpoint:
            # a consumer is promised each message at least once, which takes a journal
            log.warning(
                "consumers get nothing from %s%s, which speak fedmsg: `fedbus bridge fedmsg` brings it into a journal",
                ", ".join(foreign[:10]),
                " and others" if len(foreign) > 10 else "",
            )
        source = Source(
            endpoints=settings.endpoints,
            naming=settings.naming,
            verifier=self.verifier,
            limits=settings.limits,
            options=settings.subscriber,
            context=self._context,
            clock=clock,
            store=self.cursors,
            dead=self.dead,
            hands=settings.state / "hub",
            local=self._local_journal,
            parse_since=lambda text: parse_since(text, clock),
            pair=load_link_pair(settings),
            names=self._names,
            schemas=self.schemas,
            texts=self.texts,
        )
        enabled = [one if isinstance(one, Enabled) else enable(one) for one in consumers]
        return Hub(
            source,
            enabled,
            options=options or settings.hub,
            problems=problems,
            watch=watch or HubWatch(self.discovery),
            renew=renew,
        )

    @property
    def schemas(self) -> Schemas:
        """The JSON Schemas by topic; they are read when they are first needed, and again when the files change.

        Raises:
            ConfigError: A file of schemas, or a section of the configuration, cannot be used.
        """
        return self._said()[0]

    @property
    def texts(self) -> Texts:
        """What messages say to people, by the schemas and the configuration in force.

        Raises:
            ConfigError: As for :attr:`schemas`.
        """
        return self._said()[1]

    def _said(self) -> tuple[Schemas, Texts]:
        with self._opening:
            if self._schemas is None:
                self._schemas = open_schemas(self.settings)
            return self._schemas

    @property
    def verifier(self) -> Verifier:
        """The verifier that all subscribers of this bus share, so that a certificate is looked at once."""
        if self._verifier is None:
            keyring = Keyring.load(self.settings.keyring, clock=self._clock)
            self._verifier = Verifier(keyring, self.settings.policy, clock=self._clock)
        return self._verifier

    @property
    def cursors(self) -> CursorStore:
        """Where named cursors of this host are kept."""
        if self._store is None:
            self._store = CursorStore.open(self.settings.cursors)
        return self._store

    @property
    def dead(self) -> DeadLetters:
        """Where dead letters of the hub of this host are kept."""
        from fedbus.hub.dead import DeadLetters

        if self._dead is None:
            self._dead = DeadLetters.open(self.settings.dead)
        return self._dead

    @property
    def links(self) -> LinkStats:
        """Who was let in, refused and banned by the publishers of this bus; all zero before the first is opened."""
        return LinkStats() if self._gate is None else self._gate.stats

    def _open_gate(self) -> Gate:
        with self._opening:
            if self._gate is None:
                self._gate = Gate(self._context, self.settings.links, clock=self._clock)
            return self._gate

    def serve_metrics(self, address: str | None = None) -> StatusServer:
        """Serve /live, /ready and /metrics of what was opened from this bus on *address*, ``HOST:PORT``.

        Without one ``metrics.http`` of the configuration counts; port 0 takes a free one, ``address`` of what is
        returned tells which. It ends with the bus. There is no password, so choose an address of the loopback.

        Raises:
            BindError: The port is taken, or not this host's.
            ConfigError: No address was given, and the configuration has none.
        """
        # programs that do not show themselves need not load it
        from fedbus.monitor.http import StatusServer, daemon_pages

        self._check_process()
        chosen = address or self.settings.metrics.http
        if chosen is None:
            raise ConfigError(
                f"{self.settings.directory}: metrics have no address; set metrics.http, or give serve_metrics one"
            )

        # whether the program's own loop comes round only the program knows; that this is answered says a little
        pages = daemon_pages(live=lambda: True, reasons=self.reasons, metrics=self.metrics)
        server = StatusServer(chosen, pages, owner="metrics", setting="metrics.http")
        server.start()
        self._servers.append(server)
        return server

    def reasons(self) -> list[str]:
        """Return why what was opened from this bus is not as it should be; empty when all is well; from any thread.

        Publishers that have failed or whose certificate has expired, streams that are quarantined, changed files that
        are refused.
        """
        from fedbus.transport.metrics import reasons_of

        refused = self.discovery.refused
        found = [f"configuration refused: {refused}"] if refused else []
        return found + reasons_of(list(self._publishers), list(self._subscribers))

    def metrics(self) -> str:
        """Return what all publishers and subscribers of this bus count, as text for Prometheus; from any thread."""
        from fedbus.monitor.discovery import of_discovery
        from fedbus.monitor.text import exposition
        from fedbus.schemas.metrics import of_schemas
        from fedbus.transport.metrics import of_links, of_publishers, of_refusals, of_subscribers

        subscribers = [one for one in list(self._subscribers) if not one.closed]
        families = of_publishers([one for one in list(self._publishers) if not one.closed])
        if self._publishers:
            families += of_links(self.links)
        families += of_subscribers(subscribers, now=self._clock.monotonic(), since=self._opened_at)
        feeds = [one.foreign for one in subscribers if one.foreign is not None]
        if feeds or self._fedmsg_publishers:
            from fedbus.fedmsg.feed import FedmsgFeed
            from fedbus.fedmsg.metrics import of_fedmsg_publishers, of_feeds

            found = [one for one in feeds if isinstance(one, FedmsgFeed)]
            families += of_feeds(found, now=self._clock.monotonic(), since=self._opened_at)
            families += of_fedmsg_publishers([one for one in list(self._fedmsg_publishers) if not one.closed])
        families.append(of_refusals({} if self._verifier is None else dict(self._verifier.rejections)))
        families += of_schemas(None if self._schemas is None else self._schemas[0])
        families += of_discovery(self.discovery.figures(), self._clock.monotonic())
        return exposition(families)

    def close(self) -> None:
        """Close all publishers (what they accepted is journaled and sent first), subscribers and the cursor store."""
        if self._pid != os.getpid():
            return
        self._closed = True
        self.discovery.close()
        failures: list[Exception] = []
        for server in self._servers:
            server.stop()
        self._servers.clear()
        parts: list[Publisher | RelayPublisher | FedmsgPublisher | Subscriber] = [
            *self._relayed,
            *self._fedmsg_publishers,
            *self._publishers,
            *self._subscribers,
        ]
        for part in parts:
            try:
                part.close()
            except Exception as error:  # the others must be closed all the same
                failures.append(error)
        self._relayed.clear()
        self._fedmsg_publishers.clear()
        self._publishers.clear()
        self._subscribers.clear()
        if self._store is not None:
            self._store.close()
            self._store = None
        if self._dead is not None:
            self._dead.close()
            self._dead = None
        if self._gate is not None:
            self._gate.close()
        self._context.term()
        if failures:
            raise failures[0]

    def __enter__(self) -> Bus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise ForkedError("this Bus was opened before a fork; open one in the child")
        if self._closed:
            raise FedbusError("this Bus is closed; open another one with Bus.open()")

    def _adopt(self, settings: Settings) -> None:
        """Let *settings* be in force, for what is open too.

        Raises:
            KeysError, ConfigError: Their CA, or their schemas, cannot be used; nothing has changed.
        """
        known = self._schemas
        loaded = None if known is None else load_schemas(settings)
        verifier = self._verifier
        if verifier is not None:
            if settings.keyring != verifier.keyring.options:
                verifier.keyring.adopt(settings.keyring)
                verifier.refresh()
            if settings.policy.rules != verifier.policy.rules:
                verifier.policy = settings.policy
        if known is not None and loaded is not None:
            known[0].adopt(loaded.schemas, settings.schemas)
            known[1].adopt(loaded.rules)
            publishers: list[Publisher | RelayPublisher | FedmsgPublisher]
            publishers = [*self._publishers, *self._relayed, *self._fedmsg_publishers]
            for publisher in publishers:
                publisher.forget_topics()
        self.settings = settings

    def _local_journal(self, endpoint: str) -> StreamHome | None:
        """Open the journal of an endpoint that is down, where its files are on this host and may be read."""
        if endpoint not in self.settings.endpoints:
            return None  # added to a running subscriber after these settings were read
        directory = self.settings.journal_for(endpoint).directory
        if not os.access(directory / "journal.json", os.R_OK):
            return None
        return JournalReader.open(directory)


def load_link_pair(settings: Settings) -> CurvePair | None:
    """Return the CURVE pair of this host as a reader, if it has one.

    Raises:
        KeysError: It has one that cannot be used.
    """
    chosen = settings.links.key
    path = chosen or settings.keys / LINK_KEY
    return curve.load_pair(path) if chosen is not None or path.exists() else None


def _check_cursor(name: str) -> None:
    """Raise unless *name* can be kept: a text of some characters.

    Raises:
        ConfigError: It cannot.
    """
    try:
        if isinstance(name, str) and name.encode():
            return
    except UnicodeEncodeError:
        pass
    raise ConfigError(f"{name!r} is no name of a cursor; write a text, such as nightly-report")


def parse_since(since: SinceLike, clock: Clock) -> tuple[Since, Cursor]:
    """Return where streams begin, and the positions that *since* names for some of them.

    Raises:
        ValueError: It is none of the forms that :meth:`Bus.subscribe` lists.
    """
    now = Since(age=(0.0, clock.monotonic()))
    if isinstance(since, MessageKey):
        return now, {since.endpoint: Position(since.epoch, since.sequence)}
    if isinstance(since, dict):
        return now, since
    if isinstance(since, timedelta):
        return Since(age=(since.total_seconds(), clock.monotonic())), {}
    if isinstance(since, datetime):
        return Since(time_ms=int(since.timestamp() * 1000)), {}
    if since == "now":
        return now, {}
    if since == "beginning":
        return Since(), {}
    parts = since.split("/") if isinstance(since, str) else []
    if len(parts) == 3 and _is_epoch(parts[1]) and parts[2].isascii() and parts[2].isdigit():
        return now, {parts[0]: Position(parts[1], int(parts[2]))}
    try:
        if isinstance(since, str) or since < _STAMP:
            return Since(age=(parse_duration(since), clock.monotonic())), {}
    except (TypeError, ValueError):
        pass
    try:
        return Since(time_ms=int(datetime.fromisoformat(str(since)).timestamp() * 1000)), {}
    except ValueError:
        raise ValueError(
            f"{since!r} is not a place to begin: write now, beginning, a duration (10m, 2h, 7d), a time "
            "(2026-11-21T10:00:00Z) or a position ENDPOINT/EPOCH/SEQUENCE"
        ) from None


def _is_epoch(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
