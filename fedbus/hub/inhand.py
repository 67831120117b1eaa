"""Which message a consumer has in hand, in a small file that outlives a process that is killed or crashes.

Writing to a file for each message would cost more than most consumers do with it. Memory that is mapped from a file is
as quick as any other, and what stands in it stays when the process ends, however it ends. So the next hub learns which
message the last one died with, and a message that takes the hub down with it is not tried for ever.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

from fedbus.errors import JournalError
from fedbus.journal.segment import make_directory
from fedbus.model.message import MessageKey

_BYTES = 1024
_SEQUENCE = struct.Struct("<Q")
_LENGTH = struct.Struct("<H")
_NAMES = _SEQUENCE.size + _LENGTH.size
REQUEUED = 1 << 63  # set in the sequence of a dead letter that was requeued


class InHand:
    """The note of one consumer, for one thread. ``slot[0]`` is the sequence in hand, 0 for none.

    The page belongs to the kernel: a process that is killed loses nothing of it; a machine that loses power may, and
    then only a message that might have been counted as tried is not.
    """

    def __init__(self, path: Path) -> None:
        """Open the note at *path* with mode 0600; make it where it is missing.

        Raises:
            JournalError: It cannot be opened.
        """
        self.path = path
        try:
            make_directory(path.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                if os.fstat(descriptor).st_size < _BYTES:
                    os.posix_fallocate(descriptor, 0, _BYTES)  # a page without a place on the disk would kill us
                self._map = mmap.mmap(descriptor, _BYTES)
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            raise JournalError(f"cannot open {path}: {error}; check the disk, and the mode of its folder") from error
        self.slot = memoryview(self._map)[: _SEQUENCE.size].cast("Q")
        self._stream = ("", "")

    def left(self) -> tuple[MessageKey, bool] | None:
        """Return what the last process had in hand when it ended, and whether that was a requeued dead letter."""
        sequence = self.slot[0]
        if not sequence:
            return None
        (length,) = _LENGTH.unpack_from(self._map, _SEQUENCE.size)
        try:
            endpoint, epoch = self._map[_NAMES : _NAMES + length].decode("ascii").split("\0")
        except ValueError:
            return None  # torn, or none of ours
        return MessageKey(endpoint, epoch, sequence & (REQUEUED - 1)), bool(sequence & REQUEUED)

    def stream(self, endpoint: str, epoch: str) -> None:
        """What is in hand from now on is of this stream."""
        if (endpoint, epoch) == self._stream:
            return
        self._stream = (endpoint, epoch)
        self.slot[0] = 0
        names = f"{endpoint}\0{epoch}".encode("ascii")
        self._map[_SEQUENCE.size : _NAMES + len(names)] = _LENGTH.pack(len(names)) + names

    def close(self) -> None:
        """Let go of it; nothing is in hand."""
        self.slot[0] = 0
        self.slot.release()
        self._map.close()
