"""Messages of fedmsg in the history: as they came, each once, and verified as of their time."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import orjson
import pytest

from fedbus import HistoryQuery, Message
from fedbus.fedmsg.message import to_message
from fedbus.fedmsg.validator import Validator
from fedbus.history.verify import SealCheck, State, line_of
from tests.unit.fedmsg.test_validator import Bench

TOPIC = "org.fedoraproject.dev.koji.build.complete"
NOW = time.time()  # their certificates are made now


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("fedmsg"))


def message(site, number: int) -> Message:
    envelope = site.message(
        site.signer(),
        topic=TOPIC,
        i=number,
        msg={"n": number, "ratio": 0.1, "text": "é", "package": "bash"},
        timestamp=NOW + number,
        msg_id=f"2027-11111111-0000-4000-8000-{number:012d}",
    )
    return to_message(envelope, endpoint="koji.build01", signer="koji")


def test_they_are_kept_once_found_and_given_back_as_they_came(open_store, press, site):
    given = [message(site, number) for number in (1, 2, 3, 2)]
    with open_store() as store:
        written = store.write(given)
        assert (written.new, written.known) == (3, 1)
        assert store.write(given).known == 4
        native = press.batch([{"n": 9}])
        store.write(native)
        found = list(store.find(HistoryQuery(text="bash")))
        assert [one.key for one in found] == [one.key for one in given[:3]]
        assert [one.message().record() for one in found] == [one.record() for one in given[:3]]
        assert [one.sealed() for one in found] == [one.sealed for one in given[:3]]
        assert {one.message().wire for one in found} == {"fedmsg"}
        assert store.count(HistoryQuery(endpoints=("koji.build01",))) == 4
        assert [store.place_of(one.key) for one in given[:3]] == [one.place for one in found]
        assert store.place_of(native[0].key) is not None
        assert store.place_of(given[0].key._replace(sequence=7)) is None


def test_without_the_ca_of_fedmsg_they_are_not_verifiable(open_store, press, site):
    with open_store() as store:
        store.write([message(site, 1)])
        (stored,) = store.find(HistoryQuery())
        assert SealCheck(press.verifier).check(stored).state is State.NOT_VERIFIABLE
        assert orjson.dumps(line_of(stored))


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE parcel SET original = replace(original, 'bash', 'dash')",
        "UPDATE parcel SET original = x'7b7d'",
        "UPDATE message SET envelope = x'7b7d'",
        "UPDATE message SET sequence = 77",
        "UPDATE parcel SET signer = 'another'",
        "UPDATE topic SET name = 'org.fedoraproject.dev.koji.other'",
    ],
)
def test_what_was_altered_is_refused(open_store, press, site, place, statement):
    check = SealCheck(press.verifier, lambda: Validator(site.options))
    with open_store() as store:
        store.write([message(site, 1)])
        (stored,) = store.find(HistoryQuery())
        good = check.check(stored)
        assert good.state is State.GOOD, good
    (path,) = Path(place).glob("20*.db")
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()
    with open_store(writable=False) as store:
        (stored,) = store.find(HistoryQuery())
        assert check.check(stored).state is State.REFUSED
