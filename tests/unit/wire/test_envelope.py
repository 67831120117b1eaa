"""Envelopes: written and read, and each attribute that disagrees with the seal or is of the wrong type refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.errors import MessageError, Reason, WireError
from fedbus.model.limits import Limits
from fedbus.wire import envelope, strict

LIMITS = Limits()
TOPIC, ENDPOINT, EPOCH = "org.example.dev.koji.build.start", "koji.build01", "018f3c5e-7d2a-7c4b-9a51-3f0e6d8b2c11"
WRITER = envelope.EnvelopeWriter(ENDPOINT, TOPIC, EPOCH)
STAMP = "2026-11-21T12:34:56.123456Z"


def read(data: bytes) -> dict[str, Any]:
    return envelope.decode(data, topic=TOPIC, source=f"fedbus:{ENDPOINT}", epoch=EPOCH, limits=LIMITS)


def attributes() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(envelope.write(b"an id ", 10, WRITER.middle(STAMP), 7, b"", b'{"a":1}'))
    return found


def refused(changed: dict[str, Any]) -> WireError:
    with pytest.raises(WireError) as caught:
        read(json.dumps(changed).encode())
    return caught.value


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), st.integers(-9, 9)),
    st.integers(1, 2**63 - 1),
    st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
)
def test_an_envelope_reads_as_it_was_written(body: dict[str, int], sequence: int, schema: str | None) -> None:
    body = {name.replace("\0", ""): value for name, value in body.items()}
    extra = envelope.optional_attributes(dataschema=schema, traceparent=None)
    data = envelope.write(b"an id ", 10, WRITER.middle(STAMP), sequence, extra, strict.encode(body, LIMITS))
    found = read(data)
    assert found["data"] == body
    assert int(found["sequence"]) == sequence
    assert found.get("dataschema") == schema
    assert found["time"] == STAMP
    assert found["specversion"] == "1.0"


@pytest.mark.badinput("B13")
@pytest.mark.parametrize("value", [5, b"name", ["name"], "na\0me", "na\ud800me"], ids=ascii)
@pytest.mark.parametrize("name", ["dataschema", "traceparent"])
def test_an_optional_attribute_that_readers_would_refuse_is_not_written(name: str, value: object) -> None:
    given: dict[str, Any] = {"dataschema": None, "traceparent": None, name: value}
    with pytest.raises(MessageError, match=f"^{name} "):
        envelope.optional_attributes(**given)


@given(st.binary(max_size=120))
def test_any_bytes_are_an_envelope_or_raise_wire_error_and_nothing_else(data: bytes) -> None:
    for text in (data, b"{" + data + b"}"):
        try:
            read(text)
        except WireError:
            pass


@given(
    st.dictionaries(
        st.sampled_from(sorted(attributes())), st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=3)
    )
)
def test_any_attributes_are_an_envelope_or_raise_wire_error_and_nothing_else(changes: dict[str, Any]) -> None:
    try:
        found = read(json.dumps({**attributes(), **changes}).encode())
    except WireError:
        return
    assert type(found["data"]) is dict and type(found["id"]) is str


@pytest.mark.badinput("B13")
@pytest.mark.parametrize("name", sorted(attributes()))
@pytest.mark.parametrize("value", [None, 5, True, [], "", "x"])
def test_an_attribute_of_another_type_is_refused_with_its_json_pointer(name: str, value: Any) -> None:
    if name == "id" and isinstance(value, str):
        value = {}  # any string can be an id
    error = refused({**attributes(), name: value})
    assert error.reason in (Reason.ENVELOPE, Reason.TOPIC_MISMATCH, Reason.EPOCH)
    assert str(error).startswith(f"/{name} ")


@pytest.mark.badinput("B13")
@pytest.mark.parametrize("name", sorted(attributes()))
def test_a_missing_attribute_is_refused_with_its_json_pointer(name: str) -> None:
    changed = attributes()
    del changed[name]
    error = refused(changed)
    assert error.reason is Reason.ENVELOPE
    assert str(error) == f"/{name} is missing"


@pytest.mark.badinput("B13")
@pytest.mark.badinput("B31")
@pytest.mark.parametrize(
    "stamp",
    [
        "2026-11-21T12:34:56Z",
        "2026-11-21T12:34:56.123Z",
        "2026-11-21 12:34:56.123456Z",
        "2026-11-21T12:34:56.123456+00:00",
        "2026-13-21T12:34:56.123456Z",
        "2026-11-32T12:34:56.123456Z",
        "2026-11-21T24:00:00.000000Z",
        "2026-11-21T12:34:56.123456Z\n",
        "-026-11-21T12:34:56.123456Z",
        "\u0662\u0660\u0662\u0666-11-21T12:34:56.123456Z",
    ],
)
def test_a_time_of_another_form_is_refused(stamp: str) -> None:
    assert str(refused({**attributes(), "time": stamp})).startswith("/time ")


@pytest.mark.badinput("B13")
@pytest.mark.parametrize(
    "text", ["7", f"{7:019d}", f"{7:021d}", f"-{7:019d}", f"{7:019d}\n", "\u0667" * 20, "\u00b2" * 20]
)
def test_a_sequence_of_another_form_is_refused(text: str) -> None:
    assert str(refused({**attributes(), "sequence": text})).startswith("/sequence ")


@pytest.mark.badinput("B13")
@pytest.mark.parametrize("name", ["dataschema", "traceparent"])
def test_an_optional_attribute_is_a_string_where_it_is_there(name: str) -> None:
    assert refused({**attributes(), name: 5}).reason is Reason.ENVELOPE
    assert refused({**attributes(), name: None}).reason is Reason.ENVELOPE
    assert read(json.dumps({**attributes(), name: "x"}).encode())[name] == "x"


@pytest.mark.badinput("B15")
def test_unknown_attributes_are_kept() -> None:
    found = read(json.dumps({**attributes(), "zone": {"a": [1, None]}, "x": 1}).encode())
    assert found["zone"] == {"a": [1, None]}
    assert found["x"] == 1


@pytest.mark.badinput("B32")
def test_an_envelope_of_another_topic_endpoint_or_epoch_than_its_seal_is_refused() -> None:
    assert refused({**attributes(), "type": TOPIC + ".x"}).reason is Reason.TOPIC_MISMATCH
    assert refused({**attributes(), "source": "fedbus:koji.build02"}).reason is Reason.ENVELOPE
    assert refused({**attributes(), "source": ENDPOINT}).reason is Reason.ENVELOPE
    assert refused({**attributes(), "epoch": EPOCH.upper()}).reason is Reason.EPOCH


@given(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)))
def test_times_are_written_as_rfc_3339_says(moment: datetime) -> None:
    moment = moment.replace(tzinfo=UTC)
    text = envelope.rfc3339(moment.timestamp())
    assert len(text) == 27
    assert abs(datetime.fromisoformat(text).timestamp() - moment.timestamp()) < 2e-6


def test_a_time_just_below_a_full_second_is_rounded_into_it() -> None:
    assert envelope.rfc3339(1_800_000_000.9999999) == "2027-01-15T08:00:01.000000Z"
