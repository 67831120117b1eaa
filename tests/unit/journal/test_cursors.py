"""Cursors: kept whole, never backwards, fenced."""

from __future__ import annotations

import random
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


@pytest.mark.fault("F18")
def test_a_bit_flipped_anywhere_in_the_database_is_an_error_or_changes_no_place(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    path = tmp_path / "c.db"
    saved = {}
    with CursorStore.open(path) as store:
        for number in range(40):
            saved[f"name-{number}"] = {
                "koji.build01": Position(OLD, 1000 + number),
                "bodhi.web01": Position(NEW, number),
            }
            store.save(f"name-{number}", saved[f"name-{number}"])
    sound = path.read_bytes()
    refused = 0
    for turn in range(150):
        damaged = bytearray(sound)
        damaged[chance.randrange(len(sound))] ^= 1 << chance.randrange(8)
        copy = tmp_path / f"{turn}.db"
        copy.write_bytes(damaged)
        try:
            with CursorStore.open(copy) as store:
                assert {name: store.load(name) for name in store.list()} == saved
        except JournalError as error:
            refused += 1
            assert str(copy) in str(error)
        for left in tmp_path.glob(f"{turn}.db*"):
            left.unlink()
    assert refused > 10


@pytest.mark.fault("F18")
def test_a_damaged_write_ahead_log_costs_its_last_places_at_most_and_the_store_works_on(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with CursorStore.open(tmp_path / "c.db") as store:
        for sequence in range(1, 40):
            store.save("report", {"a.b": Position(OLD, sequence), "c.d": Position(OLD, sequence)})
        base, sound = (tmp_path / "c.db").read_bytes(), (tmp_path / "c.db-wal").read_bytes()
    older = 0
    for turn in range(60):
        log = bytearray(sound)
        if turn % 3:
            log[chance.randrange(len(log))] ^= 1 << chance.randrange(8)
        else:
            del log[chance.randrange(len(log)) :]
        (tmp_path / f"{turn}.db").write_bytes(base)
        (tmp_path / f"{turn}.db-wal").write_bytes(log)
        with CursorStore.open(tmp_path / f"{turn}.db") as store:
            places = store.load("report")
            assert len(places) in (0, 2)
            if places:
                assert places["a.b"] == places["c.d"], "all or none of what one save has written"
                assert 1 <= places["a.b"].sequence <= 39
                older += places["a.b"].sequence < 39
            store.save("report", {"a.b": Position(OLD, 40), "c.d": Position(OLD, 40)})
            assert store.load("report")["a.b"].sequence == 40
    assert older > 10


@pytest.mark.fault("F18")
def test_a_store_that_another_process_keeps_busy_for_a_while_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    with CursorStore.open(path) as store:
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        begun = threading.Event()

        def let_go() -> None:
            begun.wait(10.0)
            other.execute("ROLLBACK")

        thread = threading.Thread(target=let_go)
        thread.start()
        threading.Timer(0.3, begun.set).start()
        store.save("report", {"a.b": Position(OLD, 1)})
        thread.join(10.0)
        other.close()
        assert store.load("report") == {"a.b": Position(OLD, 1)}


def test_a_database_of_the_first_release_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    old = sqlite3.connect(path)
    old.executescript(
        "CREATE TABLE cursor (name TEXT NOT NULL, endpoint TEXT NOT NULL, epoch TEXT NOT NULL, "
        "sequence INTEGER NOT NULL, PRIMARY KEY (name, endpoint)) WITHOUT ROWID;"
        "CREATE TABLE holder (name TEXT PRIMARY KEY, token INTEGER NOT NULL) WITHOUT ROWID;"
        f"INSERT INTO cursor VALUES ('report', 'a.b', '{OLD}', 7);"
    )
    old.close()
    with CursorStore.open(path) as store:
        assert store.load("report") == {"a.b": Position(OLD, 7)}
        store.save("report", {"a.b": Position(OLD, 8)})
        assert store.load("report") == {"a.b": Position(OLD, 8)}
    with CursorStore.open(path) as store:
        assert store.load("report") == {"a.b": Position(OLD, 8)}


@pytest.mark.fault("F18")
def test_a_locked_database_is_an_error_in_time_and_works_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedbus.journal.database._BUSY_SECONDS", 0.05)
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


@pytest.mark.fault("F18")
def test_a_damaged_schema_is_an_error_that_says_so_or_changes_no_place(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    place = {"koji.build01": Position(OLD, 7)}
    with CursorStore.open(path) as store:
        store.save("name", place)
    sound = path.read_bytes()
    for at in range(sound.index(b"CREATE TABLE"), 4096):
        for bit in (1, 7):
            damaged = bytearray(sound)
            damaged[at] ^= 1 << bit
            copy = tmp_path / f"{at}-{bit}.db"
            copy.write_bytes(damaged)
            try:
                with CursorStore.open(copy) as store:
                    assert {name: store.load(name) for name in store.list()} == {"name": place}
            except JournalError as error:
                assert str(copy) in str(error)
