"""Lets the disk work on one batch while the next is being sealed."""

from __future__ import annotations

import queue
import threading

from fedbus.journal.journal import Journal
from fedbus.transport.batch import SealedBatch


class Committer:
    """Appends batches to the journal, in a thread of its own where that gains time.

    The journal is used by one thread at a time: whoever called :meth:`begin` calls :meth:`settle` before touching it.
    """

    def __init__(self, journal: Journal, name: str) -> None:
        self._journal = journal
        self._name = name
        self._thread: threading.Thread | None = None
        self._tasks: queue.SimpleQueue[SealedBatch | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._batch: SealedBatch | None = None

    @property
    def batch(self) -> SealedBatch | None:
        """The batch that was begun and not settled."""
        return self._batch

    def append(self, batch: SealedBatch) -> None:
        """Append *batch* now, in this thread.

        Raises:
            JournalError: It was refused, and the journal is as before.
        """
        self._journal.append(batch.parcels, first=batch.first, size=len(batch.messages), time_ms=batch.time_ms)

    def begin(self, batch: SealedBatch) -> None:
        """Start to append *batch*; nothing may be under way."""
        assert self._batch is None
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"{self._name}-journal", daemon=True)
            self._thread.start()
        self._batch = batch
        self._tasks.put(batch)

    def settle(self) -> tuple[SealedBatch, BaseException | None]:
        """Wait for the batch under way; return it, and why it was refused if it was."""
        batch = self._batch
        assert batch is not None
        error = self._results.get()
        self._batch = None
        return batch, error

    def close(self) -> None:
        """End the thread; nothing may be under way."""
        if self._thread is not None:
            self._tasks.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while True:
            batch = self._tasks.get()
            if batch is None:
                return
            try:
                self.append(batch)
            except BaseException as error:  # whatever it is belongs to the thread that settles
                self._results.put(error)
            else:
                self._results.put(None)
