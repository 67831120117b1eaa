"""The ledger of the soak notices what it is there for; everything else is judged by it."""

from __future__ import annotations

import pytest

from tests.processes.ledger import Ledger

WELL = [
    "live a 1 1",
    "live third 1 3",
    "ack k k e 1 1 4",
    "got a 1 k e 1 k 1 2",
    "got third 1 k e 3 k 3 1",
    "got a 1 k e 3 k 3 3",
    "ack k k e 5 5 1",
    "no k 6 2",
    "maybe k 8 1",
    "live a 2 1",
    "got a 2 k e 4 k 4 2",
    "got a 2 k e 6 k 8 2",
    "live third 2 3",
    "got third 2 k e 3 k 3 1",
    "got third 2 k e 7 k 9 1",
]


def judge(*lines: str) -> Ledger:
    ledger = Ledger()
    for line in [*WELL, *lines]:
        ledger.take(line)
    return ledger


def test_kills_repeats_from_before_a_cursor_and_refusals_are_no_faults() -> None:
    status = judge().status()
    assert status["faults"] == []
    assert status["missing"] == {}
    assert (status["acked"], status["refused"], status["maybe"]) == (5, 2, 1)
    assert status["consumers"]["a"]["repeats"] == 2
    assert status["consumers"]["third"]["repeats"] == 1


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("got a 2 k e 9 k 11 1", "a hole"),
        ("got a 2 k e 7 k 9 1", "a step back"),
        ("got a 2 k e 8 k 9 1", "repeated or out of order"),
        ("got a 2 k e 8 k 5 1", "repeated or out of order"),
        ("got a 2 k e2 1 k 20 1", "a second epoch"),
        ("ack k k e 6 10 1", "receipt and message differ"),
        ("ack k k e 5 5 1", "a second receipt"),
        ("lost a 2 k 8 9", "told of a loss"),
        ("got a 1 k e 8 k 10 1", "life 2 has begun already"),
        ("cut b'got'", "no such line"),
    ],
)
def test_every_kind_of_fault_is_found(line: str, what: str) -> None:
    ledger = judge(line)
    assert ledger.fault_count == 1
    assert what in ledger.faults[0]


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        (["no k 10 1", "got a 2 k e 8 k 10 1"], "was refused and appears"),
        (["ack k k e 9 11 1", "ack k k e 9 12 1"], "given out twice"),
        (["live a 3 1", "got a 3 k e 9 k 11 1"], "a hole"),
        (["got a 2 k e 8 k 12 8", "got third 2 k e 14 k 18 1"], "third missed 2"),
        (["live b 1 1", "got b 1 k e 1 k 2 1"], "1 was k:1 before"),
    ],
)
def test_faults_that_show_in_several_lines_are_found(lines: list[str], what: str) -> None:
    ledger = judge(*lines)
    assert ledger.fault_count
    assert what in ledger.faults[0]


def test_what_was_acknowledged_and_not_got_is_missing() -> None:
    assert judge("ack k k e 8 10 3").status()["missing"] == {"a k": 3, "third k": 3}
    assert judge("ack k k e 8 10 3", "got a 2 k e 8 k 10 3").status()["missing"] == {"third k": 1}


def test_what_was_spooled_has_to_appear_whether_its_receipt_comes_before_or_after() -> None:
    ledger = judge("spooled ~s 1 2", "got a 2 k e 8 ~s 1 1", "got a 2 k e 9 ~s 3 1", "spooled ~s 3 1")
    assert ledger.faults == []
    assert ledger.status()["missing"]["spooled"] == 1
    ledger.take("got a 2 k e 10 ~s 4 1")
    ledger.take("ack ~s k e 10 4 1")
    assert ledger.unclaimed == set()
    assert ledger.status()["missing"]["spooled"] == 1


def test_where_retention_is_short_a_loss_is_no_fault_but_a_hole_is() -> None:
    ledger = judge("lossy k", "lost a 2 k 8 10", "got a 2 k e 11 k 20 1", "live late 1 1", "got late 1 k e 11 k 20 1")
    assert ledger.faults == []
    ledger.take("got a 2 k e 13 k 22 1")
    assert "a hole" in ledger.faults[0]
