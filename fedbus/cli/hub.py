"""`fedbus hub`: the daemon that delivers messages to consumers."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import click

from fedbus.bus import Bus, parse_since
from fedbus.cli.common import examples, http_address, notice, set_up_logs
from fedbus.cli.service import Service
from fedbus.clock import SystemClock
from fedbus.config.settings import ConfigWatcher, Settings
from fedbus.errors import ConfigError
from fedbus.hub import pauses
from fedbus.hub.hub import Hub
from fedbus.hub.options import HubOptions
from fedbus.hub.registry import Found, find
from fedbus.hub.roster import Renewed, discard

log = logging.getLogger(__name__)

_EXAMPLES = examples(
    "fedbus hub                                     the consumers that the configuration enables",
    "fedbus hub --consumer announce.py              one file more, as it is being written",
    "fedbus hub --consumer announce.py:on_build --since 10m",
    "fedbus hub --only irc --only history --http 127.0.0.1:9140",
)
_OURS = ("consumers", "hub")  # sections that SIGHUP puts in force


def _when(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        try:
            parse_since(value, SystemClock())
        except ValueError as error:
            raise click.BadParameter(str(error)) from error
    return value


@click.command("hub", epilog=_EXAMPLES)
@click.option(
    "--consumer",
    "files",
    multiple=True,
    metavar="FILE[:NAME]",
    help="Run the consumers of a Python file too, or one of them; may be repeated.",
)
@click.option("--only", multiple=True, metavar="NAME", help="Of all consumers run this one; may be repeated.")
@click.option("--http", callback=http_address, metavar="HOST:PORT", help="Serve /live, /ready and /metrics there.")
@click.option(
    "--since",
    callback=_when,
    metavar="WHEN",
    help="Where consumers without a cursor begin: now, beginning, 10m, a time.",
)
@click.option("--seconds", type=click.FloatRange(0.0, 1e9), metavar="S", help="Stop after so many seconds.")
@click.pass_context
def hub(
    ctx: click.Context,
    files: tuple[str, ...],
    only: tuple[str, ...],
    http: str | None,
    since: str | None,
    seconds: float | None,
) -> int:
    """Load consumers and deliver to them, each at its own pace and from its own cursor.

    A consumer that cannot be loaded or fails does not keep the others from running; /ready and the log say why.
    SIGTERM lets consumers finish the message in hand and ends with exit code 0, a second one ends at once; SIGHUP has
    the configuration read again: consumers that were added start, those that were removed or changed finish what they
    have in hand, and what cannot be used is refused as a whole.
    """
    with Service() as service:
        return _run(ctx.obj or {}, service, files, only, http, since, seconds)


def _run(
    given: dict[str, Any],
    service: Service,
    files: tuple[str, ...],
    only: tuple[str, ...],
    http: str | None,
    since: str | None,
    seconds: float | None,
) -> int:
    pauses.shorten_turns()
    watcher = ConfigWatcher(given.get("config"))
    settings = watcher.settings
    set_up_logs(given, level=settings.log.level, form=settings.log.format, daemon=True)
    chosen = _Chosen(watcher, files=files, only=only, since=since, http=http)
    found = chosen.load(settings)
    for problem in found.problems:
        log.error("consumer not loaded: %s", problem)
    options = chosen.options(settings)
    with Bus(watcher) as bus:
        chosen.follow(bus)
        daemon = bus.hub(found.consumers, options=options, problems=found.problems, renew=chosen.renew)
        with service.of(
            stop=daemon.stop,
            reload=daemon.reload,
            turned_at=lambda: daemon.beat_at,
            reasons=daemon.reasons,
            live=daemon.live,
            drain_seconds=options.drain_timeout,
        ):
            try:
                return daemon.run(seconds=seconds, on_ready=lambda: _say_ready(daemon, service))
            finally:
                if not daemon.ended:
                    # threads that hang, in a consumer's call for one, cannot be ended, nor the bus closed around them
                    logging.shutdown()
                    _leave(daemon.exit_code if sys.exc_info()[0] is None else 1)


class _Chosen:
    """Which consumers run, by the configuration and the command line; again on SIGHUP."""

    def __init__(
        self,
        watcher: ConfigWatcher,
        *,
        files: Sequence[str],
        only: Sequence[str],
        since: str | None,
        http: str | None,
    ) -> None:
        self._watcher = watcher
        self._files, self._only, self._since, self._http = files, only, since, http
        self._failed: dict[str, str] = {}  # what those that could not be loaded are made of
        self._bus: Bus | None = None

    def options(self, settings: Settings) -> HubOptions:
        """Return how the hub is to run."""
        return settings.hub if self._http is None else replace(settings.hub, http=self._http)

    def load(self, settings: Settings, running: Mapping[str, str] | None = None) -> Found:
        """Load those that do not run, or run as something else.

        Raises:
            ConfigError: As `find`; and where others run, also if one that is new or was changed cannot be loaded.
        """
        found = find(
            settings.consumers,
            folder=settings.hub.folder,
            files=self._files,
            only=self._only,
            since=self._since,
            origins=settings.origins,
            limits=settings.limits,
            running=running,
        )
        if running is not None:
            fresh = [name for name, made_of in found.failed.items() if self._failed.get(name) != made_of]
            if fresh:
                for enabled in found.consumers:
                    discard(enabled)
                raise ConfigError(found.problems)
        self._failed = found.failed
        return found

    def follow(self, bus: Bus) -> None:
        """Have the bus know that these sections are ours."""
        bus.discovery.by_hangup = frozenset(_OURS)
        self._bus = bus

    def renew(self, running: Mapping[str, str]) -> Renewed:
        """Return what to run by the files as they were read last. Raises ConfigError where they cannot be used."""
        settings = self._watcher.settings
        found = self.load(settings, running)
        bus = self._bus
        return Renewed(
            kept=frozenset(found.kept),
            consumers=found.consumers,
            problems=found.problems,
            options=self.options(settings),
            in_force=lambda: bus.discovery.took_up(settings, _OURS) if bus is not None else None,
        )


def _say_ready(daemon: Hub, service: Service) -> None:
    pauses.spare_the_collector()
    reasons = daemon.reasons()
    facts: dict[str, Any] = {
        "consumers": [one.enabled.name for one in daemon.deliveries],
        "endpoints": len(daemon.source.endpoints),
        "http": daemon.http_address,
        "degraded": bool(daemon.problems),
    }
    shown = [
        f"{key}={','.join(value) if isinstance(value, list) else value}"
        for key, value in facts.items()
        if value not in (None, False)
    ]
    notice(f"ready {' '.join(shown)}", event="ready", **facts, reasons=reasons)
    service.ready(" ".join(shown))


def _leave(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass
    os._exit(code)
