"""Where batches stand in a segment: a sparse list of blocks, kept beside each closed segment and rebuilt when bad."""

from __future__ import annotations

import json
import struct
import zlib
from array import array
from bisect import bisect_left, bisect_right

from fedbus.journal.segment import Batch

BLOCK_BYTES = 64 * 2**10
MAGIC = b"FEDBUSX1"
# magic, crc of the rest, base, last sequence, end of the last batch in bytes, size of the file, blocks, length of JSON
HEAD = struct.Struct(">8sIQQQQII")


class Index:
    """The blocks of one segment, and its tip.

    A block is a run of whole batches of at least ``BLOCK_BYTES`` (the last one: fewer). ``firsts``, ``offsets`` and
    ``times`` hold for each block the sequence it begins with, its place in the file, and the latest wall time (ms) in
    it *or before it in this segment*; the running maximum keeps a clock that was set back from hiding anything.
    ``checked`` is 1 for a block whose checksums are known to agree and whose batches leave no hole.

    ``whole`` is False when it was rebuilt from a damaged file, so that ``topics`` may lack some.

    One thread adds; others may read at any time: lists only grow, ``times`` last, and ``tip`` is replaced whole after.
    """

    __slots__ = ("base", "checked", "firsts", "offsets", "times", "tip", "topics", "whole")

    def __init__(self, base: int, data_start: int) -> None:
        self.base = base
        self.firsts = array("Q", [base])
        self.offsets = array("Q", [data_start])
        self.times = array("Q", [0])
        self.checked = bytearray(b"\1")
        self.tip = (data_start, base - 1)  # end of the last batch in bytes, its last sequence
        self.topics: dict[str, int] = {}  # topic -> its last sequence in this segment
        self.whole = True

    def add(self, first: int, size: int, start: int, end: int, time_ms: int) -> None:
        """Note the batch at bytes *start* to *end*; its topics are the caller's to note."""
        newest = self.times[-1]
        if time_ms > newest:
            newest = time_ms
        if start - self.offsets[-1] >= BLOCK_BYTES:
            self.checked.append(1)
            self.offsets.append(start)
            self.firsts.append(first)
            self.times.append(newest)
        else:
            self.times[-1] = newest
        self.tip = (end, first + size - 1)

    def add_batch(self, batch: Batch) -> None:
        """Note a batch that was found in the file, with its topics."""
        self.add(batch.first, batch.size, batch.start, batch.end, batch.time_ms)
        for part in batch.parts:
            self.topics[part.topic.decode("utf-8", "replace")] = part.last

    def distrust(self) -> None:
        """Have every block checked again when it is next read."""
        self.checked = bytearray(len(self.checked))

    def block_of(self, sequence: int) -> int:
        """The number of the block that holds *sequence*."""
        return max(bisect_right(self.firsts, sequence) - 1, 0)

    def block_since(self, time_ms: int) -> int | None:
        """The first block that holds a batch stamped *time_ms* or later, None when there is none."""
        block = bisect_left(self.times, time_ms)
        return block if block < len(self.times) else None

    def encode(self, file_bytes: int) -> bytes:
        """The index as it is kept in a file."""
        extra = json.dumps(self.topics, separators=(",", ":")).encode()
        blocks = len(self.times)
        numbers = [*self.firsts[:blocks], *self.offsets[:blocks], *self.times]
        head = HEAD.pack(MAGIC, 0, self.base, self.tip[1], self.tip[0], file_bytes, blocks, len(extra))
        rest = head[12:] + struct.pack(f">{len(numbers)}Q", *numbers) + extra
        return MAGIC + zlib.crc32(rest).to_bytes(4, "big") + rest

    @classmethod
    def decode(cls, data: bytes, base: int, file_bytes: int) -> Index | None:
        """The index kept in *data*, or None when it is damaged or is not that of this segment at this size."""
        if len(data) < HEAD.size or zlib.crc32(memoryview(data)[12:]) != int.from_bytes(data[8:12], "big"):
            return None
        magic, _, kept_base, last, end, kept_bytes, blocks, length = HEAD.unpack_from(data)
        if magic != MAGIC or kept_base != base or kept_bytes != file_bytes or not blocks:
            return None
        if len(data) != HEAD.size + blocks * 24 + length:
            return None
        numbers = struct.unpack_from(f">{3 * blocks}Q", data, HEAD.size)
        index = cls(base, 0)
        index.firsts = array("Q", numbers[:blocks])
        index.offsets = array("Q", numbers[blocks : 2 * blocks])
        index.times = array("Q", numbers[2 * blocks :])
        index.checked = bytearray(blocks)
        index.tip = (end, last)
        try:
            index.topics = {str(topic): int(at) for topic, at in json.loads(data[len(data) - length :]).items()}
        except (ValueError, TypeError, AttributeError):
            return None
        return index
