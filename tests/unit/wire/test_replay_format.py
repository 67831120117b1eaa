"""Requests and answers of replay: what was said comes back, and any bytes at all are one of them or a refusal."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.errors import Reason, WireError
from fedbus.wire import replay

filters = st.lists(st.sampled_from(["", "#", "a", "a.b", "a.*.c", "a.#.z", "org.example.dev"]), max_size=4)


@st.composite
def fetches(draw: st.DrawFn) -> replay.Fetch:
    begin = draw(st.sampled_from(["after", "time_ms", "age_ms"]))
    number = draw(st.integers(0, 2**63 - 1))
    return replay.Fetch(
        id=draw(st.integers(0, 2**32 - 1)),
        budget=draw(st.integers(1, 2**40 - 1)),
        epoch=draw(st.none() | st.uuids().map(str)),
        after=number if begin == "after" else None,
        time_ms=number if begin == "time_ms" else None,
        age_ms=number if begin == "age_ms" else None,
        filters=draw(filters),
    )


@given(fetches())
def test_a_request_reads_as_it_was_written(asked: replay.Fetch) -> None:
    found, chosen = replay.decode_fetch(replay.encode_fetch(asked))
    assert found == asked
    assert [one.text for one in chosen] == asked.filters


@pytest.mark.badinput("B36")
@given(st.binary(max_size=100))
def test_any_bytes_are_a_request_or_raise_wire_error_and_nothing_else(data: bytes) -> None:
    try:
        replay.decode_fetch(data)
    except WireError:
        pass


values = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4)
members = st.sampled_from([*replay.Fetch.__struct_fields__, "other"])


@given(st.dictionaries(members, values | st.lists(values, max_size=3)))
def test_any_object_is_a_request_or_raises_wire_error_and_nothing_else(found: dict[str, object]) -> None:
    for asked in (found, {"id": 1, "budget": 1, "after": 0, **found}):
        try:
            request, _ = replay.decode_fetch(json.dumps(asked).encode())
        except WireError:
            continue
        assert 0 <= request.id < 2**32 and request.budget > 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"id":1,"budget":1}', Reason.MALFORMED),
        ('{"id":1,"budget":1,"after":0,"time_ms":0}', Reason.MALFORMED),
        ('{"id":-1,"budget":1,"after":0}', Reason.MALFORMED),
        ('{"id":1,"budget":0,"after":0}', Reason.MALFORMED),
        ('{"id":1,"budget":1,"after":-1}', Reason.MALFORMED),
        ('{"id":1,"budget":1,"after":9223372036854775808}', Reason.MALFORMED),
        ('{"id":1,"budget":1,"after":0,"op":"eval"}', Reason.MALFORMED),
        ('{"id":1,"budget":1,"after":0,"filters":["a..b"]}', Reason.TOPIC),
        ('{"id":1,"budget":1,"after":0,"filters":["(a+)+$"]}', Reason.TOPIC),
        (json.dumps({"id": 1, "budget": 1, "after": 0, "filters": ["a" * 256]}), Reason.TOPIC),
        (json.dumps({"id": 1, "budget": 1, "after": 0, "filters": ["a"] * 257}), Reason.MALFORMED),
        (" " * (replay.REQUEST_BYTES + 1), Reason.OVERSIZE),
        ("[" * 10_000, Reason.JSON),
        ("", Reason.JSON),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused(text: str, reason: Reason) -> None:
    with pytest.raises(WireError) as caught:
        replay.decode_fetch(text.encode())
    assert caught.value.reason is reason


@given(st.sampled_from(replay.Kind), st.integers(0, 2**32 - 1))
def test_the_header_of_an_answer_reads_as_it_was_written(kind: replay.Kind, request: int) -> None:
    assert replay.decode_header(replay.answer_header(kind, request)) == (kind, request)


@given(st.binary(max_size=7))
def test_any_bytes_are_the_header_of_an_answer_or_raise_wire_error(data: bytes) -> None:
    try:
        replay.decode_header(data)
    except WireError as error:
        assert error.reason is Reason.MALFORMED


ranges = st.tuples(st.integers(1, 99), st.integers(0, 99)).map(lambda found: (found[0], found[0] + found[1]))
facts = (
    st.builds(replay.Start, epoch=st.uuids().map(str), after=st.integers(0, 2**63 - 1)).map(
        lambda fact: (replay.Kind.START, fact)
    )
    | st.builds(
        replay.End, through=st.integers(0, 2**63 - 1), end=st.booleans(), lost=st.lists(ranges, max_size=3)
    ).map(lambda fact: (replay.Kind.END, fact))
    | st.builds(replay.Failure, code=st.text("ab"), text=st.text("ab")).map(lambda fact: (replay.Kind.ERROR, fact))
)


@given(facts)
def test_the_facts_of_an_answer_read_as_they_were_written(found: tuple[replay.Kind, replay.Start]) -> None:
    kind, fact = found
    assert replay.decode_fact(kind, replay.encode_fact(fact)) == fact


@pytest.mark.badinput("B36")
@given(st.sampled_from(replay.Kind), st.binary(max_size=60))
def test_any_bytes_are_the_facts_of_an_answer_or_raise_wire_error(kind: replay.Kind, data: bytes) -> None:
    try:
        replay.decode_fact(kind, data)
    except WireError:
        pass


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (replay.Kind.START, '{"epoch":"x","after":-1}'),
        (replay.Kind.START, '{"epoch":"x","after":9223372036854775808}'),
        (replay.Kind.END, '{"through":-1,"end":true}'),
        (replay.Kind.END, '{"through":1,"end":true,"lost":[[5,4]]}'),
        (replay.Kind.END, '{"through":1,"end":true,"lost":[[0,4]]}'),
        (replay.Kind.END, '{"through":1,"end":true,"lost":[[1]]}'),
    ],
)
def test_facts_that_cannot_be_are_refused(kind: replay.Kind, text: str) -> None:
    with pytest.raises(WireError):
        replay.decode_fact(kind, text.encode())


@pytest.mark.badinput("B36")
def test_pickles_are_refused_as_requests_and_as_answers() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps({"id": 1, "budget": 1, "after": 0}, protocol)
        with pytest.raises(WireError):
            replay.decode_fetch(data)
        with pytest.raises(WireError):
            replay.decode_fact(replay.Kind.END, data)
