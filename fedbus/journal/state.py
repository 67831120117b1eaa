"""What can be said of a journal by looking at its folder, whoever writes it; changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedbus.errors import JournalError
from fedbus.journal.reader import JournalReader
from fedbus.journal.segment import list_segments


@dataclass(frozen=True, slots=True)
class JournalState:
    """One journal at one moment; times in milliseconds of wall time, None where there is no message."""

    endpoint: str
    directory: Path
    epoch: str
    start: int
    head: int
    messages: int
    bytes: int  # on the disk, indexes and what was set aside included
    segments: int
    oldest_ms: int | None
    newest_ms: int | None
    damaged: tuple[str, ...]  # what was noted about damage: file, and the part of it
    aside: tuple[str, ...]  # files that nothing reads any more
    writing: bool | None  # whether a process has it open for writing; None where the kernel does not tell


def look(directory: Path, locked: frozenset[int] | None) -> JournalState:
    """Look at the journal in *directory*; *locked* is what :func:`locked_inodes` returned.

    Raises:
        JournalError: There is none, or it cannot be read.
    """
    with JournalReader.open(directory) as reader:
        damaged: list[str] = []
        aside: list[str] = []
        size = 0
        segments = 0
        try:
            for path in sorted(directory.iterdir()):
                with contextlib.suppress(FileNotFoundError):  # retention takes files away meanwhile
                    size += path.stat().st_size
                    if path.suffix == ".damaged":
                        notes = path.read_text("utf-8", "replace").splitlines()
                        damaged += [f"{path.stem}.journal: {note}" for note in notes if note]
                    elif path.suffix == ".aside":
                        aside.append(path.name)
            segments = len(list_segments(directory))
        except OSError as error:
            raise JournalError(f"cannot read the journal in {directory}: {error.strerror}") from error
        oldest, newest = reader.span()
        return JournalState(
            reader.endpoint,
            directory,
            reader.epoch,
            reader.start,
            reader.head,
            reader.count(),
            size,
            segments,
            oldest,
            newest,
            tuple(damaged),
            tuple(aside),
            is_locked(directory, locked),
        )


def journals_in(folders: Iterable[Path]) -> list[Path]:
    """Those of *folders* that hold a journal, or what is left of one."""
    found = []
    for folder in folders:
        with contextlib.suppress(OSError):
            if (folder / "journal.json").exists() or list_segments(folder):
                found.append(folder)
    return found


def locked_inodes() -> frozenset[int] | None:
    """The inodes of all files that processes hold an flock on; None where the kernel does not say.

    To try the lock ourselves would be simpler, and would refuse a publisher that opens at that moment.
    """
    try:
        lines = Path("/proc/locks").read_text("ascii").splitlines()
    except OSError:
        return None
    # 1: FLOCK  ADVISORY  WRITE 3072 08:01:7602200 0 EOF; proc(5)
    return frozenset(int(fields[5].rpartition(":")[2]) for line in lines if (fields := line.split())[1] == "FLOCK")


def is_locked(directory: Path, locked: frozenset[int] | None) -> bool | None:
    """Whether a process has the journal in *directory* open for writing; None when that cannot be told."""
    if locked is None:
        return None
    try:
        return (directory / "lock").stat().st_ino in locked
    except FileNotFoundError:
        return False  # nobody has published here yet
    except OSError:
        return None
