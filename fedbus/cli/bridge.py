"""`fedbus bridge`: daemons that carry another bus into this one, and this one out to it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
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
from fedbus.errors import ConfigError, KeysError
from fedbus.fedmsg.bridge import Bridge
from fedbus.fedmsg.inward import Inward
from fedbus.fedmsg.metrics import of_bridge, of_fedmsg_publishers, of_feeds
from fedbus.fedmsg.options import BridgeOptions
from fedbus.fedmsg.outward import Outward
from fedbus.fedmsg.topics import Mapping
from fedbus.monitor.http import StatusServer, daemon_pages
from fedbus.monitor.text import Family
from fedbus.transport.endpoint import Endpoint
from fedbus.transport.metrics import of_links, of_publishers, of_subscribers

log = logging.getLogger(__name__)

_LIVE_SECONDS = 30.0  # after which a bridge whose threads do not come round counts as hanging
_NEEDS_RESTART = ("naming", "environment", "keyring", "keys", "state", "limits", "publisher", "links", "fedmsg")

_EXAMPLES = examples(
    "fedbus bridge fedmsg                                        what bridge.fedmsg of the configuration says",
    "fedbus bridge fedmsg --endpoint fedmsg.bridge01             bring fedmsg into the journal of this endpoint",
    "fedbus bridge fedmsg --publish fedmsg.out01 --topic koji    send what koji says out to readers of fedmsg",
)


@click.group("bridge", epilog=examples("fedbus bridge fedmsg --http 127.0.0.1:9143"))
def bridge() -> None:
    """Carry another bus into this one, and this one out to it, while a site moves service by service."""


@bridge.command("fedmsg", epilog=_EXAMPLES)
@click.option(
    "--endpoint",
    metavar="NAME",
    shell_complete=complete_endpoint,
    help="In whose journal messages of fedmsg are kept; the policy must let it speak for their services.",
)
@click.option(
    "--publish",
    metavar="NAME",
    shell_complete=complete_endpoint,
    help="The endpoint, marked `wire: fedmsg`, on which our messages go out.",
)
@click.option(
    "--from",
    "names",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_endpoint,
    help="Read this endpoint; may be repeated. Otherwise all that are marked `wire: fedmsg`.",
)
@click.option(
    "--topic", "topics", multiple=True, metavar="FILTER", help="Carry out only what this chooses; may be repeated."
)
@click.option("--http", callback=http_address, metavar="HOST:PORT", help="Serve /live, /ready and /metrics there.")
@click.option("--seconds", type=click.FloatRange(0.0, 1e9), metavar="S", help="Stop after so many seconds.")
@click.pass_context
def fedmsg(
    ctx: click.Context,
    endpoint: str | None,
    publish: str | None,
    names: tuple[str, ...],
    topics: tuple[str, ...],
    http: str | None,
    seconds: float | None,
) -> int:
    """Carry a fedmsg bus into fedbus, and fedbus out to it.

    Messages of fedmsg are validated, get a place in the journal of --endpoint, and are read from there like any other,
    each once by its id. What our own endpoints publish goes out on --publish, signed as fedmsg signs. Options win over
    bridge.fedmsg of the configuration; one of the two directions is enough.

    SIGTERM brings what was read into the journal and ends with exit code 0, a second one ends at once; SIGHUP has the
    configuration read again.
    """
    with Service() as service:
        watcher = ConfigWatcher((ctx.obj or {}).get("config"))
        settings = watcher.settings
        set_up_logs(ctx.obj or {}, level=settings.log.level, form=settings.log.format, daemon=True)
        given: dict[str, Any] = {
            "endpoint": endpoint,
            "publish": publish,
            "endpoints": names,
            "topics": topics,
            "http": http,
        }
        options = replace(settings.bridge, **{key: value for key, value in given.items() if value})
        return _run(ctx.obj or {}, service, watcher, options, seconds)


def chosen(settings: Settings, options: BridgeOptions) -> dict[str, Endpoint]:
    """Return the endpoints to read: those that are named, else all that speak fedmsg but the one to publish on.

    Raises:
        ConfigError: One that is named does not exist, or does not speak fedmsg.
    """
    if not options.endpoints:
        return {
            name: one for name, one in settings.endpoints.items() if one.wire == "fedmsg" and name != options.publish
        }
    found = {name: settings.endpoint(name) for name in options.endpoints}
    for name, one in found.items():
        if one.wire != "fedmsg":
            raise ConfigError(f"{one.origin}: endpoint {name!r} does not speak fedmsg, so there is nothing to carry in")
    return found


def _run(
    given: dict[str, Any], service: Service, watcher: ConfigWatcher, options: BridgeOptions, seconds: float | None
) -> int:
    settings = watcher.settings
    if not options.endpoint and not options.publish:
        raise ConfigError(
            f"{settings.directory}: nothing says what to carry: name bridge.fedmsg.endpoint, in whose journal fedmsg "
            "goes, or bridge.fedmsg.publish, on which our messages go out"
        )
    with Bus(settings) as bus:
        opened = open_bridge(bus, options, watch=_Watch(watcher, bus, options))
        server = _server(opened, bus, options.http) if options.http is not None else None
        with service.of(
            stop=opened.stop,
            reload=opened.reload,
            turned_at=lambda: opened.beat_at,
            reasons=opened.reasons,
            live=lambda: opened.live(_LIVE_SECONDS),
            drain_seconds=options.drain_timeout,
        ):
            try:
                if server is not None:
                    server.start()
                opened.run(
                    seconds=seconds,
                    on_ready=lambda: _say_ready(opened, server, options, service),
                )
            finally:
                if server is not None:
                    server.stop()
    return 0


def open_bridge(bus: Bus, options: BridgeOptions, *, watch: Any = None) -> Bridge:
    """Open the halves that *options* ask for.

    Raises:
        ConfigError, KeysError, BindError, JournalError: One cannot be opened.
    """
    settings = bus.settings
    clock = SystemClock()
    service = (options.endpoint or "fedmsg.bridge").partition(".")[0]
    mapping = Mapping(settings.naming, settings.fedmsg.root, service)
    inward: Inward | None = None
    outward: Outward | None = None
    if options.endpoint:
        endpoints = chosen(settings, options)
        if not endpoints:
            raise ConfigError(
                f"{settings.directory}: no endpoint is marked `wire: fedmsg`, so there is nothing to carry in; add the "
                "publishers, relays or gateways to read"
            )
        if settings.fedmsg.routing_nitpicky and not settings.fedmsg.routing_policy:
            raise KeysError(
                f"{settings.directory}: fedmsg.routing_policy lists no topic, so every message would be refused; list "
                "who may say what, or set fedmsg.routing_nitpicky to false"
            )
        publisher = bus.publisher(options.endpoint, direct=True)
        inward = Inward(
            lambda recent, ours: bus.fedmsg_feed(recent=recent, ours=ours),
            publisher,
            endpoints=endpoints.values(),
            known=lambda: bus.settings.endpoints,
            mapping=mapping,
            remember=settings.fedmsg.remember,
            clock=clock,
        )
    if options.publish:
        outward = Outward(
            lambda: bus.native_subscriber(options.topics, cursor=f"bridge-{options.publish}"),
            bus.fedmsg_publisher(options.publish, check_policy=False),
            mapping=mapping,
            settle=options.settle,
            clock=clock,
        )
    return Bridge(inward, outward, drain_timeout=options.drain_timeout, clock=clock, watch=watch)


class _Watch:
    """Gives the bridge the changed endpoints, and says what else it cannot take up while running."""

    def __init__(self, watcher: ConfigWatcher, bus: Bus, options: BridgeOptions) -> None:
        self._watcher = watcher
        self._bus = bus
        self._options = options

    def __call__(self, forced: bool) -> Iterable[Endpoint] | None:
        if not forced and not self._watcher.changed():
            return None
        before = self._watcher.settings
        try:
            after = self._watcher.reload()
        except ConfigError as error:
            log.error("the configuration stays as it was: %s", error)
            raise
        endpoints = chosen(after, self._options)
        take_up_endpoints(self._bus, after)
        changed = waiting_for_restart(before, after, (*_NEEDS_RESTART, "policy", "bridge"))
        if changed:
            log.warning("changed, and in force only after a restart of the bridge: %s", ", ".join(changed))
        return endpoints.values()


def _server(opened: Bridge, bus: Bus, address: str) -> StatusServer:
    begun = SystemClock().monotonic()

    def families() -> list[Family]:
        now = SystemClock().monotonic()
        found = [*of_bridge(opened), *of_links(bus.links)]
        if opened.inward is not None:
            found += of_feeds([opened.inward.feed], now=now, since=begun)
            found += of_publishers(bus.publishers)
        if opened.outward is not None:
            found += of_fedmsg_publishers([opened.outward.publisher])
            found += of_subscribers([opened.outward.subscriber], now=now, since=begun)
        return found

    pages = daemon_pages(live=lambda: opened.live(_LIVE_SECONDS), reasons=opened.reasons, metrics=families)
    return StatusServer(address, pages, owner="bridge", setting="bridge.fedmsg.http or --http")


def _say_ready(opened: Bridge, server: StatusServer | None, options: BridgeOptions, service: Service) -> None:
    facts: dict[str, Any] = {
        "endpoint": options.endpoint or None,
        "publish": options.publish or None,
        "http": server.address if server is not None else None,
    }
    shown = " ".join(f"{key}={value}" for key, value in facts.items() if value)
    notice(f"ready {shown}", event="ready", **facts, reasons=opened.reasons())
    service.ready(shown)
