"""Cursors: kept whole, never backwards, fenced."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fedbus.errors import Fenced, JournalError
from fedbus.journal.cursors import CursorStore
from fedbus.model.position import Position

OLD, NEW = "0192f0c0-0000-7000-8000-000000000001", "0192f0c0-0000-7000-8000-000000000002"


def test_a_cursor_survives_closing_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "state" / "cursors.db"
    with CursorStore.open(path) as store:
        assert store.load("report") == {}
        store.save("report", {"a.b": Position(OLD, 5), "c.d": Position(OLD, 2**63 - 1)})
        store.save("report", {"a.b": Position(OLD, 6)})
        store.save("other", {"a.b": Position(OLD, 1)})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with CursorStore.open(path) as store:
        assert store.load("report") == {"a.b": Position(OLD, 6), "c.d": Position(OLD, 2**63 - 1)}
        assert store.list() == ["other", "report"]
        assert store.delete("report") and not store.delete("report")
        assert store.list() == ["other"]


def test_a_cursor_moves_back_only_by_force_or_into_another_epoch(tmp_path: Path) -> None:
    with CursorStore.open(tmp_path / "c.db") as store:
        store.save("report", {"a.b": Position(OLD, 9)})
        store.save("report", {"a.b": Position(OLD, 8)})
        assert store.load("report")["a.b"] == Position(OLD, 9)
        store.save("report", {"a.b": Position(OLD, 3)}, force=True)
        assert store.load("report")["a.b"] == Position(OLD, 3)
        store.save("report", {"a.b": Position(NEW, 1)})
        assert store.load("report")["a.b"] == Position(NEW, 1)


def test_a_lower_token_is_fenced_and_saves_nothing(tmp_path: Path) -> None:
    with CursorStore.open(tmp_path / "c.db") as one, CursorStore.open(tmp_path / "c.db") as two:
        one.save("report", {"a.b": Position(OLD, 1)}, token=4)
        two.save("report", {"a.b": Position(OLD, 2)}, token=5)
        for force in (False, True):
            with pytest.raises(Fenced):
                one.save("report", {"a.b": Position(OLD, 9)}, token=4, force=force)
        with pytest.raises(Fenced):
            one.delete("report", token=4)
        two.delete("report", token=5)
        with pytest.raises(Fenced):
            one.save("report", {"a.b": Position(OLD, 9)}, token=4)
        one.save("unleased", {"a.b": Position(OLD, 9)})
        assert two.load("report") == {} and two.load("unleased") == {"a.b": Position(OLD, 9)}


def test_what_is_no_sequence_is_refused_and_the_rest_is_not_saved_either(tmp_path: Path) -> None:
    with CursorStore.open(tmp_path / "c.db") as store:
        for bad in (-1, 2**63):
            with pytest.raises(JournalError, match="no sequence"):
                store.save("report", {"a.b": Position(OLD, 1), "c.d": Position(OLD, bad)})
        assert store.load("report") == {}


def test_threads_share_a_store(tmp_path: Path) -> None:
    with CursorStore.open(tmp_path / "c.db") as store:

        def work(number: int) -> None:
            for sequence in range(1, 21):
                store.save(f"c{number % 2}", {f"e{number}": Position(OLD, sequence)})

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for name in ("c0", "c1"):
            assert {place.sequence for place in store.load(name).values()} == {20}
            assert len(store.load(name)) == 2


@pytest.mark.fault("F6")
def test_what_was_saved_is_in_the_files_before_save_returns(tmp_path: Path) -> None:
    """A copy of the files right after a save is what a crash leaves; torn ends of the write-ahead log cost nothing."""
    with CursorStore.open(tmp_path / "c.db") as store:
        assert store._connection is not None
        assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        for sequence in range(1, 30):
            store.save("report", {"a.b": Position(OLD, sequence), "c.d": Position(OLD, sequence)})
            crashed = tmp_path / f"{sequence}"
            crashed.mkdir()
            for name in ("c.db", "c.db-wal"):
                shutil.copy(tmp_path / name, crashed / name)
            with (crashed / "c.db-wal").open("ab") as log:
                log.write(b"\xff" * 777)
            with CursorStore.open(crashed / "c.db") as after:
                places = {place.sequence for place in after.load("report").values()}
                assert places == {sequence}


@pytest.mark.parametrize("content", [b"not a database at all, but long enough to be looked at" * 40, b"\0" * 5000])
def test_a_damaged_database_is_an_error_that_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.db"
    path.write_bytes(content)
    with pytest.raises(JournalError, match="restore a backup"):
        CursorStore.open(path)
    assert path.read_bytes() == content


def test_damage_inside_the_database_is_found_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    with CursorStore.open(path) as store:
        for number in range(300):
            store.save(f"name-{number:05d}", {"endpoint": Position(OLD, number)})
    data = bytearray(path.read_bytes())
    pages = len(data) // 4096
    assert pages > 4
    data[4096 * (pages - 2) : 4096 * (pages - 2) + 200] = b"\xa5" * 200
    path.write_bytes(data)
    with pytest.raises(JournalError, match="restore a backup"):
        CursorStore.open(path)


def test_a_locked_database_is_an_error_in_time_and_works_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedbus.journal.cursors._BUSY_SECONDS", 0.05)
    path = tmp_path / "c.db"
    with CursorStore.open(path) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalError, match="locked"):
            store.save("report", {"a.b": Position(OLD, 1)})
        other.execute("ROLLBACK")
        other.close()
        store.save("report", {"a.b": Position(OLD, 1)})
    with pytest.raises(JournalError, match="closed"):
        store.load("report")


names = st.sampled_from(["one", "two", "drei'; --"])
places = st.dictionaries(
    st.sampled_from(["a.b", "c.d", "e.f"]),
    st.builds(Position, st.sampled_from([OLD, NEW]), st.integers(0, 5)),
    max_size=3,
)


class CursorMachine(RuleBasedStateMachine):
    """The store against a dictionary."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cursors"))
        self.store = CursorStore.open(self.folder / "c.db")
        self.model: dict[str, dict[str, Position]] = {}
        self.tokens: dict[str, int] = {}

    @rule(name=names, positions=places, token=st.integers(0, 3), force=st.booleans())
    def save(self, name: str, positions: dict[str, Position], token: int, force: bool) -> None:
        if token < self.tokens.get(name, 0):
            with pytest.raises(Fenced):
                self.store.save(name, positions, token, force=force)
            return
        self.store.save(name, positions, token, force=force)
        self.tokens[name] = token
        kept = self.model.setdefault(name, {})
        for endpoint, place in positions.items():
            before = kept.get(endpoint)
            if force or before is None or before.epoch != place.epoch or place.sequence > before.sequence:
                kept[endpoint] = place

    @rule(name=names, token=st.integers(0, 3))
    def delete(self, name: str, token: int) -> None:
        if token < self.tokens.get(name, 0):
            with pytest.raises(Fenced):
                self.store.delete(name, token)
            return
        assert self.store.delete(name, token) == bool(self.model.pop(name, {}))
        self.tokens[name] = token

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = CursorStore.open(self.folder / "c.db")

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "store"):
            return
        assert self.store.list() == sorted(name for name, kept in self.model.items() if kept)
        for name in self.store.list():
            assert self.store.load(name) == self.model[name]

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)


TestCursorMachine = CursorMachine.TestCase
TestCursorMachine.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
