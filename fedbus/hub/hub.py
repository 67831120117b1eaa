"""The hub: one intake, a thread for each consumer, and what holds them together."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from fedbus.bell import Bell
from fedbus.errors import FedbusError, Fenced
from fedbus.hub.consumer import Halt
from fedbus.hub.delivery import Delivery
from fedbus.hub.enabled import Enabled
from fedbus.hub.http import status_server
from fedbus.hub.intake import Intake
from fedbus.hub.options import HubOptions
from fedbus.hub.roster import Renew, Roster, discard
from fedbus.hub.source import Source
from fedbus.hub.watch import Watch
from fedbus.model.message import Message
from fedbus.monitor.discovery import DiscoveryFigures
from fedbus.monitor.http import StatusServer
from fedbus.transport.endpoint import Endpoint

log = logging.getLogger(__name__)

_LIVE_SECONDS = 30.0  # after which it counts as hanging when its own thread, or the intake, does not come round
_TICK = 0.25  # seconds between two rounds of the hub's own thread
_WATCH_SECONDS = 1.0
_KILL_SECONDS = 2.0  # that it takes a consumer's thread to notice that its process was killed
_BEAT_SECONDS = 1.0  # between two signs of life while consumers have time to finish
_DEAD_SECONDS = 1.0  # between two looks whether people have requeued or dropped dead letters
_SAID_AGAIN = 30.0  # seconds between two lines about a cursor store that refuses


class Hub:
    """Delivers to *consumers* until it is stopped; each has its own cursor and never waits for another.

    ``run`` does everything in the calling thread until the end; ``start`` and ``close`` are the same for programs that
    have something else to do, which then call ``tick`` now and then. *problems* are reasons why some consumer could not
    be loaded; *watch*, if given, is asked for a changed list of endpoints (with True: even if the files look the same),
    and returns None where nothing has changed. One that is a :class:`~fedbus.hub.watch.Watch` says why files are not in
    force by itself, and has figures for the metrics. *renew* is asked, after :meth:`reload`, which consumers to run.
    """

    def __init__(
        self,
        source: Source,
        consumers: Sequence[Enabled],
        *,
        options: HubOptions,
        problems: Sequence[str] = (),
        watch: Callable[[bool], Mapping[str, Endpoint] | None] | None = None,
        renew: Renew | None = None,
    ) -> None:
        """Prepare a hub; nothing is opened yet.

        Raises:
            ConfigError: Two consumers have one name, or a filter is none.
        """
        self.source = source
        self.roster = Roster(source, consumers, options=options, on_halt=self._on_halt)
        self.problems = list(problems)
        self.refused = ""  # why the configuration on disk is not in force
        self.exit_code = 0
        self.started_at = 0.0  # monotonic time of `start`
        self.beat_at = 0.0  # monotonic time of the last round of the hub's own thread
        self._watch = watch
        self._renew = renew
        self._renewal_refused = ""  # why the consumers on disk do not run
        self._renew_asked = False
        self._bell = Bell()
        self._stop_asked = False
        self._reload_asked = False
        self._closed = False
        self._commit_at = 0.0
        self._watch_at = 0.0
        self._dead_at = 0.0
        self._dead_version: tuple[int, int] | None = None
        self._store_failure = ""
        self._store_said_at = float("-inf")
        self._ending: list[Delivery] = []  # all that ran, from the end on
        self._busy: dict[tuple[str, int], tuple[Message, float]] = {}  # what each worker had in hand, and since when
        self._http: StatusServer | None = None

    # --- the life of a hub -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the cursors, the intake and the HTTP port, and let the consumers run.

        Raises:
            JournalError: The cursor store cannot be used.
            BindError: The HTTP port is taken.
            ConfigError: A consumer's ``since`` is no place to begin.
        """
        clock = self.source.clock
        # first of all: what is published from this moment on is delivered to new consumers
        started_ms, started = int(clock.wall() * 1000), clock.monotonic()
        self.started_at = self.beat_at = started
        self.roster.open(started_ms=started_ms, started=started)
        self._http = self._serve(self.options)
        self.roster.start()

    def run(self, *, seconds: float | None = None, on_ready: Callable[[], object] | None = None) -> int:
        """Start, deliver until :meth:`stop`, :class:`Halt` or *seconds* have passed, close; return the exit code.

        *on_ready* is called once, when every endpoint that answers was joined (or after two seconds).
        """
        clock = self.source.clock
        try:
            self.start()
            begun = clock.monotonic()
            while not self._stop_asked:
                now = clock.monotonic()
                if on_ready is not None and (self.joined or now - begun > 2.0):
                    on_ready()
                    on_ready = None
                pause = 0.02 if on_ready is not None else _TICK
                if seconds is not None:
                    if now - begun >= seconds:
                        break
                    pause = min(pause, begun + seconds - now)
                self._bell.wait(pause)
                self.tick()
        finally:
            self.close()
        return self.exit_code

    def stop(self, exit_code: int | None = None) -> None:
        """Ask :meth:`run` to end; safe in any thread and in a signal handler."""
        if exit_code is not None and not self._stop_asked:
            self.exit_code = exit_code
        self._stop_asked = True
        self._bell.release()

    def reload(self) -> None:
        """Ask for the configuration to be read again; safe in any thread and in a signal handler."""
        self._reload_asked = True
        self._bell.release()

    def tick(self) -> None:
        """Do what is due: write cursors, look at the configuration, start and stop consumers, see who is busy."""
        now = self.source.clock.monotonic()
        self.beat_at = now
        if now >= self._commit_at:
            self._commit_at = now + self.options.commit_interval
            self._commit(now)
        if self._watch is not None and (self._reload_asked or now >= self._watch_at):
            self._watch_at = now + _WATCH_SECONDS
            forced, self._reload_asked = self._reload_asked, False
            self._look_at_configuration(forced)
            if self._renew_asked:
                self._look_at_consumers(now)
        self.roster.turn(now)
        if now >= self._dead_at:
            self._dead_at = now + _DEAD_SECONDS
            self._look_at_dead_letters()
        for delivery in self.deliveries:
            for worker, message in enumerate(delivery.currents):
                place = (delivery.enabled.name, worker)
                if message is None:
                    self._busy.pop(place, None)
                elif self._busy.get(place, (None, 0.0))[0] is not message:
                    self._busy[place] = (message, now)

    def close(self) -> None:
        """Stop the intake, let consumers finish the message in hand within ``drain_timeout``, write the cursors."""
        if self._closed:
            return
        self._closed = True
        clock = self.source.clock
        deadline = clock.monotonic() + self.options.drain_timeout
        ending = self.roster.stop()
        threads: list[threading.Thread] = [*ending]
        if self.intake is not None:
            threads.append(self.intake)
        for thread in threads:
            while thread.ident is not None and thread.is_alive():
                self.beat_at = now = clock.monotonic()
                if now >= deadline:
                    break
                thread.join(min(_BEAT_SECONDS, deadline - now))
        for delivery in ending:
            if delivery.is_alive():
                delivery.tell_of_deadline(self.options.drain_timeout)
                if delivery.kill():
                    delivery.join(_KILL_SECONDS)
        self._ending = ending
        if self.intake is not None and self.intake.ident is None:
            self.intake.subscriber.close()
        elif self.intake is not None and self.intake.is_alive():
            log.error("the intake has not ended within %g s; it is left behind", self.options.drain_timeout)
        self._commit(clock.monotonic(), last=True)
        if self._http is not None:
            self._http.stop()
        for delivery in ending:
            if not delivery.is_alive():
                delivery.feed.close()
        self._bell.close()

    def __enter__(self) -> Hub:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def unfinished(self) -> list[Delivery]:
        """Return those whose consumer is still in a call; after :meth:`close` only ending the process ends them."""
        return [delivery for delivery in self._ending or self.deliveries if delivery.is_alive()]

    @property
    def ended(self) -> bool:
        """Whether no thread is left of it that holds something of the bus; before that the bus cannot be closed."""
        return not self.unfinished() and (self.intake is None or not self.intake.is_alive())

    # --- how it is ---------------------------------------------------------------------------------------------

    @property
    def options(self) -> HubOptions:
        """What is in force."""
        return self.roster.options

    @property
    def deliveries(self) -> list[Delivery]:
        """The consumers that run."""
        return self.roster.deliveries

    @property
    def intake(self) -> Intake | None:
        """What reads for them; another one after a change of their filters."""
        return self.roster.intake

    @property
    def http_address(self) -> str | None:
        """Where /live, /ready and /metrics are served, HOST:PORT; None where they are not."""
        return None if self._http is None else self._http.address

    @property
    def joined(self) -> bool:
        """Whether every endpoint that answers is being read."""
        return self.intake is not None and self.intake.caught_up

    def discovery(self) -> DiscoveryFigures | None:
        """Return where the endpoints come from, and whether that is as it should be; None where nothing changes it."""
        return self._watch.figures() if isinstance(self._watch, Watch) else None

    def live(self) -> bool:
        """Say whether the hub's own thread and the intake have both come round within half a minute.

        Consumers do not count: one that hangs must not take the others with it.
        """
        intake = self.intake
        own = self.source.clock.monotonic() - self.beat_at < _LIVE_SECONDS
        return own and (intake is None or intake.live(_LIVE_SECONDS))

    def reasons(self) -> list[str]:
        """Return why the hub is not ready, or is ready only in part; empty when all is well."""
        intake = self.intake
        if intake is None:
            return ["starting"]
        now = self.source.clock.monotonic()
        found = [f"not loaded: {problem}" for problem in self.problems]
        if self.refused:
            found.append(f"configuration refused: {self.refused}")
        if self._renewal_refused:
            found.append(f"configuration refused, consumers run as before: {self._renewal_refused}")
        if self._store_failure:
            found.append(f"cursors are not written: {self._store_failure}")
        if intake.failure:
            found.append(f"intake: {intake.failure}")
        elif not intake.live(_LIVE_SECONDS):
            found.append(f"intake: it hangs, no message has been taken in for {_LIVE_SECONDS:g} s or longer")
        elif not intake.caught_up:
            found.append("intake: not caught up")
        if self._stop_asked or self._closed:
            found.append("stopping")
        found += self.roster.reasons()
        for delivery in list(self.deliveries):
            enabled = delivery.enabled
            if delivery.failure:
                found.append(f"consumer {enabled.name}: {delivery.failure}")
            elif not delivery.caught_up:
                found.append(f"consumer {enabled.name}: not caught up")
            found += [f"consumer {enabled.name}: {reason}" for reason in delivery.trying.reasons()]
            for worker in range(enabled.workers):
                busy = self._busy.get((enabled.name, worker))
                if busy is not None and now - busy[1] > enabled.timeout:
                    found.append(f"consumer {enabled.name}: busy with {busy[0].key} for {now - busy[1]:.0f} s")
        return found

    # --- parts of a round --------------------------------------------------------------------------------------

    def _on_halt(self, name: str, halt: Halt) -> None:
        reason = f": {halt.reason}" if halt.reason else ""
        log.warning("consumer %s halts the hub with exit code %d%s", name, halt.exit_code, reason)
        self.stop(halt.exit_code)

    def _commit(self, now: float, *, last: bool = False) -> None:
        failure = ""
        for delivery in self._ending or self.deliveries:
            try:
                delivery.commit()
            except Fenced as error:
                log.error("consumer %s: %s", delivery.enabled.name, error)
                self.stop(1)  # and write those of the others, as far as they are still ours
            except FedbusError as error:
                failure = str(error)
        if failure and (last or now - self._store_said_at > _SAID_AGAIN):
            self._store_said_at = now
            log.error("cursors are not written, so a crash now would repeat messages: %s", failure)
        elif self._store_failure and not failure:
            log.warning("cursors are written again")
            self._store_said_at = float("-inf")
        self._store_failure = failure

    def _look_at_dead_letters(self) -> None:
        dead = self.source.dead
        try:
            version = dead.version
            if version == self._dead_version:
                return
            for delivery in self.deliveries:
                delivery.trying.held = dead.held(delivery.enabled.name)
                if delivery.dead.requeued and not delivery.requeue_asked:
                    delivery.requeue_asked = True
                    delivery.feed.wake()
            self._dead_version = version
        except FedbusError as error:
            if self._dead_version is not None:
                log.error("dead letters that are requeued have to wait: %s", error)
            self._dead_version = None

    def _look_at_consumers(self, now: float) -> None:
        """Take up other consumers and hub options, once the files were read after SIGHUP."""
        watch = self._watch
        if self._renew is None or (isinstance(watch, Watch) and watch.pending):
            self._watch_at = now + _TICK
            return
        self._renew_asked = False
        if self.refused:
            return  # the files as a whole, and why was told
        loaded: Sequence[Enabled] = ()
        server = self._http
        try:
            renewed = self._renew(self.roster.made_of())
            loaded = renewed.consumers
            if renewed.options.http != self.options.http:
                server = self._serve(renewed.options)  # before anything is changed: the port may be taken
            told = self.roster.take_up(renewed, now=now)
        except FedbusError as error:
            if server is not None and server is not self._http:
                server.stop()
            for enabled in loaded:
                discard(enabled)
            self._renewal_refused = str(error)
            faults = str(error).replace("\n", "; ")
            log.error("the changed consumers are refused as a whole, those that run go on: %s", faults)
            return
        before, self._http = self._http, server
        if before is not None and before is not server:
            before.stop()
        renewed.in_force()
        self._renewal_refused = ""
        self.problems = list(renewed.problems)
        self._dead_version = None  # look at those of new consumers
        self._busy.clear()
        log.info("consumers: %s", told or "the same")

    def _serve(self, options: HubOptions) -> StatusServer | None:
        if options.http is None:
            return None
        server = status_server(self, options.http)
        server.start()
        return server

    def _look_at_configuration(self, forced: bool) -> None:
        assert self._watch is not None
        self._renew_asked |= forced and self._renew is not None
        try:
            endpoints = self._watch(forced)
        except FedbusError as error:
            self.refused = str(error)
            log.error("the changed configuration is refused as a whole, the old one stays in force: %s", error)
            return
        if isinstance(self._watch, Watch):
            self.refused = self._watch.refused
        if endpoints is None:
            return
        if not isinstance(self._watch, Watch):
            self.refused = ""
        before = self.source.endpoints
        added, gone = endpoints.keys() - before.keys(), before.keys() - endpoints.keys()
        moved = {name for name in endpoints.keys() & before.keys() if not endpoints[name].is_where(before[name])}
        self.source.endpoints = endpoints
        if not (added or gone or moved):
            return
        self.source.version += 1
        self.roster.endpoints_changed(endpoints.values())
        log.debug("endpoints added: %d, removed: %d, moved: %d", len(added), len(gone), len(moved))
