"""What `fedbus check config` says of the consumers that the configuration names: loads them as a hub does."""

from __future__ import annotations

import contextlib
import sys

from fedbus.bus import parse_since
from fedbus.clock import SystemClock
from fedbus.config.settings import Settings
from fedbus.errors import ConfigError, FedbusError, MessageError
from fedbus.hub.enabled import Enabled
from fedbus.hub.registry import load_configured
from fedbus.hub.roster import discard
from fedbus.model.topic import TopicFilter


def problems_of_consumers(settings: Settings) -> list[str]:
    """Return why a hub could not run the enabled consumers, each with its file and line.

    They are loaded and made, those with a process of their own in one; none is started, so none gets a message.
    """
    problems: list[str] = []
    for wanted in settings.consumers.values():
        if not wanted.enabled:
            continue
        try:
            # what code prints while it is imported must not stand between the lines of a report
            with contextlib.redirect_stdout(sys.stderr):
                loaded = load_configured(
                    wanted, folder=settings.hub.folder, since=None, origins=settings.origins, limits=settings.limits
                )
        except ConfigError as error:
            problems += error.problems
        except FedbusError as error:
            problems.append(f"{wanted.origin}: consumer {wanted.name!r}: {error}")
        else:
            discard(loaded)
            problems += _of_what_it_declares(loaded, settings)
    return problems


def _of_what_it_declares(loaded: Enabled, settings: Settings) -> list[str]:
    """Return what is wrong with the topics and the beginning that stand in its code, where no schema saw them."""
    where = f"{loaded.origin}: consumer {loaded.name!r}"
    problems = []
    for topic in loaded.topics:
        try:
            TopicFilter.parse(topic, settings.naming)
        except MessageError as error:
            problems.append(f"{where}: topics: {error}")
    try:
        parse_since(loaded.since, SystemClock())
    except ValueError as error:
        problems.append(f"{where}: since: {error}")
    return problems
