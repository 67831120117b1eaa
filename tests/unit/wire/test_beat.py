"""Beats: what was said comes back, and any bytes at all are a beat or a refusal."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.errors import Reason, WireError
from fedbus.trust.proof import verify_beat
from fedbus.trust.verifier import Verifier
from fedbus.wire import beat
from tests.vectors import make

fields = st.text("ab_", min_size=1, max_size=3)
topics = st.lists(fields, min_size=1, max_size=4).map(".".join)


@st.composite
def facts(draw: st.DrawFn) -> beat.BeatFacts:
    head = draw(st.integers(0, 2**63 - 1))
    window = draw(st.integers(0, head))
    heads = draw(st.dictionaries(topics, st.integers(window + 1, head), max_size=6)) if window < head else {}
    return beat.BeatFacts(
        endpoint=make.BODHI.name,
        epoch=str(draw(st.uuids())),
        start=draw(st.integers(1, head + 1)),
        head=head,
        window=window,
        topics=heads,
        sent_at_ms=draw(st.integers(0, 2**60)),
        interval_ms=draw(st.integers(1, 2**40)),
    )


@given(facts())
def test_what_a_beat_says_comes_back(said: beat.BeatFacts) -> None:
    found = beat.decode(beat.encode(said, sign=make.BODHI.sign, certificate=make.BODHI.certificate))
    assert found.facts == said
    assert found.certificate == make.BODHI.certificate
    assert found.statement() == beat.beat_statement(make.BODHI.certificate, found.payload)


@given(facts(), topics)
def test_the_head_below_a_prefix_is_that_of_the_last_topic_below_it(said: beat.BeatFacts, prefix: str) -> None:
    found = beat.decode(beat.encode(said, sign=make.BODHI.sign, certificate=make.BODHI.certificate))
    below = [
        last for topic, last in said.topics.items() if topic.split(".")[: prefix.count(".") + 1] == prefix.split(".")
    ]
    assert found.head_below(prefix) == max(below, default=0)
    assert found.head_below("") == said.head


@pytest.mark.badinput("B36")
@given(st.binary(max_size=100), st.binary(max_size=20))
def test_any_bytes_are_a_beat_or_raise_wire_error_and_nothing_else(data: bytes, name: bytes) -> None:
    for frame in (data, beat.MARK + data, make.beat_frame(name, b"signature", b"certificate", data)):
        try:
            beat.decode(frame)
        except WireError:
            pass


@given(st.data())
def test_any_damaged_beat_raises_wire_error_and_nothing_else(data: st.DataObject) -> None:
    frame = bytearray(make.beat_of(make.BODHI))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(frame)))
        frame[start : start + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    try:
        beat.decode(bytes(frame))
    except WireError:
        pass


def refused(frame: bytes) -> Reason:
    with pytest.raises(WireError) as caught:
        beat.decode(frame)
    return caught.value.reason


@pytest.mark.badinput("B2")
def test_a_beat_over_the_limit_is_refused_by_its_size_before_anything_else() -> None:
    assert refused(b"\xff" * (beat.BEAT_BYTES + 1)) is Reason.OVERSIZE


def test_a_beat_of_a_thousand_of_the_longest_topics_fits() -> None:
    heads = {f"{number:0255d}": 5 for number in range(1000)}
    assert beat.decode(make.beat_of(make.KOJI, window=4, topics=heads)).facts.topics == heads


@pytest.mark.badinput("B18")
def test_an_unsigned_beat_is_refused() -> None:
    payload = beat.decode(make.beat_of(make.KOJI)).payload
    assert refused(make.beat_frame(b"koji.build01", b"", b"x", payload)) is Reason.UNSIGNED
    assert refused(make.beat_frame(b"koji.build01", b"x", b"", payload)) is Reason.UNSIGNED


@pytest.mark.badinput("B13")
@pytest.mark.parametrize("name", beat.BeatFacts.__struct_fields__)
@pytest.mark.parametrize("value", ["null", '"x"', "1.5", "true", "[]", "-1", "9" * 30, '{"a":"b"}'])
def test_a_member_that_cannot_be_right_is_refused(name: str, value: str) -> None:
    import json

    said = json.loads(beat.decode(make.beat_of(make.KOJI)).payload)
    del said[name]
    text = json.dumps(said)[:-1] + f',"{name}":{value}}}'
    assert refused(make.beat_saying(make.KOJI, text.encode())) in (
        Reason.JSON,
        Reason.MALFORMED,
        Reason.EPOCH,
        Reason.TOPIC_MISMATCH,
    )
    assert refused(make.beat_saying(make.KOJI, json.dumps(said).encode())) is Reason.JSON


@pytest.mark.badinput("B36")
def test_a_pickle_in_place_of_the_payload_is_refused() -> None:
    said = {"endpoint": "koji.build01", "head": 1}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert refused(make.beat_saying(make.KOJI, pickle.dumps(said, protocol))) is Reason.JSON


@pytest.mark.badinput("B18")
def test_a_beat_is_not_believed_with_the_signature_of_a_seal_nor_a_seal_with_that_of_a_beat(verifier: Verifier) -> None:
    good = beat.decode(make.beat_of(make.KOJI))
    verify_beat(verifier, good)
    assert not good.statement().startswith(b"fedbus seal 1\0")
