"""The store of attempts and dead letters, and the note of what is in hand."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fedbus.errors import Fenced, JournalError
from fedbus.hub.dead import Attempts, DeadLetters, LettersFull
from fedbus.hub.inhand import REQUEUED, InHand, Left
from fedbus.model.message import MessageKey
from fedbus.model.position import Position

EPOCH, LATER = "0192f0c0-0000-7000-8000-000000000001", "0192f0c0-0000-7000-8000-000000000002"


@dataclass
class Stored:
    """As much of a message as the store asks for."""

    sequence: int
    endpoint: str = "koji.build01"
    epoch: str = EPOCH
    topic: str = "org.example.dev.koji.build.start"
    sealed: bytes = b"parcel"

    @property
    def key(self) -> MessageKey:
        return MessageKey(self.endpoint, self.epoch, self.sequence)


def bury(store: DeadLetters, sequence: int, consumer: str = "irc", **changes: Any) -> None:
    values: dict[str, Any] = {
        "reason": "boom",
        "traceback": "Traceback",
        "attempts": 4,
        "at_ms": 1_700_000_000_000,
        "most": 5,
        "most_bytes": 10_000,
    }
    store.bury(consumer, Stored(sequence), **{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DeadLetters]:
    with DeadLetters.open(tmp_path / "state" / "dead.db") as opened:
        yield opened


def key(sequence: int) -> MessageKey:
    return Stored(sequence).key


def test_a_dead_letter_survives_closing_with_its_bytes_and_is_private(tmp_path):
    path = tmp_path / "state" / "dead.db"
    with DeadLetters.open(path) as store:
        bury(store, 7, reason="bad\0\ud800", traceback="x" * 50_000, most_bytes=10**6)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with DeadLetters.open(path) as store:
        (letter,) = store.list()
        assert (letter.consumer, letter.key, letter.attempts, letter.requeued) == ("irc", key(7), 4, False)
        assert letter.reason == "bad\\x00\\ud800"
        found = store.get(letter.id)
        assert found is not None
        assert found[1].parcel == b"parcel"
        assert len(found[1].traceback) < 30_000
        assert store.get(letter.id + 1) is None


def test_attempts_are_kept_until_the_cursor_has_passed(store):
    store.tried("irc", key(5), 1)
    store.tried("irc", key(5), 2)
    store.tried("other", key(5), 1)
    bury(store, 6)
    assert store.attempts("irc", {"koji.build01": Position(EPOCH, 4)}) == {
        key(5): Attempts(2),
        key(6): Attempts(4, settled=True),
    }
    assert store.attempts("irc", {"koji.build01": Position(EPOCH, 5)}) == {key(6): Attempts(4, settled=True)}
    assert store.attempts("irc", {"koji.build01": Position(LATER, 0)}) == {}
    assert store.attempts("other", {}) == {key(5): Attempts(1)}
    older = EPOCH.replace("0192f0c0", "0192f0bf")
    assert store.attempts("other", {"koji.build01": Position(older, 99)}) == {key(5): Attempts(1)}, "still to come"
    store.forget("other", [key(5)])
    assert store.attempts("other", {}) == {}
    assert len(store.list("irc")) == 1


@pytest.mark.parametrize("bound", [{"most": 2}, {"most_bytes": 50}])
def test_what_does_not_fit_is_refused_and_counts_for_each_consumer_alone(store, bound):
    bury(store, 1, **bound)
    bury(store, 2, **bound)
    with pytest.raises(LettersFull, match="'irc' has 2 dead letters"):
        bury(store, 3, **bound)
    assert store.attempts("irc", {}).keys() == {key(1), key(2)}
    bury(store, 3, "other", **bound)
    bury(store, 2, **bound)  # one that is there already needs no room
    assert store.drop(store.list("irc")[0].id)
    bury(store, 3, **bound)


def test_a_lower_token_than_was_seen_is_fenced(store):
    bury(store, 1, token=7)
    (letter,) = store.list()
    for write in (
        lambda: bury(store, 2, token=6),
        lambda: store.tried("irc", key(2), 1, token=6),
        lambda: store.forget("irc", [key(2)], token=6),
        lambda: store.resolve(letter, token=6),
        lambda: store.tried_again(letter, 1, token=6),
        lambda: store.refuse(letter, "no", token=6),
    ):
        with pytest.raises(Fenced, match="older than 7"):
            write()
    bury(store, 2, "other", token=1)
    assert [one.key.sequence for one in store.list()] == [1, 2]
    assert store.requeue(letter.id)  # people need no token


def test_a_letter_that_fails_again_stays_one_with_all_attempts(store):
    bury(store, 1)
    (letter,) = store.list()
    assert store.requeue(letter.id)
    (asked,) = store.requeued("irc")
    store.tried_again(asked, 3)
    assert store.requeue(letter.id)  # again: what was tried since is not forgotten
    assert store.requeued("irc")[0].tries == 3
    bury(store, 1, reason="still", attempts=4)
    (letter,) = store.list()
    assert (letter.attempts, letter.reason, letter.requeued, letter.tries) == (8, "still", False, 0)
    assert not store.requeue(99)
    assert not store.drop(99)


def test_the_version_changes_with_every_write_here_and_elsewhere(store):
    seen = [store.version]
    bury(store, 1)
    seen.append(store.version)
    with DeadLetters.open(store.path) as other:
        other.requeue(1)
    seen.append(store.version)
    assert len(set(seen)) == 3
    assert store.version == seen[-1]


def test_a_file_that_is_no_database_is_refused_with_advice(tmp_path):
    path = tmp_path / "dead.db"
    path.write_bytes(b"no database, but longer than its header would be\n" * 50)
    with pytest.raises(JournalError, match=r"cannot open the dead letters .* damaged .* move it away"):
        DeadLetters.open(path)
    closed = DeadLetters.open(tmp_path / "other.db")
    closed.close()
    closed.close()
    with pytest.raises(JournalError, match="closed"):
        closed.list()


class Letters(RuleBasedStateMachine):
    """Against a dictionary: what is buried, requeued, resolved and dropped in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.store = DeadLetters(Path("memory"), sqlite3.connect(":memory:", isolation_level=None))
        self.known: dict[int, tuple[int, bool]] = {}  # sequence -> attempts, requeued

    @initialize()
    def make(self) -> None:
        from fedbus.hub import dead

        assert self.store._connection is not None
        self.store._connection.executescript(dead._SCHEMA)

    @rule(sequence=st.integers(1, 6))
    def die(self, sequence: int) -> None:
        if sequence not in self.known and len(self.known) >= 5:
            with pytest.raises(LettersFull):
                bury(self.store, sequence)
            return
        bury(self.store, sequence)
        self.known[sequence] = (self.known.get(sequence, (0, False))[0] + 4, False)

    def number(self, sequence: int) -> int:
        return next((one.id for one in self.store.list() if one.key.sequence == sequence), 99)

    @rule(sequence=st.integers(1, 6))
    def again(self, sequence: int) -> None:
        assert self.store.requeue(self.number(sequence)) == (sequence in self.known)
        if sequence in self.known:
            self.known[sequence] = (self.known[sequence][0], True)

    @rule()
    def take(self) -> None:
        for letter in self.store.requeued("irc"):
            self.store.resolve(letter)
            del self.known[letter.key.sequence]

    @rule(sequence=st.integers(1, 6))
    def throw_away(self, sequence: int) -> None:
        assert self.store.drop(self.number(sequence)) == (self.known.pop(sequence, None) is not None)

    @invariant()
    def the_store_holds_what_is_known(self) -> None:
        assert {one.key.sequence: (one.attempts, one.requeued) for one in self.store.list()} == self.known
        held = self.store.held("irc")
        assert (held.count, held.requeued) == (len(self.known), sum(asked for _, asked in self.known.values()))

    def teardown(self) -> None:
        self.store.close()


Letters.TestCase.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
test_any_order_of_deaths_and_requeues_keeps_what_it_should = Letters.TestCase


# --- what is in hand -----------------------------------------------------------------------------------------------


def test_what_was_in_hand_is_found_by_the_next_process(tmp_path):
    path = tmp_path / "hub" / "irc.hand"
    first = InHand(path)
    assert first.left() is None
    first.stream("koji.build01", EPOCH)
    first.slot[0] = 17
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second = InHand(path)  # the first was never closed, as after a kill
    assert second.left() == Left((MessageKey("koji.build01", EPOCH, 17),))
    second.slot[0] = 0
    second.stream("bodhi.web01", LATER)
    second.slot[0] = 2 | REQUEUED
    third = InHand(path)
    assert third.left() == Left((MessageKey("bodhi.web01", LATER, 2),), requeued=True)
    third.close()
    assert InHand(path).left() is None


def test_a_note_that_is_no_note_says_nothing(tmp_path):
    path = tmp_path / "irc.hand"
    path.write_bytes(b"\xff" * 1024)
    assert InHand(path).left() is None
    path.unlink()
    path.mkdir()
    with pytest.raises(JournalError, match="cannot open"):
        InHand(path)
