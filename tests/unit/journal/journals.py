"""Batches whose bytes follow from their sequence, so that any reader can tell a wrong one; and reading all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedbus.clock import ManualClock
from fedbus.journal.journal import Journal, JournalOptions, JournalReader, Record, SyncPolicy, split_records

ENDPOINT = "koji.build01"
TOPICS = ("org.example.dev.koji.build.start", "org.example.dev.koji.build.complete", "org.example.dev.koji.tag.add")


def payload(topic: str, first: int, part: int, extra: int = 40) -> bytes:
    return topic.encode() + b"\0" + f"{first}/{part}".encode() + b"." * extra


def batch_at(first: int, extra: int = 40) -> tuple[list[tuple[int, str, bytes]], int]:
    """The batch that begins with *first*, always the same: its records, and how many messages it has."""
    counts = [1 + (first + part) % 3 for part in range(1 + first % 4)]
    topics = [TOPICS[(first + part) % 3] for part in range(len(counts))]
    records = [
        (count, topic, payload(topic, first, part, extra))
        for part, (count, topic) in enumerate(zip(counts, topics, strict=True))
    ]
    return records, sum(counts)


def append_one(journal: Journal, *, time_ms: int | None = None, extra: int = 40, **more: Any) -> int:
    """Append the batch that comes next and return its last sequence."""
    first = journal.head + 1
    records, size = batch_at(first, extra)
    journal.append(records, first=first, size=size, time_ms=first if time_ms is None else time_ms, **more)
    return first + size - 1


def options(directory: Path, **more: Any) -> JournalOptions:
    values: dict[str, Any] = {"directory": directory, "sync": SyncPolicy.ASYNC, "retain_bytes": 0, "retain_age": 0.0}
    return JournalOptions(**{**values, **more})


def open_journal(directory: Path, **more: Any) -> Journal:
    return Journal.open(options(directory, **more), endpoint=ENDPOINT, clock=ManualClock())


def read_all(
    journal: Journal | JournalReader, after: int = 0, budget: int = 700, **more: Any
) -> tuple[list[Record], list[tuple[int, int]]]:
    """Every record after *after* and every loss that was reported on the way."""
    records: list[Record] = []
    lost: list[tuple[int, int]] = []
    while True:
        part = journal.read(after, budget, **more)
        records += split_records(part.data)
        lost += part.lost
        if part.end:
            return records, lost
        assert part.through > after, "a read has to get on"
        after = part.through


def check_records(records: list[Record], lost: list[tuple[int, int]], head: int, start: int = 1) -> None:
    """Everything from *start* to *head* is there byte for byte or reported as lost, each once and in order."""
    expected = start
    losses = iter([*lost, (head + 1, head)])
    gap = next(losses)
    at = 0
    while expected <= head:
        if expected == gap[0]:
            expected = gap[1] + 1
            gap = next(losses)
            continue
        wanted, size = batch_at(expected, len(records[at].payload) - len(payload(records[at].topic, expected, 0, 0)))
        found = records[at : at + len(wanted)]
        assert [(r.first, r.size, r.count, r.topic, r.payload) for r in found] == [
            (expected, size, *record) for record in wanted
        ]
        at += len(wanted)
        expected += size
    assert at == len(records)


def files_of(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.journal"))
