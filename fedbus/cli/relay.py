"""`fedbus relay`: the daemon that takes messages from short-lived and many processes of this host."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import click

from fedbus.bus import Bus
from fedbus.cli.common import (
    complete_endpoint,
    examples,
    http_address,
    notice,
    set_up_logs,
    take_up_endpoints,
    waiting_for_restart,
)
from fedbus.cli.service import Service
from fedbus.clock import SystemClock
from fedbus.config.settings import ConfigWatcher, Settings
from fedbus.errors import ConfigError
from fedbus.monitor.http import StatusServer, daemon_pages
from fedbus.monitor.text import Family
from fedbus.transport.endpoint import Endpoint
from fedbus.transport.metrics import of_links, of_publishers
from fedbus.transport.options import RelayRule
from fedbus.transport.relay import Relay
from fedbus.transport.relay_metrics import of_relay

log = logging.getLogger(__name__)

_EXAMPLES = examples(
    "fedbus relay                                  for the endpoints marked `relay: true` whose keys are here",
    "fedbus relay --endpoint koji.hook01           for this one",
    "fedbus relay --http 127.0.0.1:9142",
)
_LIVE_SECONDS = 30.0  # after which a relay whose thread does not come round counts as hanging
_NEEDS_RESTART = ("naming", "environment", "keyring", "keys", "state", "policy", "limits", "publisher", "links")


@click.command("relay", epilog=_EXAMPLES)
@click.option(
    "--endpoint",
    "names",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_endpoint,
    help="Publish as this endpoint; may be repeated. Otherwise as all that are marked `relay: true` and whose keys "
    "this host has.",
)
@click.option("--http", callback=http_address, metavar="HOST:PORT", help="Serve /live, /ready and /metrics there.")
@click.option("--seconds", type=click.FloatRange(0.0, 1e9), metavar="S", help="Stop after so many seconds.")
@click.pass_context
def relay(ctx: click.Context, names: tuple[str, ...], http: str | None, seconds: float | None) -> int:
    """Take messages over a local socket, and publish them durably as endpoints of this host.

    Scripts, hooks, cron jobs and web workers hand in what they have to say with `fedbus publish` or Bus.publisher, and
    get a receipt when it is in the journal, on the disk. Whom the relay lets do that is told by the socket's mode, by
    relay.allow, and by the policy. What was spooled while there was no relay is published first.

    SIGTERM brings what was taken into the journals and ends with exit code 0, a second one ends at once; SIGHUP has the
    configuration read again.
    """
    with Service() as service:
        return _run(ctx.obj or {}, service, names, http, seconds)


def _run(
    given: dict[str, Any], service: Service, names: tuple[str, ...], http: str | None, seconds: float | None
) -> int:
    watcher = ConfigWatcher(given.get("config"))
    settings = watcher.settings
    set_up_logs(given, level=settings.log.level, form=settings.log.format, daemon=True)
    endpoints = chosen(settings, names)
    if not endpoints:
        raise ConfigError(
            f"{settings.directory}: no endpoint is marked `relay: true` and has its key in {settings.keys}; mark one "
            "in the endpoints file, or name one with --endpoint"
        )
    http = http or settings.relay.http
    with Bus(settings) as bus:
        daemon = Relay(
            endpoints,
            options=settings.relay,
            spools=settings.spools,
            limits=settings.limits,
            open_publisher=lambda name: bus.publisher(name, direct=True),
            clock=SystemClock(),
            watch=_Watch(watcher, bus, names),
        )
        server = status_server(daemon, bus, http) if http is not None else None
        with service.of(
            stop=daemon.stop,
            reload=daemon.reload,
            turned_at=lambda: daemon.beat_at,
            reasons=daemon.reasons,
            drain_seconds=settings.relay.drain_timeout,
        ):
            try:
                if server is not None:
                    server.start()
                daemon.run(
                    seconds=seconds,
                    on_ready=lambda: _say_ready(daemon, server, settings, service),
                )
            finally:
                if server is not None:
                    server.stop()
    return 0


def chosen(settings: Settings, names: tuple[str, ...]) -> dict[str, Endpoint]:
    """Return the endpoints to publish as: *names*, else those marked for a relay whose keys this host has.

    Where they are written does not count, so that a line inserted above one does not have it opened anew.

    Raises:
        ConfigError: One that is named does not exist.
    """
    if names:
        found = [settings.endpoint(name) for name in names]
    else:
        found = [one for one in settings.endpoints.values() if one.relay and one.key is not None and one.key.exists()]
    return {one.name: dataclasses.replace(one, origin="") for one in found}


class _Watch:
    """Gives the relay the changed endpoints and rules, and says what else it cannot take up while running."""

    def __init__(self, watcher: ConfigWatcher, bus: Bus, names: tuple[str, ...]) -> None:
        self._watcher = watcher
        self._bus = bus
        self._names = names

    def __call__(self, forced: bool) -> tuple[Mapping[str, Endpoint], tuple[RelayRule, ...]] | None:
        if not forced and not self._watcher.changed():
            return None
        before = self._watcher.settings
        after = self._watcher.reload()
        endpoints = chosen(after, self._names)
        take_up_endpoints(self._bus, after)
        changed = waiting_for_restart(before, after, _NEEDS_RESTART)
        if dataclasses.replace(before.relay, allow=()) != dataclasses.replace(after.relay, allow=()):
            changed.append("relay")
        if changed:
            log.warning("changed, and in force only after a restart of the relay: %s", ", ".join(changed))
        return endpoints, after.relay.allow


def status_server(daemon: Relay, bus: Bus, address: str) -> StatusServer:
    """Return what serves the state of the relay on ``HOST:PORT``, not started yet."""

    def families() -> list[Family]:
        publishers = [one.publisher for one in list(daemon.outlets.values()) if one.publisher is not None]
        return [*of_relay(daemon), *of_publishers(publishers), *of_links(bus.links)]

    pages = daemon_pages(live=lambda: daemon.live(_LIVE_SECONDS), reasons=daemon.reasons, metrics=families)
    return StatusServer(address, pages, owner="relay", setting="relay.http or --http")


def _say_ready(daemon: Relay, server: StatusServer | None, settings: Settings, service: Service) -> None:
    facts: dict[str, Any] = {
        "endpoints": list(daemon.outlets),
        "socket": str(settings.relay.socket),
        "http": server.address if server is not None else None,
    }
    shown = [f"{key}={','.join(value) if isinstance(value, list) else value}" for key, value in facts.items() if value]
    notice(f"ready {' '.join(shown)}", event="ready", **facts, reasons=daemon.reasons())
    service.ready(" ".join(shown))
