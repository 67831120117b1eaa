"""Where a history is kept, and for how long."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fedbus.history.errors import HistoryError
from fedbus.history.places import PERIODS

_POSTGRES = re.compile(r"postgres(?:ql)?://", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryOptions:
    """``store`` is a folder (SQLite) or a ``postgresql://`` URL, which libpq understands, ``.pgpass`` included."""

    store: str
    period: str = "month"  # one of PERIODS: what one partition holds, and retention drops at once; of a new store
    keep: float = 0.0  # seconds that messages are kept at least; 0.0: for ever

    def __post_init__(self) -> None:
        if self.period not in PERIODS:
            raise HistoryError(f"history: the period {self.period!r} is none of {', '.join(PERIODS)}")
        if not 0.0 <= self.keep < float("inf"):
            raise HistoryError(f"history: keep is {self.keep!r}; a number of seconds is needed, 0 for ever")
        if not self.postgres and not self.store:
            raise HistoryError("history: no store is named; name a folder or a postgresql:// URL")

    @property
    def postgres(self) -> bool:
        """Whether it is in PostgreSQL."""
        return bool(_POSTGRES.match(self.store))

    @property
    def folder(self) -> Path:
        """The folder of a history in SQLite."""
        return Path(self.store).expanduser()

    @property
    def shown(self) -> str:
        """The store without a password, neither before the host nor behind the question mark."""
        if not self.postgres:
            return str(self.folder)
        return re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1…", re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:…@", self.store))
