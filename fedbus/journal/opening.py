"""What a journal finds when it is opened: whose it is, which files belong to it, and where its sound part ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import uuid_utils

from fedbus.errors import JournalError, JournalLocked
from fedbus.journal.index import Index
from fedbus.journal.reading import Segment
from fedbus.journal.segment import (
    OpenFile,
    claimed_batch,
    decode_fixed,
    decode_header,
    header_end,
    make_directory,
    read_header,
    read_start,
    read_whole,
    survey,
    write_atomically,
)

log = logging.getLogger(__name__)


def lock(directory: Path, endpoint: str) -> int:
    """Make *directory* if need be, and become the only writer there; the descriptor that holds the lock.

    Raises:
        JournalLocked: Another process is.
    """
    make_directory(directory)
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        holder = f"process {pid}" if pid.isdigit() else "another process"
        raise JournalLocked(
            f"the journal of endpoint {endpoint!r} in {directory} is open in {holder}; "
            f"an endpoint has one publisher: stop that one, or publish as another endpoint"
        ) from None
    except BaseException:
        os.close(fd)
        raise
    with contextlib.suppress(OSError):  # the number is only for people; a full disk must not matter
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def read_identity(directory: Path) -> tuple[str, str] | None:
    """Endpoint and epoch from ``journal.json``, None when it is missing or damaged."""
    try:
        values = json.loads((directory / "journal.json").read_bytes())
        endpoint, epoch, form = values["endpoint"], values["epoch"], values["format"]
        if isinstance(form, int) and form > 1:
            raise JournalError(
                f"the journal in {directory} has format {form}, this release reads 1: use the release that wrote it"
            )
        if not isinstance(endpoint, str) or str(uuid.UUID(epoch)) != epoch:
            return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return endpoint, epoch


def identity_from(segments: list[Segment]) -> tuple[str, str] | None:
    """Endpoint and epoch from the newest segment whose header is sound."""
    for segment in reversed(segments):
        header = read_header(segment.path)
        if header is not None:
            return header.endpoint, header.epoch
    return None


def write_identity(directory: Path, endpoint: str, epoch: str) -> None:
    """Say in ``journal.json`` whose journal this is."""
    text = json.dumps({"format": 1, "endpoint": endpoint, "epoch": epoch}) + "\n"
    write_atomically(directory / "journal.json", text.encode())


def own_segments(segments: list[Segment], epoch: str) -> list[Segment]:
    """Those of *segments* that are of this epoch or too damaged to tell; the others are set aside."""
    ours: list[Segment] = []
    others: list[Segment] = []
    for segment in segments:
        fixed = decode_fixed(read_start(segment.path))
        (others if fixed is not None and fixed.epoch != epoch else ours).append(segment)
    set_aside(others, "of another epoch")
    return ours


def set_aside(segments: list[Segment], why: str) -> None:
    """Rename *segments*, so that nobody reads them and nothing is lost."""
    for segment in segments:
        aside = segment.path.with_suffix(f".{uuid_utils.uuid7()}.aside")
        log.error("%s is a segment %s; renamed to %s", segment.path, why, aside.name)
        segment.path.rename(aside)


def read_token(directory: Path) -> int:
    """The highest fencing token that has written here; 0 when none has."""
    try:
        return int((directory / "token").read_text())
    except (OSError, ValueError):
        return 0


def heads_before(segments: list[Segment]) -> dict[str, int]:
    """Each topic's last sequence before the last of *segments*.

    Its header says so. Where that is damaged, an older one and the records since then do; where none is sound, what
    retention has removed stays unknown.
    """
    heads: dict[str, int] = {}
    sound = len(segments) - 1
    while sound > 0 and read_header(segments[sound].path) is None:
        sound -= 1
    header = read_header(segments[sound].path)
    if header is not None:
        heads.update(header.heads)
    for number in range(sound, len(segments) - 1):
        data = read_whole(segments[number].path)
        ceiling = segments[number + 1].base - 1
        for batch in survey(data, header_end(data), segments[number].base, ceiling):
            for part in batch.parts:
                heads[part.topic.decode("utf-8", "replace")] = part.last
    return heads


@dataclass(frozen=True, slots=True)
class Found:
    """What the newest segment holds: its sound part, and what is wrong with the rest."""

    file: OpenFile
    index: Index  # of the batches that are sound
    size: int  # bytes of the file
    last: int  # the last sequence that may have been given out
    sound: bool  # nothing is damaged; at most the last batch is torn
    hollow: bool  # nothing in it can be read
    vanished: bool  # there were more messages, and nobody can say how many


def look_into(active: Segment) -> Found:
    """Read the newest segment through."""
    file = OpenFile(active.path, os.O_RDWR | os.O_APPEND)
    data = file.read(0, file.size())
    header = decode_header(data)
    index = Index(active.base, header_end(data))
    fixed = decode_fixed(data)
    sound = header is not None
    for batch in survey(data, index.offsets[0], active.base):
        if (batch.start, batch.first - 1) != index.tip:
            sound = False
        index.add_batch(batch)
    end, last = index.tip
    claimed = claimed_batch(data, end, last + 1) if end < len(data) else 0
    if claimed:
        # all there, but not as it was written: it may have been acknowledged, so its numbers are spent
        sound = False
        last += claimed
    hollow = not sound and last < active.base  # a header is synced before its file gets its name: no tear does this
    vanished = (sound and active.sidecar(".index").exists()) or (
        hollow and (fixed is None or fixed.data_start != len(data))
    )
    return Found(file, index, len(data), last, sound, hollow, vanished)
