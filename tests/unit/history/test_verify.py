"""Proving again what a history holds; a row that was altered is named, and nothing is taken for good by mistake."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from fedbus import HistoryQuery, HistoryStore
from fedbus.clock import ManualClock
from fedbus.errors import Reason, TrustError
from fedbus.history.verify import SealCheck, State, Verdict, check_line, line_of
from fedbus.trust.keyring import Keyring
from fedbus.trust.policy import Policy
from fedbus.trust.verifier import Verifier
from tests.unit.history.press import KOJI, NAMING, WALL, Press
from tests.unit.history.stores import opener

YEAR = 365 * 86400.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "history"


@pytest.fixture
def store(folder: Path, press: Press):
    with opener(str(folder), press.clock)() as opened:
        opened.write(press.batch([{"n": number, "ratio": 0.10, "text": "é"} for number in range(20)]))
        opened.write(press.batch([{"n": 20}], "tag.add"))
        yield opened


def verdicts(store: HistoryStore, press: Press) -> list[Verdict]:
    check = SealCheck(press.verifier)
    return [check.check(one) for one in store.find(HistoryQuery())]


def edit(folder: Path, statement: str, *values: object) -> None:
    """Do what somebody with a shell and no respect would do."""
    (path,) = [path for path in folder.glob("*.db") if path.name != "history.db"]
    with sqlite3.connect(path) as connection:
        connection.execute(statement, values)
    connection.close()


def test_whatever_was_signed_and_not_altered_is_good(store, press):
    assert {verdict.state for verdict in verdicts(store, press)} == {State.GOOD}


@pytest.mark.badinput("B22")
@pytest.mark.parametrize(
    "again",
    [
        lambda text: json.dumps(json.loads(text)).encode(),  # blanks, and é escaped
        lambda text: orjson.dumps(orjson.loads(text), option=orjson.OPT_SORT_KEYS),
        lambda text: text.replace(b"0.1,", b"0.10,"),
        lambda text: text.replace("é".encode(), "e\u0301".encode()),
        lambda text: text + b"\n",
        lambda text: b"",
        lambda text: b"\xff\xfe",
    ],
)
def test_an_envelope_that_was_written_anew_does_not_verify_and_its_row_alone_is_named(
    folder, store, press, again: Callable[[bytes], bytes]
):
    victim = list(store.find(HistoryQuery()))[7]
    edit(folder, "UPDATE message SET envelope = ? WHERE id = ?", again(victim.envelope), victim.place)
    found = verdicts(store, press)
    assert [place for place, verdict in enumerate(found) if verdict.state is not State.GOOD] == [7]
    assert (found[7].state, found[7].reason) == (State.REFUSED, Reason.SIGNATURE)
    # what can be read of it is shown when it is not to be verified, and what cannot be read is an error of its own
    assert len(list(store.find(HistoryQuery()))) == 21


@pytest.mark.parametrize(
    ("statement", "number"),
    [
        ("UPDATE message SET sequence = sequence + 1000 WHERE leaf = 3 AND parcel = (SELECT min(id) FROM parcel)", 1),
        ("UPDATE message SET leaf = 4 WHERE leaf = 3 AND parcel = (SELECT min(id) FROM parcel)", 1),
        ("UPDATE message SET leaf = 99 WHERE leaf = 3", 1),
        ("UPDATE message SET leaf = -1 WHERE leaf = 3", 1),
        ("UPDATE message SET id = id + (5000 << 20) WHERE leaf = 3", 1),
        ("UPDATE message SET topic = 2 - (topic = 2) WHERE leaf = 0 AND topic = 2", 1),
        ("UPDATE topic SET name = 'org.example.dev.koji.tag.remove' WHERE id = 2", 1),
        ("UPDATE stream SET endpoint = 'bodhi.web01'", 21),
        ("UPDATE stream SET epoch = '0192f0c0-0000-7000-8000-999999999999'", 21),
        ("UPDATE stream SET epoch = 'none'", 21),
        ("UPDATE parcel SET first = first + 1", 21),
        ("UPDATE parcel SET signer = 'somebody.else'", 21),
        ("UPDATE parcel SET signature = x'3006020101020101'", 21),
        ("UPDATE parcel SET chain = x'00'", 21),
        ("UPDATE parcel SET path = zeroblob(32) WHERE size > 1", 20),
        ("UPDATE parcel SET leaves = zeroblob(length(leaves)) WHERE size > 1", 20),
        ("UPDATE certificate SET der = x'3000'", 21),
        ("UPDATE parcel SET first = 'text'", 21),
        ("UPDATE parcel SET size = -1", 21),
        ("UPDATE parcel SET start = 1.5", 21),
        ("UPDATE parcel SET leaves = 'text'", 21),
        ("UPDATE parcel SET signature = 7", 21),
        ("UPDATE parcel SET path = 'text'", 21),
        ("UPDATE message SET envelope = 7 WHERE leaf = 3", 1),
        ("UPDATE message SET envelope = CAST(envelope AS TEXT) || ' ' WHERE leaf = 3", 1),
        ("UPDATE message SET leaf = 'text' WHERE leaf = 3", 1),
        ("UPDATE message SET topic = 99 WHERE leaf = 3", 1),
        ("UPDATE message SET stream = 99 WHERE leaf = 3", 1),
    ],
)
def test_no_column_can_be_altered_without_notice(folder, store, press, statement, number):
    edit(folder, statement)
    found = verdicts(store, press)
    assert sum(verdict.state is State.REFUSED for verdict in found) == number
    assert sum(verdict.state is State.GOOD for verdict in found) == 21 - number


def test_a_message_without_its_seal_is_not_verifiable_rather_than_good(folder, store, press):
    edit(folder, "DELETE FROM parcel WHERE size = 1")
    found = verdicts(store, press)
    assert [verdict.state for verdict in found[-1:]] == [State.NOT_VERIFIABLE]
    assert {verdict.state for verdict in found[:-1]} == {State.GOOD}


def test_a_message_of_an_unknown_format_is_not_verifiable(folder, store, press):
    edit(folder, "UPDATE parcel SET wire = 'of the future' WHERE size = 1")
    assert verdicts(store, press)[-1].state is State.NOT_VERIFIABLE


def test_a_certificate_that_has_expired_since_was_good_then(tmp_path, folder):
    clock = ManualClock(WALL)
    press = Press(tmp_path / "ca", clock)
    with opener(str(folder), clock)() as store:
        store.write(press.batch([{"n": 1}]))
        clock.advance(3 * YEAR)
        press.authority.write_crl()
        later = Verifier(Keyring.load(press.options, clock=clock), Policy(NAMING), clock=clock)
        (stored,) = store.find(HistoryQuery())
        with pytest.raises(TrustError) as now:
            later.identify(stored.proof.certificate)
        assert now.value.reason is Reason.EXPIRED
        assert SealCheck(later).check(stored).state is State.GOOD


def test_what_a_revoked_key_has_signed_is_refused(tmp_path, folder):
    press = Press(tmp_path / "ca")
    with opener(str(folder), press.clock)() as store:
        store.write(press.batch([{"n": 1}]))
        press.authority.revoke(KOJI, reason="keyCompromise")
        verifier = Verifier(Keyring.load(press.options, clock=press.clock), Policy(NAMING), clock=press.clock)
        (stored,) = store.find(HistoryQuery())
        verdict = SealCheck(verifier).check(stored)
        assert (verdict.state, verdict.reason) == (State.REFUSED, Reason.REVOKED)


# --- lines -----------------------------------------------------------------------------------------------------------


def test_a_line_with_its_seal_is_good_and_the_journal_takes_it_too(store, press):
    check = SealCheck(press.verifier)
    for stored in store.find(HistoryQuery()):
        line = orjson.dumps(line_of(stored))
        assert check_line(line, check, press.verifier).state is State.GOOD


@pytest.mark.badinput("B22")
def test_a_line_that_was_written_anew_is_checked_by_its_seal_and_without_one_is_not_verifiable(store, press):
    check = SealCheck(press.verifier)
    stored = next(iter(store.find(HistoryQuery())))
    line = line_of(stored)
    # another program: other order, other escapes, other numbers that are the same
    again = json.dumps(dict(reversed(line.items())), ensure_ascii=True).replace('"ratio": 0.1', '"ratio": 1.0e-1')
    assert check_line(again.encode(), check, press.verifier).state is State.GOOD
    plain = stored.message().record()
    for text in (orjson.dumps(plain), json.dumps(plain)):
        assert check_line(text if isinstance(text, bytes) else text.encode(), check, press.verifier).state is (
            State.NOT_VERIFIABLE
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"topic": "org.example.dev.koji.other"},
        {"body": {"n": 0.5}},
        {"signer": "bodhi.web01"},
        {"sequence": 2},
        {"more": 1},
        {"envelope": "{}"},
        {"envelope": 7},
        {"sealed": "not base64!"},
        {"sealed": "AAAA"},
        {"sealed": 7},
        {"wire": "fedmsg"},
    ],
)
def test_a_line_that_says_other_than_what_is_sealed_is_not_good(store, press, changes):
    stored = next(iter(store.find(HistoryQuery())))
    line = orjson.dumps({**line_of(stored), **changes})
    assert check_line(line, SealCheck(press.verifier), press.verifier).state is not State.GOOD


@pytest.mark.parametrize("line", [b"", b"[]", b"7", b"{", b"\xff", b'{"sealed": null}', b'{"sealed": ""}'])
def test_what_is_no_line_is_refused(press, line):
    assert check_line(line, SealCheck(press.verifier), press.verifier).state is State.REFUSED
