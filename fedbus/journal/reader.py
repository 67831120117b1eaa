"""A journal as those see it who do not write it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Self

from fedbus.errors import JournalError
from fedbus.journal.index import Index
from fedbus.journal.opening import heads_before, identity_from, read_identity
from fedbus.journal.reading import Reading, Segment
from fedbus.journal.segment import HEADER, NO_CEILING, RECORD, decode_fixed, list_segments, read_start, survey


class JournalReader(Reading):
    """A read-only view of a journal that a process may be writing right now, or has left behind; changes nothing."""

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Look at the journal in *directory* as it is now.

        Raises:
            JournalError: There is no journal.
        """
        reader = cls(directory)
        identity = read_identity(directory)
        if identity is None:
            try:
                segments = [Segment.at(path) for path in list_segments(directory)]
            except OSError as error:
                raise JournalError(f"cannot read the journal in {directory}: {error.strerror}") from error
            identity = identity_from(segments)
        if identity is None:
            raise JournalError(f"there is no journal in {directory}; its publisher creates it when it first starts")
        reader.endpoint, reader.epoch = identity
        reader.refresh()
        return reader

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refresh(self) -> bool:
        """Take in what was appended or removed since; whether there is anything new to read. One thread at a time.

        Raises:
            JournalError: The folder has gone or cannot be read.
        """
        before = self.head
        try:
            paths = list_segments(self.directory)
        except OSError as error:
            raise JournalError(f"cannot read the journal in {self.directory}: {error.strerror}") from error
        known = {segment.base: segment for segment in self._segments}
        fresh: list[Segment] = []
        for path in paths:
            segment = known.get(int(path.name[:20])) or Segment.at(path)
            fixed = decode_fixed(read_start(path))
            if fixed is None or fixed.epoch == self.epoch:
                fresh.append(segment)
        if not fresh:
            return False
        if not self._segments:
            self.heads = heads_before(fresh)
        # everything from the segment that was the last one so far: its end was not known yet
        at = max((number for number, segment in enumerate(fresh) if segment.base in known), default=len(fresh) - 1)
        for number in range(at, len(fresh)):
            ceiling = fresh[number + 1].base - 1 if number + 1 < len(fresh) else NO_CEILING
            with contextlib.suppress(FileNotFoundError):
                self._follow(fresh[number], ceiling)
        last = fresh[-1].index
        self._segments = tuple(fresh)
        self.head = max(self.head, last.tip[1] if last is not None else fresh[-1].base - 1)
        return self.head > before

    def _follow(self, segment: Segment, ceiling: int) -> None:
        """Read on in *segment* from where its index ends."""
        file = self._open(segment.path)
        size = file.size()
        if segment.index is None:
            fixed = decode_fixed(file.read(0, HEADER.size))
            sound = fixed is not None and fixed.data_start <= size
            segment.index = Index(segment.base, fixed.data_start if fixed is not None and sound else HEADER.size)
        index = segment.index
        end, last = index.tip
        at, newest = segment.newest
        if size < HEADER.size:
            return
        if size < end or file.read(at, len(newest)) != newest:
            # the writer took back a batch that it could not sync, and may have put another in its place
            segment.index, segment.newest = None, (0, b"")
            self._bookmarks.clear()
            self._follow(segment, ceiling)
            return
        data = file.read(end, size - end)
        for batch in survey(data, 0, last + 1, ceiling):
            block = len(index.times) - 1
            hole = (batch.start + end, batch.first - 1) != index.tip
            batch = batch._replace(start=batch.start + end, end=batch.end + end)
            index.add_batch(batch)
            segment.newest = (batch.start, data[batch.start - end : batch.start - end + RECORD.size])
            if hole:
                index.checked[block] = index.checked[-1] = 0
                index.whole = False
            for part in batch.parts:
                self.heads[part.topic.decode("utf-8", "replace")] = part.last

    def close(self) -> None:
        """Close the files."""
        self._files.drop()
