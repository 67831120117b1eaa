"""What a running `fedbus tail` does about SIGHUP and the end of its terminal, and says about changed endpoints."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedbus.cli.common import notice
from fedbus.cli.signals import Noted

if TYPE_CHECKING:
    from fedbus.config.discovery import Change, Discovery

_STDOUT = 1
LOOK_SECONDS = 2.0  # between two looks at the terminals
_OF_OTHERS = frozenset({"publisher", "hub", "consumers", "log"})  # sections that mean nothing to a tail


class Follower:
    """Passes SIGHUP on to *discovery*, and tells on stderr what that has taken up or refused.

    The subscriber itself asks *discovery* for changes while it receives. With *only*, changes of other endpoints are
    not told. *hangup* is SIGHUP, which has the files read even where they look the same. Where *quiet*, only a refusal
    is told.
    """

    def __init__(
        self, discovery: Discovery, hangup: Noted, *, now: float, only: Iterable[str] = (), quiet: bool = False
    ) -> None:
        self._discovery = discovery
        self._hangup = hangup
        self._only = frozenset(only)
        self._quiet = quiet
        self._look_at = now + LOOK_SECONDS
        self._terminals = [number for number in range(3) if os.isatty(number)]
        discovery.listener = self

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
        if forced:
            self._discovery.look(forced=True)
        return True

    def changed(self, change: Change) -> None:
        if self._quiet:
            return
        words = change.endpoints(self._only)
        if change.cause == "DNS":
            if words != "the same":
                notice(f"endpoints by DNS: {words}")
            return
        again = " and can be used" if change.mended else ""
        more = "".join(f"; {section} changed" for section in change.taken)
        notice(f"the configuration was read again{again}; endpoints: {words}{more}")
        if waiting := [section for section in change.waiting if section not in _OF_OTHERS]:
            notice(f"changed, and in force only after a restart: {', '.join(waiting)}")

    def refused(self, text: str) -> None:
        notice(f"the changed configuration is refused as a whole, the old one stays in force: {text}")
