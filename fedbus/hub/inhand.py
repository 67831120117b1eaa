"""Which messages a consumer has in hand, in a small file that outlives a process that is killed or crashes.

Writing to a file for each message would cost more than most consumers do with it. Memory that is mapped from a file is
as quick as any other, and what stands in it stays when the process ends, however it ends. So the next hub learns which
message the last one died with, and a message that takes the hub down with it is not tried for ever.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedbus.errors import JournalError
from fedbus.journal.segment import make_directory
from fedbus.model.message import Message, MessageKey

_BYTES = 1024
_BATCH_BYTES = 256 * 2**10  # some ten thousand messages; what does not fit is not counted as tried
_SEQUENCE = struct.Struct("<Q")
_LENGTH = struct.Struct("<H")
_NAMES = _SEQUENCE.size + _LENGTH.size
_LIST = struct.Struct("<I")
REQUEUED = 1 << 63  # set in the sequence of a dead letter that was requeued
_SEVERAL = 1 << 62  # in place of a sequence: the list behind the names is a batch


@dataclass(frozen=True, slots=True)
class Left:
    """What the last process had in hand when it ended: one message, perhaps a requeued dead letter, or a batch."""

    keys: tuple[MessageKey, ...]
    requeued: bool = False


class InHand:
    """The note of one worker, for one thread. ``slot[0]`` is the sequence in hand, 0 for none.

    The pages belong to the kernel: a process that is killed loses nothing of them; a machine that loses power may, and
    then only a message that might have been counted as tried is not.
    """

    def __init__(self, path: Path, *, batches: bool = False) -> None:
        """Open the note at *path* with mode 0600; make it where it is missing. *batches*: with room for these.

        Raises:
            JournalError: It cannot be opened.
        """
        self.path = path
        try:
            make_directory(path.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                size = max(os.fstat(descriptor).st_size, _BYTES + _BATCH_BYTES if batches else _BYTES)
                if os.fstat(descriptor).st_size < size:
                    os.posix_fallocate(descriptor, 0, size)  # a page without a place on the disk would kill us
                self._map = mmap.mmap(descriptor, size)
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            raise JournalError(f"cannot open {path}: {error}; check the disk, and the mode of its folder") from error
        self.slot = memoryview(self._map)[: _SEQUENCE.size].cast("Q")
        self._stream = ("", "")

    def left(self) -> Left | None:
        """Return what the last process had in hand when it ended."""
        sequence = self.slot[0]
        if not sequence:
            return None
        try:
            if sequence == _SEVERAL:
                (length,) = _LIST.unpack_from(self._map, _BYTES)
                rows = self._map[_BYTES + _LIST.size : _BYTES + _LIST.size + length].decode("ascii").split("\n")
                return Left(tuple(_key(*row.split("\0")) for row in rows))
            (length,) = _LENGTH.unpack_from(self._map, _SEQUENCE.size)
            endpoint, epoch = self._map[_NAMES : _NAMES + length].decode("ascii").split("\0")
        except (ValueError, TypeError, struct.error):
            return None  # torn, or none of ours
        return Left((MessageKey(endpoint, epoch, sequence & (_SEVERAL - 1)),), bool(sequence & REQUEUED))

    def stream(self, endpoint: str, epoch: str) -> None:
        """What is in hand from now on is of this stream."""
        if (endpoint, epoch) == self._stream:
            return
        self._stream = (endpoint, epoch)
        self.slot[0] = 0
        names = f"{endpoint}\0{epoch}".encode("ascii")
        self._map[_SEQUENCE.size : _NAMES + len(names)] = _LENGTH.pack(len(names)) + names

    def batch(self, messages: Sequence[Message]) -> None:
        """All *messages* are in hand."""
        self.slot[0] = 0
        space = len(self._map) - _BYTES - _LIST.size
        data = "\n".join(f"{one.endpoint}\0{one.epoch}\0{one.sequence}" for one in messages).encode("ascii")
        if len(data) > space:
            data = data[: data.rindex(b"\n", 0, space)]
        self._map[_BYTES : _BYTES + _LIST.size + len(data)] = _LIST.pack(len(data)) + data
        self.slot[0] = _SEVERAL

    def close(self) -> None:
        """Let go of it; nothing is in hand."""
        self.slot[0] = 0
        self.slot.release()
        self._map.close()


def _key(endpoint: str, epoch: str, sequence: str) -> MessageKey:
    return MessageKey(endpoint, epoch, int(sequence))


def notes(folder: Path, consumer: str) -> list[Path]:
    """Return the notes that there are of *consumer*, one for each worker that it has had."""
    return sorted([*folder.glob(f"{consumer}.hand"), *folder.glob(f"{consumer}.*.hand")])


def note_of(folder: Path, consumer: str, worker: int) -> Path:
    """Return where the note of a *worker*, counted from 0, is."""
    return folder / (f"{consumer}.{worker}.hand" if worker else f"{consumer}.hand")
