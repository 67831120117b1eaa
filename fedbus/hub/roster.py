"""The consumers that run, those that come and go while it runs, and the intake that reads for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fedbus.errors import ConfigError, FedbusError, MessageError
from fedbus.hub.consumer import Halt
from fedbus.hub.delivery import Delivery
from fedbus.hub.enabled import Enabled
from fedbus.hub.feed import Feed
from fedbus.hub.intake import Intake
from fedbus.hub.options import HubOptions
from fedbus.hub.source import Source
from fedbus.model.position import Position
from fedbus.model.topic import TopicFilter
from fedbus.transport.endpoint import Endpoint
from fedbus.transport.state import Since

log = logging.getLogger(__name__)

_INTAKE_SECONDS = 10.0  # that the intake may take to end
_INTAKE_AGAIN = 1.0  # seconds between two tries to have another intake
_TRIED_AGAIN = 5.0  # seconds between two tries to open what a new consumer needs


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed:
    """What a hub is to run from now on: those that run already (*kept*), the new and the changed ones, and how.

    *problems* are reasons why some consumer could not be loaded. *in_force* is called once all of it is.
    """

    kept: frozenset[str]
    consumers: Sequence[Enabled]
    problems: Sequence[str]
    options: HubOptions
    in_force: Callable[[], object] = bool


Renew = Callable[[Mapping[str, str]], Renewed]
"""Is given what each consumer that runs was made of, by its name; raises ConfigError where nothing is to change."""


@dataclass(slots=True)
class _Leaving:
    """A consumer that is being stopped while the hub goes on."""

    delivery: Delivery
    deadline: float
    late: bool = False


@dataclass(slots=True)
class _Coming:
    """A consumer that is to be started, once another of its name has ended."""

    enabled: Enabled
    filters: list[TopicFilter]
    started_ms: int
    failure: str = ""
    next_try_at: float = field(default=float("-inf"))


class Roster:
    """Starts and stops consumers, and the intake with them. For the hub's own thread."""

    def __init__(
        self,
        source: Source,
        consumers: Iterable[Enabled],
        *,
        options: HubOptions,
        on_halt: Callable[[str, Halt], None],
    ) -> None:
        """Raises ConfigError where two consumers have one name, or a filter is none."""
        self.deliveries: list[Delivery] = []
        self.intake: Intake | None = None
        self.options = options
        self.consumers = list(consumers)  # with which it begins
        self._filters = check(source, self.consumers)
        self._source = source
        self._on_halt = on_halt
        self._through: dict[str, Position] = {}
        self._since = Since()
        self._read: frozenset[str] = frozenset()  # the filters that the intake reads
        self._intake_fault = ""  # why there is no other intake yet, though there is to be
        self._intake_at = 0.0  # when it is tried again
        self._leaving: list[_Leaving] = []
        self._coming: list[_Coming] = []

    # --- the beginning -----------------------------------------------------------------------------------------

    def open(self, *, started_ms: int, started: float) -> None:
        """Open the cursors and the intake; what is published from *started* on reaches consumers that are new.

        Raises:
            JournalError: The cursor store cannot be used.
            ConfigError: A consumer's ``since`` is no place to begin.
        """
        self._since = Since(age=(0.0, started))
        for enabled in self.consumers:
            feed = Feed(messages=self.options.queue_messages, size=self.options.queue_bytes)
            delivery = self._make(enabled, feed, self._filters[enabled.name], started_ms, with_hub=True)
            self.deliveries.append(delivery)
        self.intake = self._make_intake()
        for delivery in self.deliveries:
            delivery.open_cursor()

    def start(self) -> None:
        """Let all run."""
        for delivery in self.deliveries:
            delivery.start()
        if self.intake is not None:
            self.intake.start()

    def _make(
        self, enabled: Enabled, feed: Feed, filters: list[TopicFilter], started_ms: int, *, with_hub: bool
    ) -> Delivery:
        enabled.consumer.texts = self._source.texts
        enabled.consumer.state = self._source.hands.parent
        return Delivery(
            enabled,
            source=self._source,
            filters=filters,
            feed=feed,
            through=self._through,
            started_ms=started_ms,
            options=self.options,
            on_halt=self._on_halt,
            with_hub=with_hub,
        )

    def _make_intake(self) -> Intake:
        filters = {one.text: one for delivery in self.deliveries for one in delivery.filters}
        self._read = frozenset(filters)
        return Intake(
            self._source,
            list(filters.values()),
            [delivery.feed for delivery in self.deliveries],
            endpoints=self._source.endpoints.values() if self.deliveries else (),
            since=self._since,
            through=self._through,
        )

    # --- while it runs -----------------------------------------------------------------------------------------

    def made_of(self) -> dict[str, str]:
        """Return what each consumer that runs, or is about to, was made of."""
        running = {one.enabled.name: one.enabled.made_of for one in self.deliveries}
        return {**running, **{one.enabled.name: one.enabled.made_of for one in self._coming}}

    def take_up(self, renewed: Renewed, *, now: float) -> str:
        """Stop those that are not kept, have the others start behind them; return in words what that is.

        Raises:
            ConfigError: A new consumer cannot run so; nothing has changed.
        """
        filters = check(self._source, renewed.consumers)
        for enabled in renewed.consumers:
            try:
                self._source.parse_since(enabled.since)
            except ValueError as error:
                raise ConfigError(f"{enabled.origin or 'consumer'}: {enabled.name}: since: {error}") from error
        self.options = renewed.options
        known = self.made_of().keys()
        fresh = {enabled.name for enabled in renewed.consumers}
        for one in [one for one in self._coming if one.enabled.name not in renewed.kept]:
            self._coming.remove(one)
            discard(one.enabled)
        for delivery in list(self.deliveries):
            if delivery.enabled.name in renewed.kept:
                delivery.adopt(renewed.options)
            else:
                self.deliveries.remove(delivery)
                delivery.stop()
                self._leaving.append(_Leaving(delivery, now + renewed.options.drain_timeout))
        started_ms = int(self._source.clock.wall() * 1000)
        for enabled in renewed.consumers:
            self._coming.append(_Coming(enabled, filters[enabled.name], started_ms))
        self._set_intake()
        gone = known - renewed.kept - fresh
        parts = (("added", fresh - known), ("changed", fresh & known), ("removed", gone))
        return "; ".join(f"{what} {', '.join(sorted(names))}" for what, names in parts if names)

    def turn(self, now: float) -> None:
        """See who has ended, and start those that waited for it."""
        if self._intake_fault and now >= self._intake_at:
            self._set_intake()
        if not (self._leaving or self._coming):
            return
        for leaving in list(self._leaving):
            delivery = leaving.delivery
            if not delivery.is_alive():
                try:
                    delivery.commit()
                except FedbusError as error:
                    log.error("consumer %s: its last messages come again: %s", delivery.enabled.name, error)
                delivery.feed.close()
                self._leaving.remove(leaving)
            elif now > leaving.deadline and not leaving.late:
                leaving.late = True
                delivery.tell_of_deadline(self.options.drain_timeout)
                delivery.kill()
        busy = {one.delivery.enabled.name for one in self._leaving}
        started = False
        for coming in list(self._coming):
            if coming.enabled.name not in busy and now >= coming.next_try_at:
                started |= self._begin(coming, now)
        if started:
            self._set_intake()

    def _begin(self, coming: _Coming, now: float) -> bool:
        feed = Feed(messages=self.options.queue_messages, size=self.options.queue_bytes)
        delivery = self._make(coming.enabled, feed, coming.filters, coming.started_ms, with_hub=False)
        try:
            delivery.open_cursor()
        except FedbusError as error:
            feed.close()
            coming.failure = str(error)
            coming.next_try_at = now + _TRIED_AGAIN
            log.error("consumer %s cannot be started now: %s", coming.enabled.name, error)
            return False
        self._coming.remove(coming)
        self.deliveries.append(delivery)
        delivery.start()
        return True

    def _set_intake(self) -> None:
        """Have the intake read what the consumers want, and hand it to those that run."""
        intake = self.intake
        if intake is None:
            return
        wanted = frozenset(one.text for delivery in self.deliveries for one in delivery.filters)
        if wanted == self._read and not intake.stopping:
            intake.serve([delivery.feed for delivery in self.deliveries])
            return
        intake.stop()
        intake.join(0.0 if self._intake_fault else _INTAKE_SECONDS)
        before, self._intake_at = self._intake_fault, self._source.clock.monotonic() + _INTAKE_AGAIN
        if intake.is_alive():
            # two of them would put into one feed at the same time, and each its own idea of what follows on what
            self._intake_fault = "the one before it, with other filters, has not ended"
        else:
            following: Intake | None = None
            try:
                # the next one begins where this one was, so nobody misses anything
                following = self._make_intake()
                following.start()
            except Exception as error:  # descriptors, memory, threads: they may come back
                self._intake_fault = f"cannot be opened: {type(error).__name__}: {error}"
                if following is not None:
                    following.subscriber.close()
            else:
                self.intake, self._intake_fault = following, ""
        if self._intake_fault != before:
            log.error("intake: %s", self._intake_fault or "it is there again")

    def endpoints_changed(self, endpoints: Iterable[Endpoint]) -> None:
        """Have the intake read from *endpoints*."""
        if self.intake is not None and self.deliveries:
            self.intake.update(endpoints)

    def reasons(self) -> list[str]:
        """Return who has not gone in time, and who cannot come."""
        found = [
            f"consumer {one.delivery.enabled.name}: was to stop, and has not finished {one.delivery.in_words()}"
            for one in self._leaving
            if one.late
        ]
        if self._intake_fault:
            found.append(f"intake: {self._intake_fault}")
        for coming in self._coming:
            why = coming.failure or "waits until the one before it, with its old settings, has ended"
            found.append(f"consumer {coming.enabled.name}: {why}")
        return found

    # --- the end -----------------------------------------------------------------------------------------------

    def stop(self) -> list[Delivery]:
        """Ask all to end; return all that may still have to write a cursor."""
        if self.intake is not None:
            self.intake.stop()
        for coming in self._coming:
            discard(coming.enabled)
        self._coming.clear()
        for delivery in self.deliveries:
            delivery.stop()
        return [*self.deliveries, *(one.delivery for one in self._leaving)]


def check(source: Source, consumers: Iterable[Enabled]) -> dict[str, list[TopicFilter]]:
    """Return the filters of each consumer, by its name.

    Raises:
        ConfigError: Two have one name, or a filter is none.
    """
    filters: dict[str, list[TopicFilter]] = {}
    for one in consumers:
        if one.name in filters:
            raise ConfigError(f"two consumers are named {one.name!r}; give one of them another name")
        try:
            filters[one.name] = source.filters(one.topics)
        except MessageError as error:
            raise ConfigError(f"consumer {one.name!r}: {error}") from error
    return filters


def discard(enabled: Enabled) -> None:
    """Let go of a consumer that was loaded and is not run; it may have a process."""
    kill = getattr(enabled.consumer, "discard", None)
    if kill is not None:
        kill()
