"""How a running `fedbus tail` takes up changed endpoints; what else has changed waits for its next start."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedbus.cli.common import notice, take_up_endpoints, waiting_for_restart
from fedbus.cli.signals import Noted
from fedbus.errors import ConfigError

if TYPE_CHECKING:
    from fedbus.bus import Bus
    from fedbus.config.settings import ConfigWatcher, Settings
    from fedbus.transport.endpoint import Endpoint
    from fedbus.transport.subscriber import Subscriber

_STDOUT = 1
LOOK_SECONDS = 2.0  # between two looks at the files, which are stats only
_NEEDS_RESTART = ("naming", "environment", "state", "keyring", "policy", "limits", "subscriber")


class Follower:
    """Keeps the endpoints of *subscriber* in step with the files that *watcher* looks at.

    With *only*, no other endpoints than these are read, whatever the files say. *hangup* is SIGHUP, which has the files
    read even where they look the same. Where *quiet*, only a refusal is told.
    """

    def __init__(
        self,
        watcher: ConfigWatcher,
        bus: Bus,
        subscriber: Subscriber,
        hangup: Noted,
        *,
        now: float,
        only: Iterable[str] = (),
        quiet: bool = False,
    ) -> None:
        self._watcher = watcher
        self._bus = bus
        self._subscriber = subscriber
        self._hangup = hangup
        self._only = frozenset(only)
        self._quiet = quiet
        self._refused = False
        self._look_at = now + LOOK_SECONDS
        self._terminals = [number for number in range(3) if os.isatty(number)]

    def look(self, now: float) -> bool:
        """Do what is due at *now*, monotonic; return False when the terminal that we belonged to is gone."""
        forced = self._hangup.take()
        if not forced and now < self._look_at:
            return True
        self._look_at = now + LOOK_SECONDS
        # SIGHUP is how a terminal says goodbye too; without one only its end as our output counts: a job that was
        # disowned goes on without the terminal that it was started from
        if any(not os.isatty(number) for number in self._terminals if forced or number == _STDOUT):
            return False
        if forced or self._watcher.changed():
            self._read()
        return True

    def _read(self) -> None:
        before = self._watcher.settings
        try:
            after = self._watcher.reload()
        except ConfigError as error:
            self._refused = True
            notice(f"the changed configuration is refused as a whole, the old one stays in force: {error}")
            return
        was, wanted = self._chosen(before), self._chosen(after)
        take_up_endpoints(self._bus, after)
        self._subscriber.update(wanted.values())
        told = [
            f"{what} {', '.join(sorted(names))}"
            for what, names in (
                ("added", wanted.keys() - was.keys()),
                ("removed", was.keys() - wanted.keys()),
                ("moved", {name for name in wanted.keys() & was.keys() if _moved(was[name], wanted[name])}),
            )
            if names
        ]
        if not self._quiet:
            again = " and can be used" if self._refused else ""
            notice(f"the configuration was read again{again}; endpoints: {'; '.join(told) or 'the same'}")
            if waiting := waiting_for_restart(before, after, _NEEDS_RESTART):
                notice(f"changed, and in force only after a restart: {', '.join(waiting)}")
        self._refused = False

    def _chosen(self, settings: Settings) -> dict[str, Endpoint]:
        return {name: one for name, one in settings.endpoints.items() if not self._only or name in self._only}


def _moved(before: Endpoint, after: Endpoint) -> bool:
    return (before.publish, before.replay) != (after.publish, after.replay)
