"""The journal against a plain list, through any order of appends, reads, restarts, torn ends and retention."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fedbus.errors import JournalError
from fedbus.journal.journal import JournalReader, Record, SyncPolicy
from tests.unit.journal.journals import TOPICS, files_of, open_journal, read_all

records = st.lists(
    st.tuples(st.integers(1, 9), st.sampled_from(TOPICS), st.binary(max_size=300)), min_size=1, max_size=5
)


class JournalMachine(RuleBasedStateMachine):
    @initialize(sync=st.sampled_from(list(SyncPolicy)), segment_bytes=st.sampled_from([300, 2000, 10**6]))
    def begin(self, sync: SyncPolicy, segment_bytes: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="journal"))
        self.more = {"sync": sync, "segment_bytes": segment_bytes, "retain_bytes": 3000}
        self.journal = open_journal(self.folder, **self.more)
        self.reader = JournalReader.open(self.folder)
        self.model: list[Record] = []
        self.heads: dict[str, int] = {}
        self.stamps: list[tuple[int, int]] = []
        self.head = 0
        self.epoch = self.journal.epoch

    @rule(batch=records, time_ms=st.integers(0, 50))
    def append(self, batch: list[tuple[int, str, bytes]], time_ms: int) -> None:
        size = sum(count for count, _, _ in batch)
        full = [(count, topic, topic.encode() + b"\0" + rest) for count, topic, rest in batch]
        first = self.head + 1
        self.journal.append(full, first=first, size=size, time_ms=time_ms)
        for count, topic, payload in full:
            self.model.append(Record(first, size, count, topic, payload))
            self.head += count
            self.heads[topic] = self.head
        self.stamps.append((first, time_ms))

    @rule(batch=records)
    def refuse(self, batch: list[tuple[int, str, bytes]]) -> None:
        full = [(count, topic, topic.encode() + b"\0" + rest) for count, topic, rest in batch]
        with pytest.raises(JournalError):
            self.journal.append(full, first=self.head + 2, size=sum(count for count, _, _ in batch), time_ms=0)

    @rule(after=st.integers(0, 100), budget=st.integers(1, 4000), topics=st.none() | st.sets(st.sampled_from(TOPICS)))
    def read(self, after: int, budget: int, topics: set[str] | None) -> None:
        wanted = None if topics is None else topics.__contains__
        for view in (self.journal, self.reader):
            if view is self.reader:
                view.refresh()
            found, lost = read_all(view, after, budget, wanted=wanted)
            assert found == [
                record
                for record in self.model
                if record.first + record.size - 1 > after
                and record.first >= self.journal.start
                and (topics is None or record.topic in topics)
            ]
            assert lost == ([(after + 1, self.journal.start - 1)] if after < self.journal.start - 1 else [])

    @rule(time_ms=st.integers(0, 51))
    def place(self, time_ms: int) -> None:
        kept = [(first, stamp) for first, stamp in self.stamps if first >= self.journal.start]
        young = [first - 1 for first, stamp in kept if stamp >= time_ms]
        assert self.journal.position_at(time_ms) == (young[0] if young else self.head)

    @rule(torn=st.binary(max_size=100))
    def restart(self, torn: bytes) -> None:
        self.journal.close()
        with files_of(self.folder)[-1].open("ab") as file:
            file.write(torn)
        self.journal = open_journal(self.folder, **self.more)
        assert self.journal.cut == len(torn)

    @rule()
    def retain(self) -> None:
        self.journal.retain()
        assert len(files_of(self.folder)) == 1 or sum(f.stat().st_size for f in files_of(self.folder)) <= 3000

    @rule()
    def sync(self) -> None:
        self.journal.sync()
        assert self.journal.synced == self.head

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "journal"):
            return
        assert (self.journal.epoch, self.journal.head, self.journal.heads) == (self.epoch, self.head, self.heads)
        assert 1 <= self.journal.start <= self.head + 1
        assert self.journal.synced <= self.head

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.journal.close()
            self.reader.close()
            shutil.rmtree(self.folder)


TestJournalMachine = JournalMachine.TestCase
TestJournalMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
