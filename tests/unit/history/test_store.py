"""A history in SQLite and in PostgreSQL: the same from outside."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from fedbus import Fenced, HistoryQuery, HistoryStore, Message, Texts, TopicFilter
from fedbus.clock import SystemClock
from fedbus.errors import DeadlineExceeded
from fedbus.history.places import DAY_MS, HOUR_MS, SLOT_BITS
from fedbus.history.store import PartitionState
from fedbus.history.verify import SealCheck, State
from tests.unit.history.press import BODHI, KOJI, NAMING, WALL, Press
from tests.unit.history.stores import opener

WALL_MS = int(WALL * 1000)


def numbers(store: HistoryStore, **wanted: object) -> list[int]:
    """The bodies' numbers of what is found; and that it is as many as are counted."""
    query = HistoryQuery(**wanted)  # type: ignore[arg-type]
    found = [one.message().body["n"] for one in store.find(query)]
    if not query.limit:
        assert store.count(query) == len(found) == sum(store.statistics(query).values())
    return found


def filters(*texts: str) -> tuple[TopicFilter, ...]:
    return tuple(TopicFilter.parse(text, NAMING) for text in texts)


def bodies(numbers: Iterable[int], **more: object) -> list[dict[str, object]]:
    return [{"n": number, **more} for number in numbers]


def test_each_message_is_kept_once_with_its_bytes_and_its_seal(open_store, press):
    messages = press.batch(bodies(range(100)))
    with open_store() as store:
        assert store.write(messages[:70]).new == 70
        again = store.write(messages[50:] + messages[90:])
        assert (again.new, again.known) == (30, 30)
    check = SealCheck(press.verifier)
    with open_store(writable=False) as store:
        found = list(store.find(HistoryQuery()))
        assert [one.key for one in found] == [message.key for message in messages]
        for stored, message in zip(found, messages, strict=True):
            assert stored.envelope == message.envelope
            assert stored.message().record() == message.record()
            assert check.check(stored).state is State.GOOD
            # from what is kept a parcel comes that verifies by itself; it may be the very same
            assert stored.sealed() == message.sealed


def test_nothing_is_found_in_a_history_that_is_empty(open_store):
    with open_store() as store:
        assert numbers(store) == numbers(store, text="bash") == numbers(store, filters=filters("koji")) == []
        assert store.partitions() == []


def test_messages_are_found_by_topic_endpoint_service_and_time(open_store, press):
    with open_store() as store:
        for hour in range(3):
            wall = WALL + 3600 * hour
            store.write(press.batch(bodies([hour * 10]), "package.build.start", wall=wall))
            store.write(press.batch(bodies([hour * 10 + 1]), "tag.add", wall=wall + 1800))
            store.write(press.batch(bodies([hour * 10 + 2]), "update.create", endpoint=BODHI, wall=wall + 2400))
        assert numbers(store, filters=filters("koji.package")) == [0, 10, 20]
        assert numbers(store, filters=filters("koji")) == [0, 1, 10, 11, 20, 21]
        assert numbers(store, filters=filters("*.tag.#", "bodhi")) == [1, 2, 11, 12, 21, 22]
        assert numbers(store, filters=filters("nobody")) == []
        assert numbers(store, endpoints=(BODHI,)) == numbers(store, services=("bodhi",)) == [2, 12, 22]
        assert numbers(store, endpoints=(BODHI,), filters=filters("koji")) == []
        assert numbers(store, since_ms=WALL_MS + HOUR_MS, until_ms=WALL_MS + 2 * HOUR_MS) == [10, 11, 12]
        assert numbers(store, since_ms=WALL_MS + HOUR_MS + 1) == [11, 12, 20, 21, 22]
        assert numbers(store, until_ms=WALL_MS + 1_800_001, filters=filters("koji")) == [0, 1]
        assert numbers(store, since_ms=WALL_MS, until_ms=WALL_MS) == []
        assert numbers(store, newest=True, limit=4) == [22, 21, 20, 12]
        assert numbers(store, newest=True, limit=2, filters=filters("koji")) == [21, 20]
        assert numbers(store, limit=2, filters=filters("koji.tag", "bodhi")) == [1, 2]
        assert store.statistics(HistoryQuery(filters=filters("koji.tag"))) == {
            ("org.example.dev.koji.tag.add", WALL_MS // HOUR_MS + hour): 1 for hour in range(3)
        }


def test_messages_are_found_by_words_phrases_beginnings_fields_users_and_packages(open_store, press):
    given = [
        {"n": 0, "package": "python-requests", "owner": "ralph", "text": "The build is complete"},
        {"n": 1, "package": "python-requests-oauthlib", "owner": "Zoë", "text": "is the build complete?"},
        {"n": 2, "package": "bash", "owner": "ralph.b", "build": {"id": 12345, "ratio": 0.50, "final": True}},
        {"n": 3, "package": "BASH", "tags": ["f41", "f42"], "none": None, "empty": ""},
    ]
    with open_store() as store:
        store.write(press.batch(given))
        assert numbers(store, text="build complete") == [0, 1]
        assert numbers(store, text='"build is complete"') == [0]
        assert numbers(store, text="BUIL*") == [0, 1, 2]
        assert numbers(store, text="python-requests") == [0, 1]
        assert numbers(store, text="zoe") == [1]
        assert numbers(store, text="absent") == numbers(store, text="build absent") == []
        assert numbers(store, packages=("python-requests",)) == [0]
        assert numbers(store, packages=("bash", "python-requests")) == [0, 2, 3]
        assert numbers(store, users=("ralph",)) == [0]
        assert numbers(store, users=("ralph", "zoë"), packages=("python-requests-oauthlib",)) == [1]
        assert numbers(store, fields=(("build.id", "12345"),)) == [2]
        assert numbers(store, fields=(("build.ratio", "0.5"),)) == [2]
        assert numbers(store, fields=(("build.final", "true"),)) == [2]
        assert numbers(store, fields=(("tags", "f42"),)) == numbers(store, fields=(("tags.1", "f42"),)) == [3]
        assert numbers(store, fields=(("none", "null"), ("empty", ""))) == [3]
        assert numbers(store, fields=(("package", "bash"),)) == [2]
        assert numbers(store, fields=(("endpoint", KOJI), ("body.n", "1"))) == [1]
        assert numbers(store, text="bash", packages=("bash",), fields=(("tags", "f41"),)) == [3]


# fmt: off
NASTY = (
    "' OR 1=1 --", '" OR "a', "%", "_", "*", "a* NOT b", "text:bash", "NEAR(a b)", "^a", "a AND", "'; DROP TABLE x",
    "$.a", "a[0]", "{a}", "\\", "\x00", "a\x00b", "\ud800", "x" * 5000, "''", "a & !b", "a:*", "a <-> b", "%s", "$1",
)
# fmt: on


@pytest.mark.badinput("B43")
def test_whatever_is_looked_for_is_a_value_and_never_a_part_of_a_query(open_store, press):
    with open_store() as store:
        store.write(press.batch([{"n": 77, "text": "harmless"}]))
        for nasty in NASTY:
            several = {
                "users": (nasty,),
                "packages": (nasty, "y"),
                "endpoints": (nasty,),
                "services": (nasty,),
                "fields": ((nasty, "x"),),
            }
            for wanted in ({"text": nasty}, {"fields": (("text", nasty),)}, *({one: several[one]} for one in several)):
                try:
                    query = HistoryQuery(**wanted)
                except ValueError:
                    assert set(wanted) <= {"text", "fields"} or nasty == "\ud800"
                else:
                    assert list(store.find(query)) == []
        assert numbers(store) == [77]


@pytest.mark.badinput("B43")
def test_a_search_ends_when_its_time_is_over(place, press):
    with opener(place, SystemClock())() as store:
        for _ in range(3):
            store.write(press.batch(bodies(range(300), text="word " * 50), wall=WALL - 10**8))
        with pytest.raises(DeadlineExceeded):
            list(store.find(HistoryQuery(fields=(("n", "-1"),), seconds=1e-9)))
        with pytest.raises(ValueError):
            HistoryQuery(users=("x",) * 1001)


def test_partitions_hold_a_period_and_old_ones_are_dropped_whole(open_store, press):
    with open_store(period="day") as store:
        for day in (0, 1, 2):
            store.write(press.batch(bodies([day]), wall=WALL - 86400 * day))
        names = [one.name for one in store.partitions()]
        assert names == ["2027-01-13", "2027-01-14", "2027-01-15"]
        assert [one.messages for one in store.partitions()] == [1, 1, 1]
        assert all(one.size > 0 for one in store.partitions())
        assert store.drop_before(WALL_MS - DAY_MS + 1) == ["2027-01-13"]
        assert numbers(store) == [1, 0]
        assert store.drop_before(WALL_MS - DAY_MS + 1) == []


def test_what_is_older_than_what_is_kept_is_neither_stored_nor_left(open_store, press):
    messages = [press.batch(bodies([day]), wall=WALL - 86400 * day)[0] for day in range(5)]
    with open_store(period="day") as store:
        assert store.write(messages).new == 5
    with open_store(period="day", keep=2 * 86400.0) as store:
        written = store.write(messages)
        assert (written.new, written.known, written.expired) == (0, 3, 2)
        assert numbers(store) == [2, 1, 0]


def test_a_history_keeps_the_periods_that_it_began_with(open_store, press, caplog):
    with open_store(period="day") as store:
        store.write(press.batch(bodies([0])))
    with open_store(period="month") as store:
        assert "keeps that" in caplog.text
        store.write(press.batch(bodies([1]), wall=WALL - 86400))
        assert [one.name for one in store.partitions()] == ["2027-01-14", "2027-01-15"]


@pytest.mark.fault("F12")
def test_messages_of_an_incredible_time_stand_apart_and_once(open_store, press):
    old, future = press.batch(bodies([1]), wall=10.0), press.batch(bodies([2]), wall=WALL + 400 * 86400)
    soon = press.batch(bodies([3]), wall=WALL + 86400 + 5)
    with open_store() as store:
        assert store.write([*old, *future, *soon]).new == 3
        assert store.write([*future, *soon, *old]).new == 0
        press.clock.advance(10.0)  # now it would be credible
        try:
            assert store.write(soon).new == 0
        finally:
            press.clock.advance(-10.0)
        assert [one.name for one in store.partitions()] == ["apart-2027-01"]
        assert numbers(store) == [1, 2, 3]
        assert numbers(store, since_ms=0) == numbers(store, until_ms=WALL_MS * 2) == []
        assert numbers(store, text="n", filters=filters("koji")) == [1, 2, 3]
        assert store.drop_before(WALL_MS + 40 * DAY_MS) == ["apart-2027-01"]


def test_an_older_token_is_refused_and_a_newer_one_counts_for_everybody(open_store, press):
    first, second = press.batch(bodies([1])), press.batch(bodies([2]))
    with open_store() as one, open_store() as other:
        one.write(first, token=3)
        other.write(second, token=4)
        for again in (first, press.batch(bodies([3]))):
            with pytest.raises(Fenced):
                one.write(again, token=3)
        with pytest.raises(Fenced):
            one.drop_before(WALL_MS, token=3)
        assert numbers(one) == [1, 2]
    with open_store() as one, pytest.raises(Fenced):
        one.write(first)


def test_two_writers_keep_each_message_once(open_store, press):
    messages = press.batch(bodies(range(40)))
    with open_store() as one, open_store() as other:
        new = 0
        for start in range(0, 40, 5):
            new += one.write(messages[start : start + 10]).new
            new += other.write(messages[start + 3 : start + 12]).new
        assert new == 40
        assert numbers(other) == numbers(one) == list(range(40))
        assert list(one.faults()) == []


def test_more_messages_than_there_are_slots_may_state_one_millisecond(open_store, press, monkeypatch):
    # two bits of slots: four messages of a millisecond find room in it, the others behind all there are
    monkeypatch.setattr("fedbus.history.incoming.first_place", _few_slots)
    with open_store() as store:
        for start in range(0, 30, 10):
            store.write(press.batch(bodies(range(start, start + 10))))
        found = list(store.find(HistoryQuery()))
        assert sorted(one.message().body["n"] for one in found) == list(range(30))
        assert len({one.place for one in found}) == 30


def _few_slots(ms: int) -> int:
    first = WALL_MS << SLOT_BITS
    return first if ms == WALL_MS else first + 4 if ms == WALL_MS + 1 else ms << SLOT_BITS


def test_messages_of_one_parcel_that_come_singly_each_verify(open_store, press):
    messages = press.batch(bodies(range(9)), ["tag.add", "package.build.start", "tag.add"] * 3, parcel_messages=2)
    check = SealCheck(press.verifier)
    with open_store() as store:
        for message in reversed(messages):
            store.write([message])
        found = list(store.find(HistoryQuery()))
        assert sorted(one.sequence for one in found) == sorted(message.sequence for message in messages)
        assert {check.check(one).state for one in found} == {State.GOOD}


def test_users_and_packages_are_those_that_the_texts_name(open_store, press):
    class Renamed(Texts):
        def names(self, message: Message) -> tuple[tuple[str, ...], tuple[str, ...]]:
            return ("somebody",), ("C++ Library 2.0",)

    with open_store() as store:
        store.write(press.batch([{"n": 1, "owner": "ralph"}]), texts=Renamed())
        assert numbers(store, users=("somebody",), packages=("c++ library 2.0",)) == [1]
        assert numbers(store, users=("ralph",)) == numbers(store, packages=("c library 2 0",)) == []


def test_a_closed_history_and_one_for_reading_refuse_to_write(open_store, press):
    from fedbus import HistoryError

    with open_store() as store:
        store.write(press.batch(bodies([1])))
    with pytest.raises(HistoryError):
        store.write(press.batch(bodies([2])))
    with open_store(writable=False) as reader, pytest.raises(HistoryError):
        reader.write(press.batch(bodies([2])))
    assert isinstance(PartitionState("x", 0, 0), PartitionState)


__all__ = ["Press"]
