"""Parcels: what is laid out comes back, what was changed is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedbus.errors import Reason, Refused, TrustError, WireError
from fedbus.model.limits import Limits
from fedbus.trust.proof import verify_beat, verify_parcel
from fedbus.trust.verifier import Verifier
from fedbus.wire import beat, merkle, parcel
from tests.support import open_parcel
from tests.vectors import make

MOST = 2**22
FIXTURE_IS_CONSTANT = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

fields = st.text("abz09_-", min_size=1, max_size=6)
topics = st.lists(fields, min_size=1, max_size=8).map(".".join)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[parcel.Group], int]:
    first = draw(st.integers(1, 2**63 - 100))
    names = draw(st.lists(topics, min_size=1, max_size=5, unique=True))
    contents = [draw(st.lists(st.binary(max_size=40), min_size=1, max_size=7)) for _ in names]
    size = sum(map(len, contents))
    groups = []
    for name, envelopes in zip(names, contents, strict=True):
        chain = []
        most = size
        for _ in name.split("."):
            most = draw(st.integers(len(envelopes), most))
            chain.append((draw(st.integers(0, first - 1)), most))
        groups.append(parcel.Group(name.encode(), parcel.chain_block(chain), envelopes))
    return groups, first


def seal(groups: list[parcel.Group], first: int, **changes: Any) -> list[tuple[int, str, bytes]]:
    who = make.BODHI
    options: dict[str, Any] = {"parcel_bytes": 2**17, "parcel_messages": 3, **changes}
    return parcel.seal(
        groups,
        endpoint=who.name.encode(),
        epoch=make.EPOCH_BYTES,
        first=first,
        sign=who.sign,
        certificate=who.certificate,
        **options,
    )


@given(batches(), st.integers(1, 5), st.integers(1, 60))
def test_what_was_sealed_comes_back_and_every_message_of_it_has_one_statement(
    batch: tuple[list[parcel.Group], int], most: int, most_bytes: int
) -> None:
    groups, first = batch
    size = sum(len(group.envelopes) for group in groups)
    statements = set()
    found: dict[str, list[bytes]] = {}
    start = 0
    for count, topic, frame in seal(groups, first, parcel_messages=most, parcel_bytes=most_bytes):
        one = parcel.decode(frame, parcel_bytes=MOST)
        assert (one.topic, one.start, len(one.envelopes), one.first, one.size) == (topic, start, count, first, size)
        assert one.endpoint == make.BODHI.name
        assert one.epoch == make.EPOCH
        assert one.last == first + size - 1
        assert count <= most
        assert count == 1 or sum(map(len, one.envelopes)) <= most_bytes
        statements.add(one.statement())
        found.setdefault(topic, []).extend(one.envelopes)
        for index in range(count):
            alone = parcel.decode(one.single(index), parcel_bytes=MOST)
            assert alone.envelopes == [one.envelopes[index]]
            assert alone.start == start + index
            assert alone.chain == one.chain
            statements.add(alone.statement())
        assert one.singles() == [one.single(index) for index in range(count)]
        start += count
    assert start == size
    assert len(statements) == 1
    assert found == {group.topic.decode(): group.envelopes for group in groups}


@given(batches())
def test_a_level_of_the_chain_reads_as_it_was_written(batch: tuple[list[parcel.Group], int]) -> None:
    groups, first = batch
    size = sum(len(group.envelopes) for group in groups)
    for _, _, frame in seal(groups, first):
        one = parcel.decode(frame, parcel_bytes=MOST)
        assert one.level(0) == (first - 1, size)
        entries = [one.level(depth) for depth in range(1, one.topic.count(".") + 2)]
        assert parcel.chain_block(entries) == one.chain


@pytest.mark.badinput("B1")
@pytest.mark.badinput("B36")
@given(st.binary(max_size=300))
def test_any_bytes_are_a_parcel_or_raise_wire_error_and_nothing_else(data: bytes) -> None:
    try:
        parcel.decode(data, parcel_bytes=MOST).statement()
    except WireError:
        pass


@pytest.mark.badinput("B36")
@given(batches(), st.data())
def test_any_damaged_parcel_raises_wire_error_and_nothing_else(
    batch: tuple[list[parcel.Group], int], data: st.DataObject
) -> None:
    frame = bytearray(data.draw(st.sampled_from(seal(*batch)))[2])
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(frame)))
        stop = data.draw(st.integers(start, min(len(frame), start + 12)))
        frame[start:stop] = data.draw(st.binary(max_size=12))
    try:
        one = parcel.decode(bytes(frame), parcel_bytes=MOST)
        assert sum(map(len, one.envelopes)) < len(frame)
        one.statement()
    except WireError:
        pass


def take(frame: bytes, verifier: Verifier) -> None:
    """What a subscriber does with a frame from the network."""
    if frame[:1] == beat.MARK:
        verify_beat(verifier, beat.decode(frame))
        return
    one = parcel.decode(frame, parcel_bytes=MOST)
    identity = verify_parcel(verifier, one)
    _, refused = open_parcel(one, identity.name, Limits())
    if refused:
        raise refused[0]


@pytest.mark.badinput("B21")
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.parametrize("who", [make.KOJI, make.BODHI], ids=["P-256", "Ed25519"])
@pytest.mark.parametrize("what", ["single", "part", "beat"])
def test_every_single_bit_flip_is_refused(who: make.Identity, what: str, verifier: Verifier) -> None:
    frames = {"single": make.single(who), "part": make.seven(who)[0], "beat": make.beat_of(who)}
    frame = frames[what]
    take(frame, verifier)
    for bit in range(8 * len(frame)):
        changed = bytearray(frame)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Refused):
            take(bytes(changed), verifier)


@pytest.mark.badinput("B21")
def test_no_bit_of_a_certificate_can_change_even_where_the_certificate_would_still_be_good(verifier: Verifier) -> None:
    one = parcel.decode(make.single(make.KOJI), parcel_bytes=MOST)
    statement = one.statement()
    other = make.resign(one.frame, one.signature, make.reissued())
    verifier.identify(make.reissued())
    assert parcel.decode(other, parcel_bytes=MOST).statement() != statement
    with pytest.raises(TrustError) as caught:
        take(other, verifier)
    assert caught.value.reason is Reason.SIGNATURE


@pytest.mark.badinput("B20")
@FIXTURE_IS_CONSTANT
@given(signature=st.binary(min_size=1, max_size=256))
def test_any_other_signature_is_refused_with_one_constant_reason(signature: bytes, verifier: Verifier) -> None:
    frame = make.resign(make.single(make.KOJI), signature)
    with pytest.raises(TrustError) as caught:
        take(frame, verifier)
    assert caught.value.reason is Reason.SIGNATURE


@pytest.mark.badinput("B18")
@pytest.mark.badinput("B19")
def test_a_parcel_without_signature_or_certificate_is_refused_as_unsigned() -> None:
    frame = make.single(make.KOJI)
    for signature, leaf in ((b"", make.KOJI.certificate), (b"x", b""), (b"", b"")):
        with pytest.raises(WireError) as caught:
            parcel.decode(make.resign(frame, signature, leaf), parcel_bytes=MOST)
        assert caught.value.reason is Reason.UNSIGNED


@pytest.mark.badinput("B19")
def test_the_certificate_and_not_the_message_chooses_the_algorithm(verifier: Verifier) -> None:
    frame = make.single(make.KOJI)
    statement = parcel.decode(frame, parcel_bytes=MOST).statement()
    with pytest.raises(TrustError) as caught:
        take(make.resign(frame, make.BODHI.sign(statement)), verifier)
    assert caught.value.reason is Reason.SIGNATURE


@pytest.mark.badinput("B2")
def test_a_parcel_over_the_limit_is_refused_by_its_size_before_anything_else() -> None:
    with pytest.raises(WireError) as caught:
        parcel.decode(b"\xff" * 101, parcel_bytes=100)
    assert caught.value.reason is Reason.OVERSIZE


@pytest.mark.badinput("B1")
def test_an_empty_frame_is_refused() -> None:
    with pytest.raises(WireError) as caught:
        parcel.decode(b"", parcel_bytes=MOST)
    assert caught.value.reason is Reason.FRAMES


@pytest.mark.badinput("B3")
@pytest.mark.parametrize(
    "topic",
    [
        b"",
        b"a" * 256,
        b"a..b",
        b"a.b.",
        b".a",
        b"a.*",
        b"a.#",
        b"a b",
        b"a\n",
        b"a\x1b[31m",
        b"A",
        b"\xff\xfe",
        "ä".encode(),
        b"\x02",
    ],
)
def test_a_frame_with_a_bad_topic_is_refused(topic: bytes) -> None:
    frame = make.single(make.KOJI)
    with pytest.raises(WireError) as caught:
        parcel.decode(topic + frame[frame.index(b"\0") :], parcel_bytes=MOST)
    assert caught.value.reason is Reason.TOPIC


@pytest.mark.badinput("B32")
def test_a_message_whose_type_is_not_the_topic_of_its_frame_is_refused(verifier: Verifier) -> None:
    event = make.event(make.KOJI, "org.example.dev.koji.a.b", 5)
    frame = make.seal(make.KOJI, [make.group("org.example.dev.koji.a.c", [event], prior=4)], 5)[0]
    with pytest.raises(WireError) as caught:
        take(frame, verifier)
    assert caught.value.reason is Reason.TOPIC_MISMATCH


@pytest.mark.badinput("B32")
def test_the_topic_of_a_frame_cannot_be_exchanged_for_another(verifier: Verifier) -> None:
    frame = make.single(make.KOJI).replace(b"complete", b"canceled", 1)
    with pytest.raises(TrustError) as caught:
        take(frame, verifier)
    assert caught.value.reason is Reason.SIGNATURE


def test_one_bad_envelope_in_a_good_parcel_costs_that_message_alone(verifier: Verifier) -> None:
    topic = "org.example.dev.koji.a.b"
    events = [make.event(make.KOJI, topic, one) for one in (5, 6, 7)]
    events[1] = b"{}"
    frame = make.seal(make.KOJI, [make.group(topic, events, prior=4)], 5)[0]
    one = parcel.decode(frame, parcel_bytes=MOST)
    messages, refused = open_parcel(one, verify_parcel(verifier, one).name, Limits())
    assert [message.sequence for message in messages] == [5, 7]
    assert [error.reason for error in refused] == [Reason.ENVELOPE]


def test_a_message_taken_from_a_parcel_still_proves_itself(verifier: Verifier) -> None:
    for frame in make.seven(make.KOJI):
        one = parcel.decode(frame, parcel_bytes=MOST)
        messages, _ = open_parcel(one, make.KOJI.name, Limits())
        for message in messages:
            take(message.sealed, verifier)
            assert message.envelope in message.sealed


def test_a_batch_needs_one_signature_however_many_parcels_it_becomes() -> None:
    signed = []

    def sign(statement: bytes) -> bytes:
        signed.append(statement)
        return b"signature"

    groups = [make.group(f"a.b{number}", [b"x"] * 5, prior=0, inside=5) for number in range(4)]
    frames = parcel.seal(
        groups,
        endpoint=b"a",
        epoch=make.EPOCH_BYTES,
        first=1,
        sign=sign,
        certificate=b"c",
        parcel_bytes=10,
        parcel_messages=2,
    )
    assert len(frames) == 12
    assert len(signed) == 1
    assert all(parcel.decode(frame, parcel_bytes=MOST).statement() == signed[0] for _, _, frame in frames)


def test_the_most_that_a_batch_can_hold_has_a_path_that_fits() -> None:
    leaves = [bytes(32)] * parcel.MAX_SIZE
    assert len(merkle.range_path(merkle.levels(leaves), 12345, 3)) < 256


@pytest.mark.badinput("B8")
def test_an_id_with_a_quote_in_it_does_not_hide_a_second_body(verifier: Verifier) -> None:
    """Envelopes of one batch are compared as bytes with the first one's id, which must not take part unescaped."""
    topic, shared = "org.example.dev.koji.a.b", '0","data":{"x":1},"z":"a'
    events = [make.event(make.KOJI, topic, one) for one in (5, 6)]
    plain = b"019bbf72-3c00-7000-8000-"
    assert len(shared) == len(plain)
    events[0] = events[0].replace(plain, shared.replace('"', '\\"').encode())
    events[1] = events[1].replace(plain, shared.encode())
    frame = make.seal(make.KOJI, [make.group(topic, events, prior=4)], 5)[0]
    one = parcel.decode(frame, parcel_bytes=MOST)
    messages, refused = open_parcel(one, verify_parcel(verifier, one).name, Limits())
    assert [(message.sequence, message.id[:24]) for message in messages] == [(5, shared)]
    assert [error.reason for error in refused] == [Reason.DUPLICATE_KEY]
