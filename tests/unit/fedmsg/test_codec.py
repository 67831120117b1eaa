"""The bytes of fedmsg: whatever comes, it is a message or refused with a reason."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fedbus.errors import Reason, WireError
from fedbus.fedmsg import codec
from fedbus.model.limits import Limits

LIMITS = Limits()
TOPIC = "org.example.dev.koji.build"
json_values = some.recursive(
    some.none()
    | some.booleans()
    | some.integers(-(2**63), 2**63 - 1)
    | some.floats(allow_nan=False, allow_infinity=False)
    | some.text(some.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
    lambda inner: (
        some.lists(inner, max_size=4)
        | some.dictionaries(
            some.text(some.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def whole(**members: Any) -> dict[str, Any]:
    return {"topic": TOPIC, "msg": {}, "msg_id": "2026-x", "timestamp": 1, "i": 1, **members}


def reason_of(*frames: bytes) -> Reason:
    with pytest.raises(WireError) as caught:
        codec.parse(frames, LIMITS)
    return caught.value.reason


@given(some.lists(some.binary(max_size=64), max_size=4))
def test_any_frames_parse_or_raise_wire_error_and_nothing_else(frames: list[bytes]) -> None:
    try:
        codec.parse(frames, LIMITS)
    except WireError:
        pass


@given(json_values)
def test_whatever_stands_in_the_second_frame_is_a_message_or_refused(value: Any) -> None:
    try:
        codec.parse((TOPIC.encode(), json.dumps(value).encode()), LIMITS)
    except WireError:
        pass


@given(json_values)
def test_what_is_signed_is_what_pythons_json_writes_with_sorted_keys(value: Any) -> None:
    members = whole(msg=value)
    envelope = codec.parse((TOPIC.encode(), json.dumps(members, indent=1).encode()), LIMITS)
    assert envelope.signed == json.dumps(members, sort_keys=True, separators=(",", ":")).encode()
    again = codec.parse((TOPIC.encode(), codec.canonical(members)), LIMITS)
    assert again.signed == envelope.signed
    assert again.body == (value if isinstance(value, dict) else {"msg": value})


@pytest.mark.badinput("B1")
@pytest.mark.badinput("B3")
@pytest.mark.badinput("B6")
@pytest.mark.badinput("B12")
@pytest.mark.badinput("B13")
@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ((), Reason.FRAMES),
        ((b"a",), Reason.FRAMES),
        ((b"a", b"{}", b""), Reason.FRAMES),
        ((b"", b"{}"), Reason.TOPIC),
        ((b"a" * 256, b"{}"), Reason.TOPIC),
        ((b"a..b", b"{}"), Reason.TOPIC),
        ((b"a.b.", b"{}"), Reason.TOPIC),
        ((b"a.*", b"{}"), Reason.TOPIC),
        ((b"a b", b"{}"), Reason.TOPIC),
        ((b"a\n", b"{}"), Reason.TOPIC),
        (("a.é".encode(), b"{}"), Reason.TOPIC),
        ((b"\xff", b"{}"), Reason.ENCODING),
        ((b"a.b", b"\xef\xbb\xbf{}"), Reason.ENCODING),
        ((b"a.b", b"null"), Reason.JSON),
        ((b"a.b", b"[]"), Reason.JSON),
        ((b"a.b", b"3"), Reason.JSON),
        ((b"a.b", b"{} {}"), Reason.JSON),
        ((b"a.b", b"{}"), Reason.ENVELOPE),
        ((b"a.b", b'{"topic":"a.b"}'), Reason.ENVELOPE),
        ((b"a.b", b'{"topic":3,"msg":{}}'), Reason.ENVELOPE),
        ((b"a.b", b'{"topic":"a.b","msg":{},"i":true}'), Reason.ENVELOPE),
        ((b"a.b", b'{"topic":"a.b","msg":{},"timestamp":"now"}'), Reason.ENVELOPE),
        ((b"a.b", b'{"topic":"a.b","msg":{},"timestamp":-1}'), Reason.ENVELOPE),
        ((b"a.b", b'{"topic":"a.b","msg":{},"signature":1}'), Reason.ENVELOPE),
        ((b"a.b", b'{"topic":"a.b","msg":{"a":1,"a":2}}'), Reason.DUPLICATE_KEY),
        ((b"a.b", b'{"topic":"a.b","msg":NaN}'), Reason.NUMBER),
        ((b"a.b", b'{"topic":"a.b","msg":123456789012345678901234}'), Reason.NUMBER),
        ((b"a.b", b'{"topic":"a.b","msg":"\\u0000"}'), Reason.TEXT),
        ((b"a.b", b'{"topic":"a.b","msg":"\\ud800"}'), Reason.TEXT),
        ((b"a.b", b'{"topic":"a.b","msg":' + b"[" * 70 + b"]" * 70 + b"}"), Reason.NESTING),
        ((b"a.b", b'{"topic":"a.b","msg":' + b"[" * 100_000), Reason.NESTING),
        ((b"a.b", b" " * (2**20 + 1)), Reason.OVERSIZE),
    ],
)
def test_what_is_no_message_is_refused_with_a_reason(frames: tuple[bytes, ...], reason: Reason) -> None:
    assert reason_of(*frames) is reason


@pytest.mark.badinput("B32")
def test_the_topic_frame_must_say_what_the_object_says() -> None:
    assert reason_of(b"org.example.dev.bodhi.update", codec.canonical(whole())) is Reason.TOPIC_MISMATCH


@given(some.binary(max_size=300))
def test_base64_is_read_as_it_is_written_and_in_one_line(data: bytes) -> None:
    assert codec.decode_base64(codec.encode_base64(data)) == data
    assert codec.decode_base64(base64.b64encode(data).decode()) == data


@pytest.mark.badinput("B20")
@pytest.mark.parametrize("text", ["a", "====", "YWJj\n\nYWJj", "YW\nJj", "YWJj ", "ä", "YWJj*"])
def test_base64_that_somebody_has_altered_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        codec.decode_base64(text)


def test_what_an_archive_adds_is_undone() -> None:
    record = whole(timestamp=1504643075.0, headers={}, source_name="datanommer", source_version="0.8")
    found = [one.fields for one in codec.restored(record)]
    assert [one["timestamp"] for one in found] == [1504643075, 1504643075.0]
    assert type(found[0]["timestamp"]) is int
    assert all(set(one) == {"topic", "msg", "msg_id", "timestamp", "i"} for one in found)
    (kept,) = codec.restored(whole(timestamp=1349201325.25, headers={"a": 1}))
    assert kept.fields["timestamp"] == 1349201325.25 and kept.fields["headers"] == {"a": 1}
