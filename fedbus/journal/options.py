"""What can be set about a journal; apart from it, so that `config` loads nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class SyncPolicy(StrEnum):
    """What an append that returned outlives besides the process."""

    ALWAYS = "always"  # a loss of power
    INTERVAL = "interval"  # a loss of power, ``sync_interval`` seconds later
    ASYNC = "async"  # only the process; the kernel writes when it likes


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalOptions:
    """Where the journal lives, how eagerly it syncs, and how much it keeps."""

    directory: Path
    sync: SyncPolicy = SyncPolicy.ALWAYS
    sync_interval: float = 0.05  # seconds that a loss of power may cost under INTERVAL
    segment_bytes: int = 64 * 2**20  # a closed segment is never written again
    retain_bytes: int = 2**30  # 0: no limit; the disk used is at most this and one segment more
    retain_age: float = 7 * 86400.0  # seconds; 0: no limit
    topics: int = 10_000  # distinct topics at most
    cached_bytes: int = 32 * 2**20  # of the newest part that stay in the page cache; 0: whatever the kernel keeps
