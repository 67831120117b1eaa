"""Rows of a history on their way out: what of them can be read and verified, and what is told of the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedbus.cli.common import notice
from fedbus.cli.history_options import TRUST, verifier_of

if TYPE_CHECKING:
    from fedbus.config.settings import Settings
    from fedbus.history.stored import StoredMessage
    from fedbus.history.verify import SealCheck
    from fedbus.model.message import Message

SHOWN = 50  # rows that are named on stderr; the others are counted


class Doubts:
    """Counts and names what could not be read or verified."""

    def __init__(self, quiet: bool = False) -> None:
        self.unreadable = 0
        self.refused = 0
        self.unverifiable = 0
        self.good = 0
        self.named: list[dict[str, Any]] = []
        self._quiet = quiet

    def note(self, stored: StoredMessage, kind: str, text: str) -> None:
        """Name a row, on stderr."""
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.named) < SHOWN:
            self.named.append({"row": stored.where, "key": str(stored.key), "topic": stored.topic, "fault": text})
            if not self._quiet:
                notice(f"{stored.where} ({stored.key} {stored.topic}): {text}")

    @property
    def total(self) -> int:
        """How many there are."""
        return self.unreadable + self.refused + self.unverifiable

    def finish(self) -> int:
        """Tell how many were not named; return the exit code."""
        if self.total > len(self.named) and not self._quiet:
            notice(f"and {self.total - len(self.named)} more")
        if self.refused or self.unverifiable:
            return TRUST
        return 1 if self.unreadable else 0


def seal_check(settings: Settings) -> SealCheck:
    from fedbus.fedmsg.validator import Validator
    from fedbus.history.verify import SealCheck

    fedmsg = settings.fedmsg
    return SealCheck(verifier_of(settings), (lambda: Validator(fedmsg)) if Path(fedmsg.ca).exists() else None)


def message_of(stored: StoredMessage, check: SealCheck | None, doubts: Doubts) -> Message | None:
    """Return the message of a row; None for one that cannot be read, or that does not verify where that is asked."""
    from fedbus.errors import WireError
    from fedbus.history.verify import State

    if check is not None:
        verdict = check.check(stored)
        if verdict.state is not State.GOOD:
            doubts.note(stored, "refused" if verdict.state is State.REFUSED else "unverifiable", str(verdict))
            return None
        doubts.good += 1
    try:
        return stored.message()
    except WireError as error:
        doubts.note(stored, "unreadable", f"cannot be read: {error}; `fedbus history verify` says more")
        return None


verify_option = click.option(
    "--verify", is_flag=True, help="Check each seal first; show nothing that does not verify, and end with code 4 then."
)
