"""The bytes between the relay and its clients."""

from __future__ import annotations

import json
import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.errors import (
    ConfigError,
    DeadlineExceeded,
    FedbusError,
    JournalWriteError,
    MessageError,
    QueueFull,
    Reason,
    TrustError,
    WireError,
)
from fedbus.model.receipt import RelayReceipt
from fedbus.transport import relay_protocol as protocol
from fedbus.transport.relay_protocol import Request, Splitter, Unavailable

SUBMISSION = "019ab000-0000-7000-8000-000000000000"

text = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1, max_size=100)
requests = st.builds(
    Request,
    do=st.just("publish"),
    endpoint=text,
    topic=text,
    submission=st.floats(0, 4e9).map(protocol.new_submission),
    again=st.booleans(),
    dataschema=st.none() | text,
    traceparent=st.none() | text,
    body=st.binary(max_size=300),
)


def header(**members: object) -> bytes:
    encoded = json.dumps(
        {"version": 1, "do": "publish", "endpoint": "a.b", "topic": "c", "submission": SUBMISSION, **members}
    ).encode()
    return len(encoded).to_bytes(4, "big") + encoded


@given(requests)
def test_a_request_comes_out_as_it_went_in(request: Request) -> None:
    assert protocol.decode_request(protocol.encode_request(request)) == request


@given(st.binary(max_size=300) | st.binary(max_size=60).map(lambda data: len(data).to_bytes(4, "big") + data))
def test_any_bytes_are_a_request_or_a_wire_error(data: bytes) -> None:
    try:
        request = protocol.decode_request(data)
    except WireError:
        return
    assert request.do in ("publish", "status")


@given(st.dictionaries(st.sampled_from(["version", "do", "endpoint", "again", "submission", "more"]), st.none() | text))
def test_any_header_is_a_request_or_a_wire_error(members: dict[str, object]) -> None:
    try:
        protocol.decode_request(header(**members))
    except WireError:
        return
    assert set(members) <= {"endpoint"}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"version": 2}, Reason.VERSION),
        ({"version": True}, Reason.VERSION),
        ({"do": "stop"}, Reason.MALFORMED),
        ({"again": 1}, Reason.MALFORMED),
        ({"submission": SUBMISSION.upper()}, Reason.MALFORMED),
        ({"submission": str(uuid.uuid4())}, Reason.MALFORMED),
        ({"endpoint": ["a"]}, Reason.MALFORMED),
        ({"priority": "high"}, Reason.MALFORMED),
        ({"topic": "a\0"}, Reason.TEXT),
        ({"topic": "x" * 9000}, Reason.MALFORMED),
    ],
)
def test_a_header_that_is_not_as_specified_is_refused(members: dict[str, object], reason: Reason) -> None:
    with pytest.raises(WireError) as caught:
        protocol.decode_request(header(**members))
    assert caught.value.reason is reason


@pytest.mark.badinput("B8")
def test_a_header_with_a_member_twice_is_refused() -> None:
    twice = b'{"version":1,"do":"status","endpoint":"a.b","endpoint":"c.d"}'
    with pytest.raises(WireError):
        protocol.decode_request(len(twice).to_bytes(4, "big") + twice)


@pytest.mark.parametrize("bad", ["\udc80", "a\0b", "x" * 9000])
def test_attributes_that_cannot_travel_are_an_error_of_the_message(bad: str) -> None:
    with pytest.raises(MessageError):
        protocol.encode_request(Request("publish", "a.b", "c", SUBMISSION, dataschema=bad))


@given(st.lists(st.binary(min_size=1, max_size=50)), st.data())
def test_frames_come_out_whole_however_the_stream_is_cut(contents: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(map(protocol.frame, contents))
    splitter = Splitter(50)
    found: list[bytes] = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        splitter.feed(stream[:cut])
        stream = stream[cut:]
        # whoever stops in the middle goes on there
        if data.draw(st.booleans()):
            found += splitter.frames()
        else:
            frames = splitter.frames()
            found += [one for one in [next(frames, None)] if one is not None]
            frames.close()
    found += splitter.frames()
    assert found == contents
    assert splitter.held == 0


@pytest.mark.badinput("B2")
@pytest.mark.parametrize("start", [b"\0\0\0\0", b"\0\0\0\x33", b"\xff\xff\xff\xff", b"GET / HTTP/1.1\r\n"])
def test_a_length_beyond_the_limit_is_refused_before_its_bytes_come(start: bytes) -> None:
    splitter = Splitter(50)
    splitter.feed(protocol.frame(b"good") + start)
    frames = splitter.frames()
    assert next(frames) == b"good"
    with pytest.raises(WireError):
        next(frames)


@given(st.floats(0, 2**47 / 1000))
def test_a_submission_is_a_uuid_of_version_7_and_tells_its_time(wall: float) -> None:
    submission = protocol.new_submission(wall)
    parsed = uuid.UUID(submission)
    assert (parsed.version, parsed.variant, str(parsed)) == (7, uuid.RFC_4122, submission)
    assert protocol.is_submission(submission)
    assert protocol.submission_key(submission) == parsed.bytes
    assert protocol.submitted_ms(parsed.bytes) == int(wall * 1000)


def test_no_two_submissions_are_the_same() -> None:
    wall = time.time()
    assert len({protocol.new_submission(wall) for _ in range(10_000)}) == 10_000


def test_a_receipt_comes_out_as_it_went_in() -> None:
    receipt = RelayReceipt("a.b.c", "koji.hook01", "epoch", 7, "id", "time", SUBMISSION)
    assert protocol.decode_answer(protocol.encode_receipt(receipt)) == protocol.Answer(SUBMISSION, receipt=receipt)
    assert not receipt.spooled


@pytest.mark.parametrize(
    "error",
    [
        MessageError(Reason.NUMBER, "NaN"),
        TrustError(Reason.POLICY, "no"),
        Unavailable("not now"),
        JournalWriteError("disk full"),
        QueueFull("full"),
        DeadlineExceeded("who knows"),
        WireError(Reason.VERSION, "too new"),
        ConfigError("no such group"),
        FedbusError("something"),
    ],
)
def test_an_error_is_raised_on_the_other_side_as_what_it_was(error: FedbusError) -> None:
    answer = protocol.decode_answer(protocol.encode_error(error, SUBMISSION))
    assert answer.submission == SUBMISSION
    assert type(answer.error) is type(error)
    assert str(answer.error) == str(error)
    assert getattr(answer.error, "reason", None) == getattr(error, "reason", None)


@given(
    st.binary(max_size=200) | st.recursive(st.none() | st.text(), st.lists).map(lambda one: json.dumps(one).encode())
)
def test_any_answer_is_understood_or_a_wire_error(data: bytes) -> None:
    try:
        protocol.decode_answer(data)
    except WireError:
        pass
