"""Makes the test vectors beside this file: `python tests/vectors/make.py`. Run twice, it writes the same bytes.

Keys come from fixed seeds, and signatures are deterministic (Ed25519, and RFC 6979 for ECDSA). The keys are public by
that and good for tests alone.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedbus.wire import beat, envelope, parcel, replay

HERE = Path(__file__).resolve().parent
NOW = 1_800_000_000  # 2027-01-15
NOW_TEXT = "2027-01-15T08:00:00.000000Z"
EPOCH = "018f3c5e-7d2a-7c4b-9a51-3f0e6d8b2c11"
EPOCH_BYTES = bytes.fromhex(EPOCH.replace("-", ""))
ROOT = "org.example.dev"
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
Case = dict[str, Any]


# --- keys and certificates -------------------------------------------------------------------------------------


def p256(seed: str) -> Key:
    return ec.derive_private_key(int.from_bytes(sha256(seed.encode()).digest(), "big") % P256_ORDER, ec.SECP256R1())


def ed(seed: str) -> Key:
    return ed25519.Ed25519PrivateKey.from_private_bytes(sha256(seed.encode()).digest())


def signing(key: Key) -> Callable[[bytes], bytes]:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign
    algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    return lambda statement: key.sign(statement, algorithm)


def name_of(common_name: str | None) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


def usage(*, ca: bool, digital: bool = True) -> x509.KeyUsage:
    return x509.KeyUsage(digital, False, False, False, False, ca, ca, False, False)


CLIENT = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])


def certificate(
    subject: str | None,
    key: Key,
    issuer: str,
    issuer_key: Key,
    *,
    names: tuple[str, ...] = (),
    serial: int | None = None,
    years: tuple[int, int] = (2020, 2120),
    ca: bool = False,
    key_usage: x509.KeyUsage | None = None,
    extended: x509.ExtendedKeyUsage | None = CLIENT,
    extra: x509.ExtensionType | None = None,
) -> x509.Certificate:
    if serial is None:
        serial = int.from_bytes(sha256(f"{subject} {names} {issuer} {years}".encode()).digest()[:8], "big") | 1
    builder = (
        x509.CertificateBuilder()
        .subject_name(name_of(subject))
        .issuer_name(name_of(issuer))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(datetime(years[0], 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(years[1], 1, 1, tzinfo=UTC))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
        .add_extension(key_usage or usage(ca=ca, digital=not ca), critical=True)
    )
    if names:
        uris = [x509.UniformResourceIdentifier(name) for name in names]
        builder = builder.add_extension(x509.SubjectAlternativeName(uris), critical=False)
    if extended is not None and not ca:
        builder = builder.add_extension(extended, critical=False)
    if extra is not None:
        builder = builder.add_extension(extra, critical=True)
    if isinstance(issuer_key, ed25519.Ed25519PrivateKey):
        return builder.sign(issuer_key, None)
    return builder.sign(issuer_key, hashes.SHA256(), ecdsa_deterministic=True)


def der(one: x509.Certificate) -> bytes:
    return one.public_bytes(serialization.Encoding.DER)


def pem(one: x509.Certificate) -> bytes:
    return one.public_bytes(serialization.Encoding.PEM)


CA_P256, CA_ED = p256("ca p256"), ed("ca ed25519")
AUTHORITIES = [
    certificate("fedbus test CA P-256", CA_P256, "fedbus test CA P-256", CA_P256, ca=True),
    certificate("fedbus test CA Ed25519", CA_ED, "fedbus test CA Ed25519", CA_ED, ca=True),
]


class Identity:
    """An endpoint with key and certificate."""

    def __init__(self, name: str, key: Key, leaf: bytes) -> None:
        self.name = name
        self.key = key
        self.sign = signing(key)
        self.certificate = leaf


def leaf_for(name: str, key: Key, **changes: Any) -> bytes:
    """A certificate by the P-256 CA whose signature ends in a 0 bit, so that its unused-bits count can be changed."""
    settings: dict[str, Any] = {"names": (f"fedbus:{name}",), **changes}
    subject = settings.pop("subject", name)
    for serial in range(1000, 2000):
        one = certificate(subject, key, "fedbus test CA P-256", CA_P256, serial=serial, **settings)
        if not one.signature[-1] & 1:
            return der(one)
    raise AssertionError("no such serial")


KOJI = Identity("koji.build01", p256("koji.build01"), leaf_for("koji.build01", p256("koji.build01")))
BODHI = Identity(
    "bodhi.web",
    ed("bodhi.web"),
    der(certificate("bodhi.web", ed("bodhi.web"), "fedbus test CA Ed25519", CA_ED, names=("fedbus:bodhi.web",))),
)


# --- batches ---------------------------------------------------------------------------------------------------


def event(who: Identity, topic: str, sequence: int, data: bytes = b"{}", extra: bytes = b"") -> bytes:
    middle = envelope.EnvelopeWriter(who.name, topic, EPOCH).middle(NOW_TEXT)
    return envelope.write(b"019bbf72-3c00-7000-8000-", sequence, middle, sequence, extra, data)


def seal(who: Identity, groups: list[parcel.Group], first: int, *, most: int = 256, **changes: Any) -> list[bytes]:
    settings: dict[str, Any] = {
        "endpoint": who.name.encode(),
        "epoch": EPOCH_BYTES,
        "sign": who.sign,
        "certificate": who.certificate,
        **changes,
    }
    parcels = parcel.seal(groups, first=first, parcel_bytes=2**17, parcel_messages=most, **settings)
    return [frame for _, _, frame in parcels]


def group(topic: str, envelopes: list[bytes], *, prior: int, inside: int | None = None) -> parcel.Group:
    """A group at whose levels the same stands everywhere."""
    levels = [(prior, inside or len(envelopes))] * (topic.count(".") + 1)
    return parcel.Group(topic.encode(), parcel.chain_block(levels), envelopes)


def single(who: Identity, *, data: bytes = b'{"package":"bash"}', extra: bytes = b"", sequence: int = 5) -> bytes:
    """A batch of one message, as it travels when there is little to say."""
    topic = f"{ROOT}.{who.name.split('.')[0]}.package.build.complete"
    block = group(topic, [event(who, topic, sequence, data, extra)], prior=max(sequence - 2, 0))
    return seal(who, [block], sequence)[0]


def seven(who: Identity) -> list[bytes]:
    """The batch that doc/wire.rst draws: 17 to 23 over three topics, in parcels of at most three messages."""
    order = ("start", "new", "start", "stop", "start", "new", "start")
    service = who.name.split(".")[0]
    last = {"start": 15, "new": 0, "stop": 12}
    groups = []
    for verb in ("start", "new", "stop"):
        topic = f"{ROOT}.{service}.{'update' if verb == 'new' else 'build'}.{verb}"
        sequences = [17 + place for place, one in enumerate(order) if one == verb]
        builds = verb != "new"
        levels = [(16, 7)] * 4  # org, org.example, org.example.dev, and the service
        levels += [(15, 5) if builds else (0, 2), (last[verb], len(sequences))]
        data = [json.dumps({"number": one, "text": "žluť \u2713"}, ensure_ascii=False).encode() for one in sequences]
        events = [event(who, topic, one, body) for one, body in zip(sequences, data, strict=True)]
        groups.append(parcel.Group(topic.encode(), parcel.chain_block(levels), events))
    return seal(who, groups, 17, most=3)


def record(frame: bytes, time_ms: int = NOW * 1000) -> bytes:
    one = parcel.decode(frame, parcel_bytes=2**21)
    rest = struct.pack(">QIIQ", one.first, one.size, len(one.envelopes), time_ms)
    return struct.pack(">II", len(frame), zlib.crc32(rest + frame)) + rest + frame


def beat_of(who: Identity, **changes: Any) -> bytes:
    facts: dict[str, Any] = {
        "endpoint": who.name,
        "epoch": EPOCH,
        "start": 3,
        "head": 23,
        "window": 16,
        "topics": {f"{ROOT}.koji.build.start": 23, f"{ROOT}.koji.update.new": 22, f"{ROOT}.koji.build.stop": 20},
        "sent_at_ms": NOW * 1000,
        "interval_ms": 1000,
        **changes,
    }
    return beat.encode(beat.BeatFacts(**facts), sign=who.sign, certificate=who.certificate)


def beat_saying(who: Identity, payload: bytes) -> bytes:
    """A properly signed beat with any payload."""
    statement = beat.beat_statement(who.certificate, payload)
    return beat_frame(who.name.encode(), who.sign(statement), who.certificate, payload)


def beat_frame(name: bytes, signature: bytes, leaf: bytes, payload: bytes, version: int = 1) -> bytes:
    proof = struct.pack(">H", len(signature)) + signature + struct.pack(">H", len(leaf)) + leaf
    return b"\x02" + name + b"\0" + bytes((version,)) + proof + payload


# --- cases -----------------------------------------------------------------------------------------------------


def case(name: str, kind: str, frame: bytes, expect: str = "ok", **holds: Any) -> Case:
    found: Case = {"name": name, "kind": kind, "expect": expect, "frame": frame.hex()}
    if holds:
        found["holds"] = holds
    return found


def holds(frame: bytes) -> dict[str, Any]:
    one = parcel.decode(frame, parcel_bytes=2**21)
    return {
        "topic": one.topic,
        "endpoint": one.endpoint,
        "epoch": one.epoch,
        "first": one.first,
        "size": one.size,
        "start": one.start,
        "chain": [list(one.level(fields)) for fields in range(1, one.topic.count(".") + 2)],
        "messages": [json.loads(text) for text in one.envelopes],
    }


def good_parcels() -> list[Case]:
    cases = []
    for what, who in (("P-256", KOJI), ("Ed25519", BODHI)):
        frame = single(who)
        cases.append(case(f"{what}: a batch of one message", "parcel", frame, **holds(frame)))
        for place, frame in enumerate(seven(who), 1):
            cases.append(case(f"{what}: 7 messages of 3 topics, parcel {place}", "parcel", frame, **holds(frame)))
        for frame in seven(who):
            whole = parcel.decode(frame, parcel_bytes=2**21)
            for index in range(len(whole.envelopes)):
                one = whole.single(index)
                cases.append(case(f"{what}: leaf {whole.start + index} alone", "parcel", one, **holds(one)))
    extra = b',"dataschema":"urn:x","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","zone":7'
    cases.append(case("optional and unknown attributes", "parcel", single(KOJI, extra=extra)))
    numbers = b'{"least":-9223372036854775808,"most":9223372036854775807,"half":0.5,"zero":-0.0,"tiny":1e-400}'
    cases.append(case("numbers at their limits", "parcel", single(KOJI, data=numbers)))
    spaced = b'{ "b" : [ 1 , {"a":null} ] , "\\u00e9" : "\\ud83d\\ude00" }'
    cases.append(case("white space, escapes, a surrogate pair", "parcel", single(KOJI, data=spaced)))
    deep = b'{"a":' + b"[" * 62 + b"]" * 62 + b"}"
    cases.append(case("nested 64 levels", "parcel", single(KOJI, data=deep)))
    cases.append(case("a name of 4096 bytes", "parcel", single(KOJI, data=b'{"%b":0}' % (b"k" * 4096))))
    frame = single(KOJI)
    signature = parcel.decode(frame, parcel_bytes=2**21).signature
    r, s = decode_dss_signature(signature)
    other = encode_dss_signature(r, P256_ORDER - s)
    cases.append(case("the other valid form of an ECDSA signature", "parcel", resign(frame, other)))
    topic = f"{ROOT}.koji.a.b"
    frame = seal(KOJI, [group(topic, [event(KOJI, topic, 2**63 - 1)], prior=2**63 - 2)], 2**63 - 1)[0]
    cases.append(case("the last sequence there can be", "parcel", frame))
    return cases


def resign(frame: bytes, signature: bytes, leaf: bytes | None = None) -> bytes:
    """The same parcel with another signature, and another certificate if one is given."""
    one = parcel.decode(frame, parcel_bytes=2**21)
    head = parcel.head(one.endpoint.encode(), EPOCH_BYTES, one.first, one.size)
    leaf = one.certificate if leaf is None else leaf
    return parcel.encode(one.topic.encode(), head, one.start, signature, leaf, one.chain, one.path, one.envelopes)


def changed(frame: bytes, **changes: Any) -> bytes:
    """The same parcel with some of its parts exchanged, its signature kept."""
    one = parcel.decode(frame, parcel_bytes=2**21)
    parts: dict[str, Any] = {
        "topic": one.topic,
        "endpoint": one.endpoint,
        "epoch": EPOCH_BYTES,
        "first": one.first,
        "size": one.size,
        "start": one.start,
        "chain": one.chain,
        "path": one.path,
        "envelopes": one.envelopes,
        **changes,
    }
    head = parcel.head(parts["endpoint"].encode(), parts["epoch"], parts["first"], parts["size"])
    return parcel.encode(
        parts["topic"].encode(),
        head,
        parts["start"],
        one.signature,
        one.certificate,
        parts["chain"],
        parts["path"],
        parts["envelopes"],
    )


def flipped(frame: bytes, at: int, bit: int = 0) -> bytes:
    copy = bytearray(frame)
    copy[at] ^= 1 << bit
    return bytes(copy)


def bad_parcels() -> list[Case]:
    frame = single(KOJI)
    one = parcel.decode(frame, parcel_bytes=2**21)
    batch = seven(KOJI)
    part = parcel.decode(batch[0], parcel_bytes=2**21)  # leaves 0 to 2 of 7
    tail = parcel.decode(batch[1], parcel_bytes=2**21)  # leaf 3
    swap = [part.envelopes[1], part.envelopes[0], part.envelopes[2]]
    topic_end = len(one.topic) + 1
    body = len(frame) - 3
    place = topic_end + 2 + len(one.endpoint)  # where the epoch begins
    r, s = decode_dss_signature(one.signature)
    long_form = b"\x30\x81" + one.signature[1:]
    unused_bits = (
        frame.index(one.certificate)
        + len(one.certificate)
        - len(x509.load_der_x509_certificate(one.certificate).signature)
        - 1
    )
    cases = [
        ("an empty frame", b"", "frames"),
        ("no NUL", b"org.example.dev.koji.a.b", "topic"),
        ("an empty topic", frame[topic_end - 1 :], "topic"),
        ("a topic in upper case", frame.replace(b"org.", b"Org.", 1), "topic"),
        ("a topic with an empty field", frame.replace(b"org.e", b"org..", 1), "topic"),
        ("a topic with a wildcard", frame.replace(b"build", b"b*ild", 1), "topic"),
        ("a topic that is not UTF-8", b"\xff" + frame[1:], "topic"),
        ("a topic of 256 bytes", b"a" * 256 + frame[topic_end - 1 :], "topic"),
        ("a frame that ends behind its topic", frame[:topic_end], "malformed"),
        ("version 2", flipped(flipped(frame, topic_end, 1), topic_end, 0), "version"),
        ("cut within the epoch", frame[: place + 3], "malformed"),
        ("cut within the signature", frame[: place + 60], "malformed"),
        ("cut within the certificate", frame[: frame.index(one.certificate) + 50], "malformed"),
        ("cut by one byte", frame[:-1], "malformed"),
        ("one byte more", frame + b" ", "malformed"),
        ("no endpoint", changed(frame, endpoint=""), "malformed"),
        ("first 0", changed(frame, first=0), "malformed"),
        ("first beyond 2^63", changed(frame, first=2**63), "malformed"),
        ("size 0", changed(frame, size=0), "malformed"),
        ("size 65537", changed(frame, size=65537), "malformed"),
        ("no messages", changed(frame, envelopes=[]), "malformed"),
        ("start beyond the batch", changed(frame, start=1), "malformed"),
        ("too few levels", changed(frame, chain=one.chain[:-12]), "malformed"),
        ("too many levels", changed(frame, chain=one.chain + one.chain[-12:]), "malformed"),
        ("prior not before first", changed(frame, chain=struct.pack(">QI", 5, 1) + one.chain[12:]), "malformed"),
        ("inside 0", changed(frame, chain=one.chain[:-4] + bytes(4)), "malformed"),
        ("inside greater than size", changed(frame, chain=struct.pack(">QI", 3, 2) + one.chain[12:]), "malformed"),
        (
            "inside that grows with depth",
            changed(batch[0], chain=struct.pack(">QI", 16, 6) + part.chain[12:]),
            "malformed",
        ),
        ("no signature", resign(frame, b""), "unsigned"),
        ("no certificate", resign(frame, one.signature, b""), "unsigned"),
        ("a signature of 257 bytes", resign(frame, bytes(257)), "signature"),
        ("a certificate of 8193 bytes", resign(frame, one.signature, bytes(8193)), "certificate"),
        ("a signature of one byte", resign(frame, b"0"), "signature"),
        ("a signature cut by one byte", resign(frame, one.signature[:-1]), "signature"),
        ("a signature with one byte more", resign(frame, one.signature + b"\0"), "signature"),
        ("a signature in a longer DER form", resign(frame, long_form), "signature"),
        ("a signature with r and s exchanged", resign(frame, encode_dss_signature(s, r)), "signature"),
        ("an Ed25519 signature under a P-256 certificate", resign(frame, BODHI.sign(one.statement())), "signature"),
        ("the signature of another batch", resign(frame, part.signature), "signature"),
        ("one bit of the body", flipped(frame, body), "signature"),
        ("one bit of the epoch", flipped(frame, place), "signature"),
        ("one bit of a prior", flipped(frame, frame.index(one.chain) + 7), "signature"),
        ("one bit of a path hash", changed(batch[0], path=[flipped(part.path[0], 9), *part.path[1:]]), "signature"),
        ("a bit of the certificate that X.509 does not protect", flipped(frame, unused_bits), "certificate"),
        ("another topic of equal length", frame.replace(b"build", b"guild", 1), "signature"),
        ("a topic of fewer fields", changed(batch[0], topic="org.example.dev", chain=part.chain[:36]), "signature"),
        ("another endpoint", changed(frame, endpoint="koji.build02"), "signature"),
        ("another first", changed(frame, first=6), "signature"),
        ("another size, within a batch of one", changed(frame, size=2), "signature"),
        ("another start", changed(batch[0], start=1), "signature"),
        ("another size, within a batch of seven", changed(batch[0], size=8), "signature"),
        ("two messages exchanged", changed(batch[0], envelopes=swap), "signature"),
        ("the last message left out", changed(batch[0], envelopes=part.envelopes[:-1]), "signature"),
        ("one of the next parcel added", changed(batch[0], envelopes=part.envelopes + tail.envelopes), "signature"),
        ("two messages joined", changed(batch[0], envelopes=[part.envelopes[0] + part.envelopes[1], part.envelopes[2]]),
         "signature"),
        ("a path without its last hash", changed(batch[0], path=part.path[:-1]), "signature"),
        ("a path with a hash too many", changed(batch[0], path=[*part.path, bytes(32)]), "signature"),
        ("a path in the wrong order", changed(batch[1], path=tail.path[::-1]), "signature"),
        ("a path for a batch of one", changed(frame, path=[bytes(32)]), "signature"),
        ("the path of another parcel", changed(batch[0], path=tail.path), "signature"),
        ("an inner node in place of a leaf", inner_node(part), "signature"),
        ("two parcels of one batch out of order",
         unordered(), "sequence"),
        ("a sequence before the batch", outside(4), "sequence"),
        ("a sequence behind the batch", outside(6), "sequence"),
    ]  # fmt: skip
    return [case(name, "parcel", bad, expect) for name, bad, expect in cases]


def inner_node(part: parcel.Parcel) -> bytes:
    """The node over leaves 0 and 1 offered as an envelope: what the prefixes of RFC 9162 are there against."""
    leaves = part.leaves()
    return parcel.encode(
        part.topic.encode(),
        parcel.head(part.endpoint.encode(), EPOCH_BYTES, part.first, 4),
        0,
        part.signature,
        part.certificate,
        parcel.chain_block([(15, 1)] * (part.topic.count(".") + 1)),
        part.path,
        [leaves[0] + leaves[1]],
    )


def unordered() -> bytes:
    topic = f"{ROOT}.koji.a.b"
    return seal(KOJI, [group(topic, [event(KOJI, topic, one) for one in (6, 5)], prior=4)], 5)[0]


def outside(sequence: int) -> bytes:
    topic = f"{ROOT}.koji.a.b"
    return seal(KOJI, [group(topic, [event(KOJI, topic, sequence)], prior=4)], 5)[0]


def bad_certificates() -> list[Case]:
    name = KOJI.name
    uri = f"fedbus:{name}"
    other = p256("another CA")
    p384 = ec.derive_private_key(int.from_bytes(sha256(b"p384").digest(), "big"), ec.SECP384R1())

    def said_with(leaf: bytes, key: Any = KOJI.key, sign: Callable[[bytes], bytes] | None = None) -> bytes:
        who = Identity(name, key, leaf)
        who.sign = sign or who.sign
        return single(who)

    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
    server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    p384_sign = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    cases = [
        ("not DER", said_with(b"\x30\x03\x02\x01\x00"), "certificate"),
        ("PEM", said_with(pem(x509.load_der_x509_certificate(KOJI.certificate))), "certificate"),
        ("with bytes behind it", said_with(KOJI.certificate + b"\0"), "certificate"),
        ("self-signed", said_with(der(certificate(name, KOJI.key, name, KOJI.key, names=(uri,)))), "unknown-ca"),
        (
            "by a CA of the same name with another key",
            said_with(der(certificate(name, KOJI.key, "fedbus test CA P-256", other, names=(uri,)))),
            "unknown-ca",
        ),
        ("expired", said_with(leaf_for(name, KOJI.key, years=(2020, 2021))), "expired"),
        ("not yet valid", said_with(leaf_for(name, KOJI.key, years=(2100, 2120))), "not-yet-valid"),
        ("the CA's own", said_with(der(AUTHORITIES[0]), CA_P256), "certificate"),
        ("for a CA", said_with(leaf_for(name, KOJI.key, ca=True)), "certificate"),
        ("without a name", said_with(leaf_for(name, KOJI.key, names=())), "certificate"),
        ("with two names", said_with(leaf_for(name, KOJI.key, names=(uri, "fedbus:koji"))), "certificate"),
        ("with a wildcard", said_with(leaf_for(name, KOJI.key, subject=None, names=("fedbus:*",))), "certificate"),
        ("with another common name", said_with(leaf_for(name, KOJI.key, subject="koji")), "certificate"),
        ("that may not sign", said_with(leaf_for(name, KOJI.key, key_usage=usage(ca=True))), "certificate"),
        ("without clientAuth", said_with(leaf_for(name, KOJI.key, extended=server)), "certificate"),
        ("without extended key usage", said_with(leaf_for(name, KOJI.key, extended=None)), "certificate"),
        ("with an unknown critical extension", said_with(leaf_for(name, KOJI.key, extra=unknown)), "certificate"),
        (
            "with a P-384 key",
            said_with(leaf_for(name, p384), p384, sign=lambda statement: p384.sign(statement, p384_sign)),
            "algorithm",
        ),
        ("of another endpoint", said_with(leaf_for("koji.build02", KOJI.key)), "endpoint-mismatch"),
        (
            "of the same key and name, put in place of the one that was signed with",
            resign(single(KOJI), parcel.decode(single(KOJI), parcel_bytes=2**21).signature, reissued()),
            "signature",
        ),
    ]
    return [case(f"a certificate {name}", "parcel", bad, expect) for name, bad, expect in cases]


def reissued() -> bytes:
    return leaf_for(KOJI.name, KOJI.key, years=(2021, 2120))


def bad_envelopes() -> list[Case]:
    topic = f"{ROOT}.koji.package.build.complete"
    good = event(KOJI, topic, 5, b'{"a":1}')
    attributes = json.loads(good)

    def sealed(text: bytes) -> bytes:
        return seal(KOJI, [group(topic, [text], prior=3)], 5)[0]

    def replaced(name: str, value: Any) -> bytes:
        return sealed(json.dumps({**attributes, name: value}).encode())

    def without(name: str) -> bytes:
        return sealed(json.dumps({key: value for key, value in attributes.items() if key != name}).encode())

    def body(text: bytes) -> bytes:
        return sealed(good.replace(b'{"a":1}', text))

    cases: list[tuple[str, bytes, str]] = [
        ("another type", replaced("type", f"{ROOT}.koji.package.build.start"), "topic-mismatch"),
        ("a type that is a number", replaced("type", 5), "topic-mismatch"),
        ("another source", replaced("source", "fedbus:koji.build02"), "envelope"),
        ("another epoch", replaced("epoch", EPOCH[:-1] + "2"), "epoch"),
        ("an epoch in upper case", replaced("epoch", EPOCH.upper()), "epoch"),
        ("another specversion", replaced("specversion", "0.3"), "envelope"),
        ("an id that is a number", replaced("id", 7), "envelope"),
        ("a time that is a number", replaced("time", 1_800_000_000), "envelope"),
        ("a time without decimals", replaced("time", "2027-01-15T08:00:00Z"), "envelope"),
        ("a time in other digits", replaced("time", "\u0662\u0660\u0662\u0667-01-15T08:00:00.000000Z"), "envelope"),
        ("a month 13", replaced("time", "2027-13-15T08:00:00.000000Z"), "envelope"),
        ("another datacontenttype", replaced("datacontenttype", "text/plain"), "envelope"),
        ("a sequence that is a number", replaced("sequence", 5), "envelope"),
        ("a sequence of 19 digits", replaced("sequence", f"{5:019d}"), "envelope"),
        ("a sequence with a sign", replaced("sequence", f"+{5:019d}"), "envelope"),
        ("data null", replaced("data", None), "envelope"),
        ("data a list", replaced("data", []), "envelope"),
        ("a dataschema that is a number", replaced("dataschema", 1), "envelope"),
        ("a traceparent that is null", replaced("traceparent", None), "envelope"),
        *((f"no {name}", without(name), "envelope") for name in attributes),
        ("nothing", sealed(b""), "json"),
        ("not JSON", sealed(b"\x80\x04}q\x00."), "encoding"),
        ("pickle of protocol 0", sealed(b"(dp0\n."), "json"),
        ("cut by one byte", sealed(good[:-1]), "json"),
        ("bytes behind it", sealed(good + b"{}"), "json"),
        ("a list", sealed(b"[" + good + b"]"), "json"),
        ("a number", sealed(b"5"), "json"),
        ("a byte order mark", sealed(b"\xef\xbb\xbf" + good), "encoding"),
        ("UTF-16", sealed(good.decode().encode("utf-16")), "encoding"),
        ("invalid UTF-8", body(b'{"a":"\xc3\x28"}'), "encoding"),
        ("a surrogate in UTF-8", body(b'{"a":"\xed\xa0\x80"}'), "encoding"),
        ("a duplicate key in the body", body(b'{"a":1,"a":1}'), "duplicate-key"),
        ("a duplicate key, escaped", body(b'{"a":1,"\\u0061":2}'), "duplicate-key"),
        ("a duplicate attribute", sealed(good[:-1] + b',"id":"x"}'), "duplicate-key"),
        ("NaN", body(b'{"a":NaN}'), "number"),
        ("-Infinity", body(b'{"a":-Infinity}'), "number"),
        ("1e999", body(b'{"a":1e999}'), "number"),
        ("2^63", body(b'{"a":9223372036854775808}'), "number"),
        ("-2^63 - 1", body(b'{"a":-9223372036854775809}'), "number"),
        ("5000 digits", body(b'{"a":' + b"9" * 5000 + b"}"), "number"),
        ("-0", body(b'{"a":-0}'), "number"),
        ("a number of 401 characters", body(b'{"a":0.' + b"1" * 399 + b"}"), "number"),
        ("a leading zero", body(b'{"a":01}'), "json"),
        ("a trailing comma", body(b'{"a":1,}'), "json"),
        ("single quotes", body(b"{'a':1}"), "json"),
        ("a control character in a string", body(b'{"a":"\x01"}'), "json"),
        ("U+0000", body(b'{"a":"\\u0000"}'), "text"),
        ("U+0000 in a name", body(b'{"\\u0000":1}'), "text"),
        ("a lone surrogate", body(b'{"a":"\\ud800"}'), "text"),
        ("a lone low surrogate in a name", body(b'{"\\udc00":1}'), "text"),
        ("nested 65 levels", body(b'{"a":' + b"[" * 63 + b"]" * 63 + b"}"), "nesting"),
        ("nested 5000 levels", body(b'{"a":' + b"[" * 5000 + b"}"), "nesting"),
        ("a name of 4097 bytes", body(b'{"%b":0}' % (b"k" * 4097)), "count"),
    ]
    return [case(f"an envelope with {name}", "parcel", bad, expect) for name, bad, expect in cases]


def beats() -> list[Case]:
    frame = beat_of(KOJI)
    one = beat.decode(frame)
    said = json.loads(one.payload)

    def saying(**changes: Any) -> bytes:
        facts = {key: value for key, value in {**said, **changes}.items() if value is not ...}
        return beat_saying(KOJI, json.dumps(facts).encode())

    start = len(frame) - len(one.payload)
    unsigned = beat_frame(b"koji.build01", b"", one.certificate, one.payload)
    return [
        case("P-256", "beat", frame, **said),
        case("Ed25519", "beat", beat_of(BODHI, topics={}, window=23), endpoint="bodhi.web", topics={}),
        case("before the first message", "beat", beat_of(KOJI, start=1, head=0, window=0, topics={}), head=0),
        case("an unknown member", "beat", saying(mood="fine"), mood="fine"),
        case("not a beat", "beat", b"\x03" + frame[1:], "malformed"),
        case("no endpoint", "beat", b"\x02\0" + frame[14:], "malformed"),
        case("cut within the certificate", "beat", frame[:200], "malformed"),
        case("version 2", "beat", beat_frame(b"koji.build01", b"x", b"x", b"{}", version=2), "version"),
        case("no signature", "beat", unsigned, "unsigned"),
        case("no certificate", "beat", beat_frame(b"koji.build01", one.signature, b"", one.payload), "unsigned"),
        case("a payload cut by one byte", "beat", frame[:-1], "json"),
        case("a payload that is a list", "beat", beat_saying(KOJI, b"[]"), "json"),
        case("no head", "beat", saying(head=...), "json"),
        case("a head that is text", "beat", saying(head="23"), "json"),
        case("a head that is a fraction", "beat", saying(head=23.5), "json"),
        case("another endpoint in the payload", "beat", saying(endpoint="koji.build02"), "topic-mismatch"),
        case("window behind head", "beat", saying(window=24, topics={}), "malformed"),
        case("start behind head", "beat", saying(start=25), "malformed"),
        case("start 0", "beat", saying(start=0), "malformed"),
        case("head beyond 2^63", "beat", saying(head=2**63), "malformed"),
        case("a topic's head within the window", "beat", saying(topics={f"{ROOT}.koji.a.b": 16}), "malformed"),
        case("a topic's head behind the head", "beat", saying(topics={f"{ROOT}.koji.a.b": 24}), "malformed"),
        case("no interval", "beat", saying(interval_ms=0), "malformed"),
        case("an epoch that is no UUID", "beat", saying(epoch="yesterday"), "epoch"),
        case("an epoch in upper case", "beat", saying(epoch=EPOCH.upper()), "epoch"),
        case("another head, not signed", "beat", frame.replace(b'"head":23', b'"head":24'), "signature"),
        case("one bit of the signature", "beat", flipped(frame, start - len(one.certificate) - 8), "signature"),
        case("of another", "beat", beat_of(Identity("koji.x", KOJI.key, KOJI.certificate)), "endpoint-mismatch"),
        case(
            "a seal's signature",
            "beat",
            beat_frame(
                b"koji.build01",
                parcel.decode(single(KOJI), parcel_bytes=2**21).signature,
                one.certificate,
                one.payload,
            ),
            "signature",
        ),
    ]  # fmt: skip


def header(kind: replay.Kind, request: int = 7) -> bytes:
    return replay.answer_header(kind, request)


def replays() -> tuple[list[Case], list[Case]]:
    batch = seven(KOJI)
    first = single(KOJI, sequence=16)
    good_beat = beat_of(KOJI)

    def answer(name: str, parts: list[tuple[bytes, bytes]], expect: str = "ok", **found: Any) -> Case:
        one: Case = {"name": name, "kind": "answer", "expect": expect}
        one["parts"] = [[kind.hex(), payload.hex()] for kind, payload in parts]
        if found:
            one["holds"] = found
        return one

    opening = [
        (header(replay.Kind.BEAT), good_beat),
        (header(replay.Kind.START), replay.encode_fact(replay.Start(EPOCH, 15))),
    ]
    pieces = [record(first), b"".join(record(frame) for frame in batch)]
    records = [(header(replay.Kind.RECORDS), piece) for piece in pieces]
    end = [(header(replay.Kind.END), replay.encode_fact(replay.End(23, True)))]
    wire_order = [16, 17, 19, 21, 23, 18, 22, 20]
    messages = [{"sequence": f"{one:020d}"} for one in wire_order]
    damaged = flipped(pieces[1], len(pieces[1]) - 1)
    filtered = [(header(replay.Kind.RECORDS), b"".join(record(frame) for frame in batch[:2]))]
    lost = [(header(replay.Kind.END), replay.encode_fact(replay.End(40, False, [(24, 30), (35, 35)])))]
    failure = [(header(replay.Kind.ERROR), replay.encode_fact(replay.Failure("busy", "ask again later")))]
    tampered = [(header(replay.Kind.RECORDS), record(flipped(batch[0], len(batch[0]) - 3)))]

    def request(name: str, text: str, expect: str = "ok", **found: Any) -> Case:
        return case(f"request: {name}", "request", text.encode(), expect, **found)

    fetch = replay.Fetch(id=7, budget=65536, epoch=EPOCH, after=16, filters=[f"{ROOT}.koji.build"])
    many = json.dumps({"id": 1, "budget": 1, "after": 0, "filters": ["a"] * 257})
    cases = [
        case("request: after a sequence", "request", replay.encode_fetch(fetch), id=7, after=16, epoch=EPOCH),
        request("the least there is", '{"id":0,"budget":1,"after":0}'),
        request("by time", '{"id":1,"budget":65536,"time_ms":1800000000000,"filters":[]}'),
        request("by age, with wildcards", '{"id":1,"budget":65536,"age_ms":0,"filters":["#","a.*.b"]}'),
        request("an unknown member", '{"id":1,"budget":1,"after":0,"colour":"blue"}'),
        request("nothing", "", "json"),
        request("a list", "[]", "json"),
        request("no id", '{"budget":1,"after":0}', "json"),
        request("an id that is text", '{"id":"1","budget":1,"after":0}', "json"),
        request("true for a number", '{"id":1,"budget":1,"after":true}', "json"),
        request("an id beyond 32 bits", '{"id":4294967296,"budget":1,"after":0}', "malformed"),
        request("no beginning", '{"id":1,"budget":1}', "malformed"),
        request("two beginnings", '{"id":1,"budget":1,"after":0,"age_ms":5}', "malformed"),
        request("a beginning before the beginning", '{"id":1,"budget":1,"after":-1}', "malformed"),
        request("no budget", '{"id":1,"budget":0,"after":0}', "malformed"),
        request("another operation", '{"id":1,"budget":1,"after":0,"op":"delete"}', "malformed"),
        request("257 filters", many, "malformed"),
        request("a filter that is none", '{"id":1,"budget":1,"after":0,"filters":["a..b"]}', "topic"),
        request("a filter that ends in a line feed", '{"id":1,"budget":1,"after":0,"filters":["a\\n"]}', "topic"),
        answer("two frames of records", opening + records + end, messages=messages, end={"through": 23, "end": True}),
        answer("one topic of a batch", opening + filtered + end, messages=messages[1:5]),
        answer("nothing wanted", opening + end, messages=[], start={"epoch": EPOCH, "after": 15}),
        answer("losses", opening + lost, end={"through": 40, "end": False, "lost": [[24, 30], [35, 35]]}),
        answer("an error", failure, error={"code": "busy"}),
        answer("an error on the way", opening + records[:1] + failure, error={"code": "busy"}),
        answer("a damaged record", [*opening, (header(replay.Kind.RECORDS), damaged), *end], "malformed"),
        answer("a record cut short", [*opening, (header(replay.Kind.RECORDS), pieces[0][:-1]), *end], "malformed"),
        answer("a header cut short", [*opening, (header(replay.Kind.RECORDS), pieces[0][:31]), *end], "malformed"),
        answer("a parcel changed, its checksum made anew", opening + tampered + end, "signature"),
        answer("a beat changed", [(opening[0][0], good_beat.replace(b":23", b":24"))], "signature"),
        answer("a header of 4 bytes", [(b"\x01\0\0\0", good_beat)], "malformed"),
        answer("an unknown kind", [(b"\x09" + bytes(4), b"")], "malformed"),
        answer("an END that is no JSON", [*opening, (end[0][0], b"nil")], "json"),
    ]
    order = [
        answer("START before BEAT", opening[::-1] + end, "malformed"),
        answer("records before START", opening[:1] + records + end, "malformed"),
        answer("records behind END", opening + end + records, "malformed"),
        answer("no END", opening + records, "malformed"),
        answer("parts of two answers", [*opening, (header(replay.Kind.END, 8), end[0][1])], "malformed"),
    ]
    return cases, order


def main() -> None:
    (HERE / "ca.crt").write_bytes(b"".join(map(pem, AUTHORITIES)))
    for who in (KOJI, BODHI):
        (HERE / f"{who.name}.crt").write_bytes(pem(x509.load_der_x509_certificate(who.certificate)))
        (HERE / f"{who.name}.test-key").write_bytes(
            who.key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    answers, order = replays()
    files = {
        "parcels": ("Parcels that verify", good_parcels()),
        "parcels-tampered": ("Parcels that were changed, or never were good", bad_parcels()),
        "certificates": ("Properly signed parcels whose certificates are not good enough", bad_certificates()),
        "envelopes": ("Properly sealed envelopes that no reader may take", bad_envelopes()),
        "beats": ("Beats, good and bad", beats()),
        "replay": ("Requests and answers of replay, good and bad", answers),
        "replay-order": ("Answers whose parts are fine and do not make an answer", order),
    }
    for name, (description, cases) in files.items():
        vectors = {"description": description, "ca": "ca.crt", "now": NOW, "cases": cases}
        (HERE / f"{name}.json").write_text(json.dumps(vectors, indent=1, ensure_ascii=True) + "\n", encoding="ascii")
        print(f"{name}.json: {len(cases)} cases")


if __name__ == "__main__":
    main()
