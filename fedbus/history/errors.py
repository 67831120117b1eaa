"""What can go wrong with a history, branched by what helps."""

from __future__ import annotations

from fedbus.errors import ConnectError, FedbusError


class HistoryError(FedbusError):
    """The history cannot be opened, read or written; the text says where, why and what to do."""


class HistoryUnavailable(HistoryError):
    """Not now: the database is busy, restarting, full or away. The same call may be made again; nothing was kept."""


class HistoryUnreachable(HistoryUnavailable, ConnectError):
    """The server of the history does not answer, or does not let us in."""


class HistoryDamaged(HistoryError):
    """What is stored is not what was written; ``where`` names the file or table."""

    def __init__(self, text: str, *, where: str) -> None:
        super().__init__(text)
        self.where = where
