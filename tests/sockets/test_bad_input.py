"""Bad input on real sockets is refused before any user code, counted by reason, and the next message arrives."""

from __future__ import annotations

import base64
import json
import pickle
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from buses import BODHI, KOJI, Bus, join, take
from forger import START, Forger, fact, identity

from fedbus.errors import Reason
from fedbus.transport.state import Loss
from fedbus.transport.subscriber import Subscriber
from fedbus.wire import parcel, replay
from tests.support import wait_until
from tests.vectors import make

Edit = Callable[[bytes], bytes]


@pytest.fixture
def forger(bus: Bus, tmp_path: Path) -> Iterator[Forger]:
    one = Forger(bus, tmp_path / "forged")
    yield one
    one.close()


@pytest.fixture
def losses() -> list[Loss]:
    return []


@pytest.fixture
def subscriber(bus: Bus, forger: Forger, losses: list[Loss]) -> Iterator[Subscriber]:
    """Has joined the forger's stream and is live."""
    with bus.subscribe(since="beginning", on_loss=losses.append) as one:
        forger.join(one)
        yield one


def rows(table: list[Any], skip: int) -> list[Any]:
    """Each entry of *table* (row, what it is, …) as a case that is marked with its row."""
    return [pytest.param(*one[skip:], id=f"{one[0]} {one[1]}", marks=pytest.mark.badinput(one[0])) for one in table]


def sequences(messages: list[Any]) -> list[int]:
    return [message.sequence for message in messages]


# --- envelopes that the endpoint itself has signed -----------------------------------------------------------------


def attribute(name: str, value: bytes) -> Edit:
    """Put *value*, JSON, in the place of the attribute *name*."""

    def change(envelope: bytes) -> bytes:
        attributes = json.loads(envelope)
        parts = [
            b'"%b":%b' % (key.encode(), value if key == name else json.dumps(one).encode())
            for key, one in attributes.items()
        ]
        return b"{" + b",".join(parts) + b"}"

    return change


def body(data: bytes) -> Edit:
    return attribute("data", data)


def without(name: str) -> Edit:
    return lambda envelope: json.dumps({key: one for key, one in json.loads(envelope).items() if key != name}).encode()


def recoded(codec: str) -> Edit:
    return lambda envelope: envelope.decode().encode(codec)


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


R = Reason
ENVELOPES: list[tuple[str, str, Edit, set[Reason]]] = [
    ("B2", "an envelope over the limit", body(b'{"a":"%b"}' % (b"x" * 2**20)), {R.OVERSIZE}),
    ("B6", "a byte that is no UTF-8", body(b'{"a":"\xff"}'), {R.ENCODING}),
    ("B6", "an overlong form", body(b'{"a":"\xc0\x80"}'), {R.ENCODING}),
    ("B6", "a byte order mark", lambda one: b"\xef\xbb\xbf" + one, {R.ENCODING}),
    ("B6", "UTF-16", recoded("utf-16"), {R.ENCODING}),
    ("B6", "UTF-16 without a mark", recoded("utf-16-le"), {R.ENCODING, R.JSON}),
    ("B6", "UTF-32", recoded("utf-32"), {R.ENCODING}),
    ("B7", "65 levels", body(b'{"a":' + b"[" * 63 + b"]" * 63 + b"}"), {R.NESTING}),
    ("B7", "100 000 levels", body(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), {R.NESTING}),
    ("B7", "100 000 levels, never closed", body(b'{"a":' + b'{"a":' * 100_000), {R.NESTING, R.JSON}),
    ("B8", "a name twice", body(b'{"a":1,"a":1}'), {R.DUPLICATE_KEY}),
    ("B8", "a name twice, deep", body(b'{"a":[{"b":{"c":1,"\\u0063":2}}]}'), {R.DUPLICATE_KEY}),
    ("B8", "an attribute twice", lambda one: b'{"id":"x",' + one[1:], {R.DUPLICATE_KEY}),
    ("B9", "NaN", body(b'{"a":NaN}'), {R.NUMBER, R.JSON}),
    ("B9", "Infinity", body(b'{"a":-Infinity}'), {R.NUMBER, R.JSON}),
    ("B9", "1e999", body(b'{"a":1e999}'), {R.NUMBER}),
    ("B10", "2^63", body(b'{"a":9223372036854775808}'), {R.NUMBER}),
    ("B10", "-2^63 - 1", body(b'{"a":-9223372036854775809}'), {R.NUMBER}),
    ("B10", "5000 digits", body(b'{"a":%b}' % (b"9" * 5000)), {R.NUMBER}),
    ("B10", "-0", body(b'{"a":-0}'), {R.NUMBER}),
    ("B10", "1e400", body(b'{"a":[1e400]}'), {R.NUMBER}),
    ("B11", "a lone surrogate", body(b'{"a":"\\ud800"}'), {R.TEXT}),
    ("B11", "surrogates the wrong way round", body(b'{"\\udc00\\ud800":1}'), {R.TEXT}),
    ("B11", "U+0000", body(b'{"a":"\\u0000"}'), {R.TEXT}),
    ("B12", "bytes behind the object", lambda one: one + b"x", {R.JSON}),
    ("B12", "two objects", lambda one: one + one, {R.JSON}),
    ("B12", "a list", lambda one: b"[" + one + b"]", {R.JSON}),
    ("B12", "a number", lambda one: b"7", {R.JSON}),
    ("B12", "a string", lambda one: json.dumps(one.decode()).encode(), {R.JSON}),
    ("B12", "nothing", lambda one: b"", {R.JSON}),
    ("B13", "/type is", attribute("type", b"7"), {R.ENVELOPE, R.TOPIC_MISMATCH}),
    ("B13", "/data is not", body(b"null"), {R.ENVELOPE}),
    ("B13", "/data is not", body(b'["a"]'), {R.ENVELOPE}),
    ("B13", "/time is not", attribute("time", b"1800000000"), {R.ENVELOPE}),
    ("B13", "/id is not", attribute("id", b"null"), {R.ENVELOPE}),
    ("B13", "/sequence is not", attribute("sequence", b"2"), {R.ENVELOPE}),
    ("B13", "/sequence is not", attribute("sequence", '"0000000000000000000²"'.encode()), {R.ENVELOPE}),
    ("B13", "/specversion is not", attribute("specversion", b"1.0"), {R.ENVELOPE}),
    ("B13", "/datacontenttype is not", attribute("datacontenttype", b'"text/plain"'), {R.ENVELOPE}),
    ("B13", "/source is", attribute("source", b"{}"), {R.ENVELOPE}),
    ("B13", "/source is", attribute("source", b'"fedbus:bodhi.web01"'), {R.ENVELOPE}),
    ("B13", "/epoch is", attribute("epoch", b'"018f3c5e-7d2a-7c4b-9a51-3f0e6d8b2c11"'), {R.EPOCH}),
    ("B13", "/dataschema is not", lambda one: one[:-1] + b',"dataschema":7}', {R.ENVELOPE}),
    *[("B13", f"/{name} is missing", without(name), {R.ENVELOPE}) for name in ("id", "time", "data", "sequence")],
    ("B14", "a list of 400 000", body(b'{"a":[' + b"0," * 400_000 + b"0]}"), {R.COUNT}),
    ("B14", "a name of 1 MB", body(b'{"%b":0}' % (b"k" * 1_000_000)), {R.COUNT}),
    ("B29", "a sequence outside its batch", attribute("sequence", b'"00000000000000000001"'), {R.SEQUENCE}),
    ("B31", "/time is not", attribute("time", b'"2027-13-01T00:00:00.000000Z"'), {R.ENVELOPE}),
    ("B31", "/time is not", attribute("time", b'"-001-01-01T00:00:00.000000Z"'), {R.ENVELOPE}),
    ("B31", "/time is not", attribute("time", b"1000000000000000000"), {R.ENVELOPE}),
    ("B32", "/type is", attribute("type", b'"org.example.dev.koji.build.stop"'), {R.TOPIC_MISMATCH}),
    ("B36", "pickle", lambda one: pickle.dumps({"data": {"n": 1}}), {R.ENCODING, R.JSON}),
]


@pytest.mark.parametrize(("what", "edit", "reasons"), rows(ENVELOPES, 1))
def test_a_signed_envelope_that_is_not_well_formed_is_left_out(
    bus: Bus,
    forger: Forger,
    subscriber: Subscriber,
    losses: list[Loss],
    caplog: pytest.LogCaptureFixture,
    what: str,
    edit: Edit,
    reasons: set[Reason],
) -> None:
    forger.say()
    forger.say(edit=edit)
    forger.say()
    assert sequences(forger.catch_up(subscriber)) == [1, 3]
    assert sum(bus.verifier.rejections.values()) == 1
    assert set(bus.verifier.rejections) <= reasons
    if what.startswith("/"):
        assert what in caplog.text
    with bus.subscribe("koji", since="beginning") as late:  # the same from the journal
        assert sequences(forger.catch_up(late)) == [1, 3]
    assert losses == []


@pytest.mark.badinput("B15")
def test_unknown_attributes_are_kept_and_covered_by_the_signature(forger: Forger, subscriber: Subscriber) -> None:
    forger.say(edit=lambda one: one[:-1] + b',"zone":"cz","x":[1,{"y":null}]}')
    (message,) = forger.catch_up(subscriber)
    assert (message.attributes["zone"], message.attributes["x"]) == ("cz", [1, {"y": None}])
    assert b'"zone":"cz"' in message.envelope
    tampered = message.sealed.replace(b'"zone":"cz"', b'"zone":"sk"')
    forger.send(tampered.replace(struct.pack(">Q", 1), struct.pack(">Q", 2)))
    forger.say()
    assert sequences(forger.catch_up(subscriber)) == [2]


@pytest.mark.badinput("B31")
@pytest.mark.parametrize("stamp", ["1970-01-01T00:00:00.000000Z", "9999-12-31T23:59:59.999999Z"])
def test_a_time_far_off_never_changes_the_order(forger: Forger, subscriber: Subscriber, stamp: str) -> None:
    forger.say()
    forger.say(edit=attribute("time", json.dumps(stamp).encode()))
    forger.say()
    messages = forger.catch_up(subscriber)
    assert sequences(messages) == [1, 2, 3]
    assert messages[1].time == stamp


# --- parcels -------------------------------------------------------------------------------------------------------


def sealed(forger: Forger, topic: str = START, **changes: Any) -> bytes:
    """A parcel that would be the next of the stream, not journaled; *changes* go to the sealing."""
    publisher = forger.publisher
    sequence = publisher.head + 1
    block = make.group(topic, [publisher.envelope(topic, sequence)], prior=sequence - 1)
    epoch = bytes.fromhex(publisher.epoch.replace("-", ""))
    return make.seal(changes.pop("who", publisher.who), [block], sequence, **{"epoch": epoch, **changes})[0]


def resigned(forger: Forger, signature: bytes | Edit, certificate: bytes | None = None) -> bytes:
    """The next parcel with another signature, or with what *signature* makes of the good one."""
    one = parcel.decode(sealed(forger), parcel_bytes=2**20)
    changed = signature(one.signature) if callable(signature) else signature
    head = parcel.head(one.endpoint.encode(), bytes.fromhex(one.epoch.replace("-", "")), one.first, one.size)
    leaf = one.certificate if certificate is None else certificate
    return parcel.encode(one.topic.encode(), head, one.start, changed, leaf, one.chain, one.path, one.envelopes)


def retopiced(forger: Forger, topic: bytes) -> bytes:
    return topic + sealed(forger)[len(START) :]


def as_bodhi(forger: Forger, bus: Bus, name: str) -> bytes:
    """A koji topic under bodhi's valid certificate, said by the endpoint *name*."""
    return sealed(forger, who=identity(bus.settings, BODHI), endpoint=name.encode())


Make = Callable[[Forger, Bus], list[bytes]]
FRAMES: list[tuple[str, str, Make, set[Reason]]] = [
    ("B1", "an empty frame", lambda f, b: [b""], {R.FRAMES}),
    ("B1", "two empty frames", lambda f, b: [b"", b""], {R.FRAMES}),
    ("B1", "two frames", lambda f, b: [sealed(f), b"more"], {R.FRAMES}),
    ("B1", "a hundred frames", lambda f, b: [b"x"] * 100, {R.FRAMES}),
    ("B1", "an empty frame in front", lambda f, b: [b"", sealed(f)], {R.FRAMES}),
    ("B1", "the two frames of fedmsg", lambda f, b: [START.encode(), b'{"msg":{}}'], {R.FRAMES}),
    ("B2", "5 MiB", lambda f, b: [sealed(f) + b"x" * (5 * 2**20)], {R.OVERSIZE}),
    ("B3", "a topic of 256 bytes", lambda f, b: [retopiced(f, b"x" * 256)], {R.TOPIC}),
    ("B3", "a topic without end", lambda f, b: [b"x" * 4096], {R.TOPIC}),
    ("B3", "no topic", lambda f, b: [retopiced(f, b"")], {R.TOPIC}),
    ("B3", "control bytes", lambda f, b: [retopiced(f, b"org.example.dev.koji.\x1b[31m")], {R.TOPIC}),
    ("B3", "two dots", lambda f, b: [retopiced(f, b"org.example.dev.koji..start")], {R.TOPIC}),
    ("B3", "a dot at the end", lambda f, b: [retopiced(f, START.encode() + b".")], {R.TOPIC}),
    ("B3", "wildcards", lambda f, b: [retopiced(f, b"org.example.dev.koji.*.#")], {R.TOPIC}),
    ("B3", "not ASCII", lambda f, b: [retopiced(f, "org.example.dev.koji.žluť".encode())], {R.TOPIC}),
    ("B3", "not UTF-8", lambda f, b: [retopiced(f, b"org.example.dev.\xff\xfe")], {R.TOPIC}),
    ("B18", "no signature", lambda f, b: [resigned(f, b"")], {R.UNSIGNED}),
    ("B18", "no certificate", lambda f, b: [resigned(f, lambda one: one, b"")], {R.UNSIGNED}),
    (
        "B19",
        "one byte changed",
        lambda f, b: [resigned(f, lambda one: one[:-1] + bytes((one[-1] ^ 1,)))],
        {R.SIGNATURE},
    ),
    ("B19", "all zero", lambda f, b: [resigned(f, bytes(70))], {R.SIGNATURE}),
    ("B19", "zero and zero", lambda f, b: [resigned(f, bytes.fromhex("3006020100020100"))], {R.SIGNATURE}),
    (
        "B19",
        "another certificate",
        lambda f, b: [resigned(f, lambda one: one, identity(b.settings, BODHI).certificate)],
        {R.SIGNATURE},
    ),
    ("B19", "another algorithm", lambda f, b: [resigned(f, make.ed("koji.build01").sign(b"x"))], {R.SIGNATURE}),
    ("B20", "too short", lambda f, b: [resigned(f, lambda one: one[:8])], {R.SIGNATURE}),
    ("B20", "too long", lambda f, b: [resigned(f, lambda one: one + bytes(10))], {R.SIGNATURE}),
    ("B20", "300 bytes", lambda f, b: [resigned(f, bytes(300))], {R.SIGNATURE}),
    ("B20", "base64", lambda f, b: [resigned(f, base64.b64encode)], {R.SIGNATURE}),
    ("B20", "base64 with line breaks", lambda f, b: [resigned(f, base64.encodebytes)], {R.SIGNATURE}),
    ("B26", "a certificate of another CA", lambda f, b: [sealed(f, who=make.KOJI)], {R.UNKNOWN_CA}),
    ("B26", "a CA as a leaf", lambda f, b: [ca_as_leaf(f, b)], {R.CERTIFICATE, R.UNKNOWN_CA, R.SIGNATURE}),
    ("B26", "no certificate at all", lambda f, b: [resigned(f, lambda one: one, b"rubbish")], {R.CERTIFICATE}),
    ("B27", "bodhi in koji's name", lambda f, b: [as_bodhi(f, b, KOJI)], {R.ENDPOINT_MISMATCH}),
    ("B27", "koji on bodhi's topic", lambda f, b: [sealed(f, "org.example.dev.bodhi.update.new")], {R.POLICY}),
    ("B27", "an endpoint nobody knows", lambda f, b: [sealed(f, endpoint=b"evil.host")], {R.UNKNOWN_ENDPOINT}),
    ("B28", "8193 bytes of certificate", lambda f, b: [resigned(f, lambda one: one, bytes(8193))], {R.CERTIFICATE}),
    ("B32", "another topic", lambda f, b: [retopiced(f, b"org.example.dev.koji.build.stops")], {R.SIGNATURE}),
    ("B33", "staging", lambda f, b: [sealed(f, "org.example.stg.koji.build.start")], {R.ENVIRONMENT}),
    ("B33", "another prefix", lambda f, b: [sealed(f, "com.example.dev.koji.build.start")], {R.ENVIRONMENT}),
    ("B36", "pickle", lambda f, b: [pickle.dumps({"topic": START})], {R.TOPIC, R.MALFORMED}),
    ("B23", "another version", lambda f, b: [sealed(f).replace(b"start\0\x01", b"start\0\x02", 1)], {R.VERSION}),
    ("B1", "cut short", lambda f, b: [sealed(f)[:150]], {R.MALFORMED}),
    ("B1", "bytes left over", lambda f, b: [sealed(f) + b"x"], {R.MALFORMED}),
    ("B1", "a beat that is none", lambda f, b: [b"\x02rubbish"], {R.MALFORMED}),
    ("B21", "a beat with another head", lambda f, b: [reheaded_beat(f)], {R.SIGNATURE}),
    ("B18", "an unsigned beat", lambda f, b: [unsigned_beat(f)], {R.UNSIGNED}),
    ("B27", "a beat by another", lambda f, b: [beat_by_bodhi(f, b)], {R.ENDPOINT_MISMATCH}),
    (
        "B31",
        "a beat of the year -1",
        lambda f, b: [make.beat_saying(f.publisher.who, beat_payload(f, sent_at_ms=-1))],
        {R.MALFORMED},
    ),
]


def ca_as_leaf(forger: Forger, bus: Bus) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    ca = x509.load_pem_x509_certificate((bus.settings.keys / "ca.crt").read_bytes())
    key: Any = serialization.load_pem_private_key((bus.settings.keys / "ca.key").read_bytes(), None)
    return sealed(forger, who=make.Identity(KOJI, key, ca.public_bytes(serialization.Encoding.DER)))


def beat_payload(forger: Forger, **changes: Any) -> bytes:
    frame = forger.publisher.beat()
    return json.dumps({**json.loads(frame[frame.index(b'{"endpoint"') :]), **changes}).encode()


def unsigned_beat(forger: Forger) -> bytes:
    who = forger.publisher.who
    return make.beat_frame(who.name.encode(), b"", who.certificate, beat_payload(forger, head=99, start=1))


def reheaded_beat(forger: Forger) -> bytes:
    return forger.publisher.beat().replace(b'"head":1', b'"head":9')


def beat_by_bodhi(forger: Forger, bus: Bus) -> bytes:
    bodhi = identity(bus.settings, BODHI)
    payload = beat_payload(forger, head=99, start=1)
    from fedbus.wire import beat

    signature = bodhi.sign(beat.beat_statement(bodhi.certificate, payload))
    return make.beat_frame(KOJI.encode(), signature, bodhi.certificate, payload)


@pytest.mark.parametrize(("build", "reasons"), rows(FRAMES, 2))
def test_a_frame_that_proves_nothing_is_dropped_and_the_next_is_delivered(
    bus: Bus, forger: Forger, subscriber: Subscriber, losses: list[Loss], build: Make, reasons: set[Reason]
) -> None:
    forger.say()
    forger.send(*build(forger, bus))
    forger.say()
    assert sequences(forger.catch_up(subscriber)) == [1, 2]
    refused = subscriber.stats.refused
    assert sum(refused.values()) == 1, refused
    assert set(refused) <= {reason.value for reason in reasons}
    assert sum(bus.verifier.rejections[reason] for reason in reasons) == 1
    assert losses == []
    assert not forger.pub.poll(0), "the connection was not kept"


@pytest.mark.badinput("B27")
def test_what_another_service_signs_about_our_topics_is_refused(
    bus: Bus, forger: Forger, subscriber: Subscriber, losses: list[Loss]
) -> None:
    with bus.publisher(BODHI) as bodhi:
        # the forger beats meanwhile: were it silent for long, it would be connected anew and not hear what is sent then
        other = next(one for one in subscriber.readers() if one.endpoint == BODHI)
        assert forger.read(subscriber, lambda: other.mode.value == "live" and other.heard_at is not None) == []
        forger.send(as_bodhi(forger, bus, BODHI))
        forger.say()
        assert sequences(forger.catch_up(subscriber)) == [1]
        assert subscriber.stats.refused == {"policy": 1}
        bodhi.publish("update.new", {"n": 1})
        assert [message.endpoint for message in take(subscriber, 1)] == [BODHI]
    assert losses == []


@pytest.mark.badinput("B2")
@pytest.mark.fault("F10")
def test_a_frame_beyond_all_bounds_costs_a_new_connection_and_nothing_else(
    open_bus: Callable[..., Bus], forger: Forger, losses: list[Loss]
) -> None:
    """libzmq gives such a connection up for ever; only the beats that stay away tell."""
    bus = open_bus(subscriber={"silence": 0.3})
    with bus.subscribe(since="beginning", on_loss=losses.append) as subscriber:
        forger.join(subscriber)
        forger.say()
        forger.send(sealed(forger) + bytes(10 * 2**20))
        forger.say()
        assert sequences(forger.catch_up(subscriber)) == [1, 2]
    assert losses == []


@pytest.mark.badinput("B21")
def test_a_parcel_with_one_bit_changed_never_delivers_anything(
    forger: Forger, subscriber: Subscriber, losses: list[Loss]
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    forger.say()
    frame = sealed(forger)
    for at in chance.sample(range(8 * len(frame)), 600):
        forger.send(make.flipped(frame, at // 8, at % 8))
    forger.say(data=b'{"n":"good"}')
    messages = forger.catch_up(subscriber)
    assert [message.body["n"] for message in messages] == [1, "good"]
    reader = next(one for one in subscriber.readers() if one.endpoint == KOJI)
    # one whose first sequence was made smaller looks like a copy; nobody looks any further
    assert sum(subscriber.stats.refused.values()) + reader.stats.duplicates == 600
    assert not reader.quarantined
    assert losses == []


@pytest.mark.badinput("B29")
def test_copies_are_dropped_quietly(bus: Bus, forger: Forger, subscriber: Subscriber) -> None:
    frames = [frame for _ in range(5) for frame in forger.publisher.publish([START])]
    for frame in [*frames, *frames, frames[0], forger.publisher.beat(), *reversed(frames)]:
        forger.send(frame)
    forger.say()  # behind the copies, or they might not have been read yet
    assert sequences(forger.catch_up(subscriber)) == [1, 2, 3, 4, 5, 6]
    assert sum(bus.verifier.rejections.values()) == 0
    reader = next(one for one in subscriber.readers() if one.endpoint == KOJI)
    assert reader.stats.duplicates == 11


@pytest.mark.badinput("B29")
@pytest.mark.badinput("B30")
def test_two_messages_with_one_number_quarantine_that_endpoint_alone(
    bus: Bus, forger: Forger, subscriber: Subscriber, caplog: pytest.LogCaptureFixture
) -> None:
    forger.say()
    forger.say()
    assert sequences(forger.catch_up(subscriber)) == [1, 2]
    envelope = forger.publisher.envelope(START, 2, b'{"n":"a clone"}')
    block = make.group(START, [envelope], prior=1)
    epoch = bytes.fromhex(forger.publisher.epoch.replace("-", ""))
    forger.send(*make.seal(forger.publisher.who, [block], 2, epoch=epoch))
    reader = next(one for one in subscriber.readers() if one.endpoint == KOJI)
    assert forger.read(subscriber, lambda: reader.quarantined) == []
    assert subscriber.stats.refused == {"conflict": 1}
    assert "quarantined" in caplog.text
    forger.say()
    with bus.publisher(BODHI) as bodhi:
        bodhi.publish("update.new", {"n": 1})
        assert [message.endpoint for message in take(subscriber, 1)] == [BODHI]
    assert not reader.wants_fetch


@pytest.mark.badinput("B36")
def test_nothing_is_ever_unpickled(forger: Forger, subscriber: Subscriber, tmp_path: Path) -> None:
    canary = pickle.dumps(Canary(tmp_path / "unpickled"))
    forger.send(canary)
    forger.send(START.encode() + b"\0" + canary)
    forger.say(edit=lambda one: canary)
    forger.say(data=canary)
    forger.answers.append(lambda reader, request: [[replay.answer_header(replay.Kind.RECORDS, request), canary]])
    forger.say()
    assert sequences(forger.catch_up(subscriber)) == [3]
    assert not (tmp_path / "unpickled").exists()


# --- replay --------------------------------------------------------------------------------------------------------

Header = Callable[[int], bytes]


def head(kind: int) -> Callable[[int], bytes]:
    return lambda request: struct.pack(">BI", kind, request)


def answer(*parts: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    return list(parts)


ANSWERS = {
    "one frame": answer((head(1),)),
    "three frames": answer((head(1), b"", b"")),
    "empty frames": answer((b"", b"")),
    "no header": answer((b"rubbish", b"")),
    "an unknown kind": answer((head(77), b"{}")),
    "a beat that is none": answer((head(1), b"rubbish")),
    "a start without a beat": answer((head(2), fact(epoch=make.EPOCH, after=0))),
    "records without a start": answer((head(3), b"")),
    "records of random bytes": answer((head(1), "beat"), (head(2), "start"), (head(3), bytes(range(256)) * 9)),
    "records cut short": answer((head(1), "beat"), (head(2), "start"), (head(3), "cut")),
    "records with a bit changed": answer((head(1), "beat"), (head(2), "start"), (head(3), "flipped")),
    "an end without a start": answer((head(4), fact(through=0, end=True, lost=[]))),
    "an end of another type": answer((head(4), b"[]")),
    "negative numbers": answer((head(1), "beat"), (head(2), fact(epoch=make.EPOCH, after=-1))),
    "deep JSON": answer((head(4), b"[" * 100_000)),
    "not JSON": answer((head(2), b"\x80\x04K\x01.")),
    "an endless error": answer((head(5), fact(code="journal", text="\x1b[31m" + "x" * 100_000))),
    "another epoch than the beat's": answer((head(1), "beat"), (head(2), fact(epoch=make.EPOCH, after=0))),
    "a start behind the head": answer((head(1), "beat"), (head(2), "late start")),
    "a hidden end": answer((head(1), "beat"), (head(2), "start"), (head(4), fact(through=2**60, end=True, lost=[]))),
}


@pytest.mark.badinput("B6")
@pytest.mark.badinput("B7")
@pytest.mark.badinput("B12")
@pytest.mark.badinput("B13")
@pytest.mark.badinput("B21")
@pytest.mark.badinput("B36")
@pytest.mark.parametrize("parts", ANSWERS.values(), ids=ANSWERS.keys())
def test_a_garbled_answer_is_refused_and_the_next_one_is_used(
    bus: Bus, forger: Forger, losses: list[Loss], parts: list[tuple[Any, ...]]
) -> None:
    for _ in range(3):
        forger.publisher.publish([START])
    records = forger.publisher.journal.read(0, 10_000).data
    known = {
        "beat": forger.publisher.beat(),
        "start": fact(epoch=forger.publisher.epoch, after=0),
        "late start": fact(epoch=forger.publisher.epoch, after=9),
        "cut": records[:-5],
        "flipped": make.flipped(records, len(records) // 2),
    }

    def garbled(reader: bytes, request: int) -> list[list[bytes]]:
        return [
            [frame(request) if callable(frame) else known[frame] if isinstance(frame, str) else frame for frame in part]
            for part in parts
        ]

    forger.answers.append(garbled)
    with bus.subscribe("koji", since="beginning", on_loss=losses.append) as subscriber:
        assert sequences(forger.catch_up(subscriber)) == [1, 2, 3]
        forger.say()
        assert sequences(forger.catch_up(subscriber)) == [4]
    assert losses == []
    assert forger.requests > 1


REQUESTS = [
    [b""],
    [b"rubbish"],
    [b"{}"],
    [b"[]"],
    [b'{"id":1,"budget":10,"after":0}', b"two"],
    [b"", b"{}"],
    [b"{" * 60_000],
    [b'{"id":-1,"budget":10,"after":0}'],
    [b'{"id":1,"budget":0,"after":0}'],
    [b'{"id":1,"budget":1e400,"after":0}'],
    [b'{"id":1,"budget":10,"after":0,"time_ms":1}'],
    [b'{"id":1,"budget":10,"after":"0"}'],
    [b'{"id":1,"budget":10,"after":0,"filters":["a..b"]}'],
    [b'{"id":1,"budget":10,"after":0,"filters":[' + b'"#",' * 300 + b'"#"]}'],
    [b'{"id":1,"budget":10,"after":0,"op":"delete"}'],
    [pickle.dumps({"id": 1})],
    [b"\xff" * 1000],
    [b"x" * 100_000],
]


@pytest.mark.badinput("B1")
@pytest.mark.badinput("B6")
@pytest.mark.badinput("B7")
@pytest.mark.badinput("B12")
@pytest.mark.badinput("B13")
@pytest.mark.badinput("B36")
def test_garbled_requests_disturb_nobody(bus: Bus) -> None:
    endpoint = bus.settings.endpoint(KOJI)
    with bus.publisher(KOJI) as koji, bus.subscribe(since="now") as subscriber, zmq.Context() as context:
        join(subscriber, KOJI)
        koji.publish("build.start", {"n": 1})
        with context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.connect(endpoint.replay)
            for request in REQUESTS:
                dealer.send_multipart(request)
            dealer.send(b'{"id":7,"budget":1000,"after":0}')
            kinds: Counter[int] = Counter()
            while not kinds[4]:
                assert dealer.poll(60_000)
                header, _ = dealer.recv_multipart()
                kind, request_id = struct.unpack(">BI", header)
                kinds[kind] += 1
                assert request_id == (7 if kind != 5 else 0)
            assert kinds[5] >= len(REQUESTS) - 2, "those of two frames are not answered"
            assert kinds[1] == kinds[2] == kinds[4] == 1
        koji.publish("build.start", {"n": 2})
        assert sequences(take(subscriber, 2)) == [1, 2]


@pytest.mark.badinput("B4")
def test_a_huge_subscription_drops_only_the_peer_that_sent_it(bus: Bus) -> None:
    endpoint = bus.settings.endpoint(KOJI)
    with bus.publisher(KOJI) as koji, bus.subscribe(since="now") as subscriber, zmq.Context() as context:
        join(subscriber, KOJI)
        with context.socket(zmq.SUB) as huge:
            huge.linger = 0
            huge.reconnect_ivl = -1
            with huge.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
                huge.subscribe(b"\x02")
                huge.subscribe(b"x" * 100_000)
                huge.connect(endpoint.publish)
                assert monitor.poll(60_000), "the peer was not dropped"
                huge.disable_monitor()
        for number in range(1, 21):
            koji.publish("build.start", {"n": number})
        assert sequences(take(subscriber, 20)) == list(range(1, 21))
        reader = next(one for one in subscriber.readers() if one.endpoint == KOJI)
        assert reader.stats.gaps == 0
        wait_until(lambda: koji.stats.subscribers == 1)
