"""The configuration in force while a program runs: what its files say now, and the DNS, if both can be used.

Whoever reads the bus asks :class:`Discovery` now and then, in its receive loop. That costs a comparison, every few
seconds some stats, and when a file has changed the reading of the files: 35 ms for 500 endpoints.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fedbus.clock import Clock
from fedbus.config.files import Fingerprint
from fedbus.config.settings import ConfigWatcher, Settings
from fedbus.errors import FedbusError
from fedbus.journal.options import JournalOptions
from fedbus.transport.endpoint import Endpoint

if TYPE_CHECKING:
    from fedbus.config.discovery_dns import DnsDiscovery
    from fedbus.monitor.discovery import DiscoveryFigures

log = logging.getLogger(__name__)

_SETTLE_SECONDS = 0.25  # without another change: an editor that writes in parts has come to its end
_UNSETTLED_SECONDS = 5.0  # a folder that never comes to rest is read all the same
_FORCED_SECONDS = 0.25  # between two readings that are asked for; a storm of SIGHUP is one wish
_RETRY_SECONDS = 30.0  # after which refused files are read again: what was wrong may not have been in them
# what can be in force at once; `values` and the like only say where things are written
_AT_ONCE = frozenset(
    {
        *("endpoints", "journals", "journal", "discovery", "keyring", "schemas", "texts"),
        *("values", "origins", "variables"),
    }
)
_RESTART = tuple(
    field.name for field in dataclasses.fields(Settings) if field.name not in _AT_ONCE | {"policy", "directory"}
)


@dataclass(frozen=True, slots=True)
class Change:
    """What was taken up: the endpoints *before* and *after*, and the other sections that are in force at once.

    *waiting* are sections that have changed and need a restart, *asked* those that need a SIGHUP. *mended*: something
    was refused before this.
    """

    cause: str  # "configuration" or "DNS"
    before: Mapping[str, Endpoint]
    after: Mapping[str, Endpoint]
    taken: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    mended: bool = False

    def endpoints(self, only: Collection[str] = ()) -> str:
        """Return in words what is different, of the endpoints *only* or of all."""
        was = {name for name in self.before if not only or name in only}
        now = {name for name in self.after if not only or name in only}
        moved = {name for name in was & now if not self.after[name].is_where(self.before[name])}
        parts = (("added", now - was), ("removed", was - now), ("moved", moved))
        return "; ".join(f"{what} {', '.join(sorted(names))}" for what, names in parts if names) or "the same"


class Listener(Protocol):
    """Is told what was taken up or refused, in the thread that found out."""

    def changed(self, change: Change) -> None: ...

    def refused(self, text: str) -> None: ...


class Logs:
    """Tells the log."""

    def changed(self, change: Change) -> None:
        words = change.endpoints()
        if change.cause == "DNS":
            log.info("endpoints by DNS: %s", words)
            return
        more = "".join(f"; {name} changed" for name in change.taken)
        again = " and can be used" if change.mended else ""
        log.info("the configuration was read again%s; endpoints: %s%s", again, words, more)
        if change.waiting:
            log.warning("changed, and in force only after a restart: %s", ", ".join(change.waiting))
        if change.asked:
            log.warning("changed, and in force after SIGHUP: %s", ", ".join(change.asked))

    def refused(self, text: str) -> None:
        log.error("the changed configuration is refused as a whole, the old one stays in force: %s", text)


class Discovery:
    """Keeps the settings of one bus in step with their files (where a watcher is given) and with the DNS.

    Thread-safe. *adopt* is called with new settings before they are in force; what it raises refuses them.
    """

    def __init__(
        self, given: Settings | ConfigWatcher, *, clock: Clock, adopt: Callable[[Settings], None] | None = None
    ) -> None:
        self.watcher = given if isinstance(given, ConfigWatcher) else None
        self.settings: Settings = given.settings if isinstance(given, ConfigWatcher) else given  # in force
        self.version = 0  # grows each time that something was taken up, if only the same
        self.refused = ""  # why the files are not in force as they are
        self.refusals = 0
        self.taken = 0  # times that files were taken up
        self.dns: DnsDiscovery | None = None
        self.listener: Listener = Logs()
        self.by_hangup: frozenset[str] = frozenset()  # sections that the program takes up itself, when it is asked to
        self._clock = clock
        self._adopt = adopt
        self._files = self.settings  # in force, without what the DNS adds
        self._lock = threading.RLock()
        self._look_at = clock.monotonic() + self.settings.discovery.look_interval
        self._read_at = float("-inf")
        self._forced = False
        self._seen = () if self.watcher is None else self.watcher.seen  # as of the last look
        self._refused_seen: Fingerprint | None = None  # which state of the files was refused last
        self._unsettled_at: float | None = None
        self._retry_at = float("inf")
        self._dns_version = 0
        self._begun = False
        self._conflicts: dict[str, str] = {}
        self._closed = False

    # --- for readers -------------------------------------------------------------------------------------------

    def begin(self, *, wait: bool) -> None:
        """Ask the DNS from now on, where that is configured; with *wait*, have its first answer or failure before.

        Raises:
            ConfigError: The library for it is not installed.
        """
        with self._lock:
            if not self._begun:
                self._switch(self._dns_of(self._files))
                self._begun = True
        waiting = self.dns
        if waiting is not None and wait and waiting.wait(waiting.options.timeout + 1.0):
            self.look()

    def force(self) -> None:
        """Have the next look read the files even where they look the same; safe in a signal handler."""
        self._forced = True

    def look(self, *, forced: bool = False) -> None:
        """Take up what has changed, if a look is due; with *forced*, read the files even where they look the same.

        Never waits, never raises, and is cheap when there is nothing to do.
        """
        if forced:
            self._forced = True
        now = self._clock.monotonic()
        dns = self.dns
        due = now >= self._look_at or (self._forced and now >= self._read_at + _FORCED_SECONDS)
        news = dns is not None and dns.version != self._dns_version
        if not (due or news) or self._closed or not self._lock.acquire(blocking=False):
            return
        try:
            if due:
                self._look_at = now + self._files.discovery.look_interval
                self._look_at_files(now)
            dns = self.dns
            if dns is not None and dns.version != self._dns_version:
                try:
                    self._take("DNS", self._files)
                except (FedbusError, OSError):
                    log.exception("what the DNS lists cannot be taken up")
        finally:
            self._lock.release()

    @property
    def pending(self) -> bool:
        """Whether the files are still to be read, after somebody asked for it."""
        return self._forced

    def took_up(self, settings: Settings, names: Iterable[str]) -> None:
        """Note that the program has put the sections *names* of *settings*, as the files have them, in force."""
        with self._lock:
            changes: dict[str, Any] = {name: getattr(settings, name) for name in names}
            self._files = replace(self._files, **changes)
            self.settings = replace(self.settings, **changes)

    def following(self, only: Collection[str] | None = None) -> Following:
        """Return what a reader of the endpoints *only*, or of all, asks for changes."""
        return Following(self, only)

    def close(self) -> None:
        """End the thread that asks the DNS; nothing is taken up any more."""
        self._closed = True
        if self.dns is not None:
            self.dns.stop()

    @property
    def conflicts(self) -> list[str]:
        """In what files and the DNS contradict each other; the files win."""
        return list(self._conflicts.values())

    def figures(self) -> DiscoveryFigures:
        """Return what a metric can be made of."""
        from fedbus.monitor.discovery import DiscoveryFigures, DnsFigures

        dns = self.dns
        known = self.settings.endpoints
        by_dns = sum(name not in self._files.endpoints for name in known)
        return DiscoveryFigures(
            refused=bool(self.refused),
            refusals=self.refusals,
            taken=self.taken,
            endpoints={"file": len(known) - by_dns, **({"dns": by_dns} if dns is not None else {})},
            dns=None
            if dns is None
            else DnsFigures(
                failing=bool(dns.failure),
                answers=dns.answers,
                failures=dns.failures,
                refused=dict(dns.refused),
                answered_at=dns.began_at if dns.answered_at is None else dns.answered_at,
            ),
        )

    # --- files -------------------------------------------------------------------------------------------------

    def _look_at_files(self, now: float) -> None:
        watcher = self.watcher
        if watcher is None:
            return
        forced, self._forced = self._forced, False
        seen = watcher.look()
        if seen in (watcher.seen, self._refused_seen) and not forced and now < self._retry_at:
            self._unsettled_at = None
            self._seen = seen
            return
        if self._unsettled_at is None:
            self._unsettled_at = now
        patient = now - self._unsettled_at < _UNSETTLED_SECONDS
        if seen != self._seen and patient and not forced:
            # somebody is writing: half of a file may be well-formed, and then endpoints would go and come
            self._seen = seen
            self._look_at = now + _SETTLE_SECONDS
            return
        self._seen = seen
        self._read(watcher, now, patient=patient and not forced, forced=forced)

    def _read(self, watcher: ConfigWatcher, now: float, *, patient: bool, forced: bool) -> None:
        again = self._seen == self._refused_seen and now >= self._retry_at
        self._read_at = now
        self._retry_at = float("inf")
        try:
            after = watcher.reload()
            if patient and watcher.look() != self._seen:
                raise _Changing
            self._take("configuration", after, forced=forced)
        except (FedbusError, OSError) as error:
            if patient and watcher.look() != self._seen:
                self._look_at = now + _SETTLE_SECONDS
                return
            self._retry_at = now + _RETRY_SECONDS
            self._refused_seen = self._seen
            if not (again and self.refused == str(error)):
                self.refused = str(error)
                self.refusals += 1
                self.listener.refused(self.refused)
        except _Changing:
            self._look_at = now + _SETTLE_SECONDS
        else:
            self._unsettled_at = self._refused_seen = None

    # --- taking up ---------------------------------------------------------------------------------------------

    def _take(self, cause: str, after: Settings, *, forced: bool = False) -> None:
        """Put *after*, as far as it can be while running, and the newest list of the DNS in force.

        Raises:
            ConfigError, KeysError: It cannot be used; nothing has changed.
        """
        files, taken = (after, ()) if cause == "DNS" else _in_force(self._files, after)
        dns = self._dns_of(files) if self._begun else None
        settings = self._with_dns(files, dns)
        if self._adopt is not None:
            self._adopt(settings)
        before, self.settings = self.settings, settings
        self._files = files
        self._switch(dns)
        mended = False
        if cause != "DNS":
            mended, self.refused = bool(self.refused), ""
            self.taken += 1
        self.version += 1
        changed = [name for name in _RESTART if differs(getattr(files, name), getattr(after, name))]
        waiting = tuple(name for name in changed if name not in self.by_hangup)
        asked = () if forced else tuple(name for name in changed if name in self.by_hangup)
        self.listener.changed(Change(cause, before.endpoints, settings.endpoints, taken, waiting, asked, mended))

    def _dns_of(self, files: Settings) -> DnsDiscovery | None:
        """Return who asks the DNS as *files* say: who does so already, or a new one that is not started yet.

        Raises:
            ConfigError: The library for it is not installed.
        """
        wanted, present = files.discovery.dns, self.dns
        if wanted is None or (present is not None and present.options == wanted):
            return None if wanted is None else present
        # asyncio takes 25 ms to import, and scripts start often
        from fedbus.config.discovery_dns import DnsDiscovery, need_dnspython

        need_dnspython(files.origins.get("discovery.dns.domain", ""))
        # with the same domain, the list that is known counts until there is a newer one
        known = present is not None and present.options.domain == wanted.domain
        return DnsDiscovery(wanted, clock=self._clock, known=present.endpoints if known and present else {})

    def _switch(self, dns: DnsDiscovery | None) -> None:
        present, self.dns = self.dns, dns
        if present is not dns:
            if present is not None:
                present.stop()
            if dns is not None:
                dns.start()

    def _with_dns(self, files: Settings, dns: DnsDiscovery | None) -> Settings:
        """Return *files* with the endpoints that the DNS adds; where both name one, the file wins."""
        if dns is None:
            return files
        self._dns_version = dns.version
        in_files = {address: one for one in files.endpoints.values() for address in (one.publish, one.replay)}
        endpoints: dict[str, Endpoint] = {}
        conflicts: dict[str, str] = {}
        for name, one in dns.endpoints.items():
            own = files.endpoints.get(name)
            other = in_files.get(one.publish) or in_files.get(one.replay)
            if own is not None:
                if not own.is_where(one):
                    conflicts[name] = f"endpoint {name} is at {own.publish} by {own.origin} and at {one.publish} by DNS"
            elif other is not None:
                conflicts[name] = f"endpoint {name} has by DNS an address of {other.name}, which {other.origin} defines"
            else:
                endpoints[name] = one
        for name, text in conflicts.items():
            if self._conflicts.get(name) != text:
                dns.refused["conflict"] += 1
                log.warning("%s; the file wins", text)
        self._conflicts = conflicts
        journals = {name: journal_of(files, name) for name in endpoints}
        return replace(files, endpoints={**files.endpoints, **endpoints}, journals={**files.journals, **journals})


class _Changing(Exception):
    """A file was changed while it was being read."""


class Following:
    """What one reader asks now and then: is there another list of endpoints? Belongs to that reader's thread."""

    def __init__(self, discovery: Discovery, only: Collection[str] | None) -> None:
        self._discovery = discovery
        self._only = None if only is None else frozenset(only)
        self._version = discovery.version
        self.endpoints = self._chosen(discovery.settings.endpoints)  # at the beginning

    def __call__(self) -> Iterable[Endpoint] | None:
        """Return all endpoints to read where something may have changed, else None."""
        discovery = self._discovery
        discovery.look()
        version = discovery.version  # before the list, or a change in between would be missed
        if version == self._version:
            return None
        self._version = version
        return self._chosen(discovery.settings.endpoints)

    def _chosen(self, endpoints: Mapping[str, Endpoint]) -> list[Endpoint]:
        return [one for name, one in endpoints.items() if self._only is None or name in self._only]


class HubWatch:
    """What a hub's own thread asks; see :class:`fedbus.hub.watch.Watch`."""

    def __init__(self, discovery: Discovery) -> None:
        self._discovery = discovery
        self._version = discovery.version

    def __call__(self, forced: bool) -> Mapping[str, Endpoint] | None:
        discovery = self._discovery
        discovery.look(forced=forced)
        version = discovery.version
        if version == self._version:
            return None
        self._version = version
        return discovery.settings.endpoints

    @property
    def refused(self) -> str:
        return self._discovery.refused

    @property
    def pending(self) -> bool:
        return self._discovery.pending

    def figures(self) -> DiscoveryFigures:
        return self._discovery.figures()


def _in_force(base: Settings, after: Settings) -> tuple[Settings, tuple[str, ...]]:
    """Return *base* with what of *after* can be in force at once, and which sections besides endpoints that is."""
    changes: dict[str, Any] = {name: getattr(after, name) for name in _AT_ONCE}
    # rules are written for a prefix and an environment
    if not differs(base.naming, after.naming):
        changes["policy"] = after.policy
    told = (("policy", "policy"), ("keyring", "keys"), ("discovery", "discovery"), ("schemas", "schemas"))
    taken = tuple(word for name, word in told if name in changes and differs(getattr(base, name), changes[name]))
    return replace(base, **changes), taken


def differs(before: Any, after: Any) -> bool:
    """Return whether a section of the settings has changed; where it is written does not count."""
    if hasattr(before, "rules"):  # a policy is compared by what it was made of
        return _bare(before.rules) != _bare(after.rules) or differs(before.naming, after.naming)
    if isinstance(before, Mapping):
        return {name: _bare((one,)) for name, one in before.items()} != {
            name: _bare((one,)) for name, one in after.items()
        }
    return bool(before != after)


def _bare(parts: Iterable[Any]) -> list[Any]:
    return [replace(one, origin="") if hasattr(one, "origin") else one for one in parts]


def journal_of(settings: Settings, name: str) -> JournalOptions:
    """Return where the journal of an endpoint that the DNS names would be on this host."""
    return replace(settings.journal, directory=Path(settings.state) / "journal" / name)
