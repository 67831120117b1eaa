"""Checks what an endpoint sends, knowing only doc/wire.rst: imports the standard library and `cryptography`.

    check.py [FILE|FOLDER ...]                              test vectors; by default those beside this file
    check.py --ca ca.crt --frames FILE [--now SECONDS]      parcels and beats: a line of hexadecimal each, or binary,
                                                            each behind its length as u32
    check.py --ca ca.crt --connect tcp://HOST:PORT --count N [--timeout SECONDS] [--topic PREFIX]

Prints one line for each message or case. Exit code 0: all as it should be; 4: something is refused, or a vector's
verdict is another than expected; 2: usage; 6: --connect got fewer messages than --count before --timeout.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VERSION = 1
MESSAGE_BYTES = 2**20
FRAME_BYTES = 4 * 2**20 + 64 * 1024
BEAT_BYTES = 512 * 1024
REQUEST_BYTES = 64 * 1024
NESTING, MEMBERS, KEY_BYTES = 64, 100_000, 4096
LEEWAY = 300  # seconds

FIELDS = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
FILTER = re.compile(r"(([a-z0-9_-]+|\*|#)(\.([a-z0-9_-]+|\*|#))*)?")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*(\.[a-z0-9][a-z0-9_-]*)*")
TIME = re.compile(
    r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{6}Z"
)


class Refused(Exception):
    """Input that a reader must refuse, with the word for the reason."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def refuse(reason: str, text: str) -> NoReturn:
    raise Refused(reason, text)


class Reader:
    """Takes fields off the front of a frame."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def take(self, length: int) -> bytes:
        if self.at + length > len(self.data):
            refuse("malformed", "the frame is cut short")
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def proof(self) -> tuple[bytes, bytes]:
        """Signature and certificate, each behind its length."""
        signature = self.take(self.number(2))
        certificate = self.take(self.number(2))
        if not signature or not certificate:
            refuse("unsigned", "no signature or no certificate")
        if len(signature) > 256:
            refuse("signature", "the signature is too long")
        if len(certificate) > 8192:
            refuse("certificate", "the certificate is too long")
        return signature, certificate


# --- hashes ----------------------------------------------------------------------------------------------------


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def pair(nodes: list[bytes]) -> list[bytes]:
    above = [sha256(b"\x01" + nodes[i] + nodes[i + 1]) for i in range(0, len(nodes) - 1, 2)]
    return above + nodes[-1:] if len(nodes) % 2 else above


def root_of(leaves: list[bytes], start: int, size: int, path: list[bytes]) -> bytes:
    hashes_left = list(path)

    def following() -> bytes:
        if not hashes_left:
            refuse("signature", "the path is too short")
        return hashes_left.pop(0)

    nodes, low, width = leaves, start, size
    while width > 1:
        if low % 2:
            nodes = [following(), *nodes]
            low -= 1
        high = low + len(nodes)
        if high % 2 and high < width:
            nodes = [*nodes, following()]
        nodes = pair(nodes)
        low, width = low // 2, (width + 1) // 2
    if hashes_left:
        refuse("signature", "the path is too long")
    return nodes[0]


# --- trust -----------------------------------------------------------------------------------------------------


class Trust:
    """The CA certificates, and the time to judge at; None is now."""

    def __init__(self, pem: bytes, now: float | None = None) -> None:
        self.authorities = x509.load_pem_x509_certificates(pem)
        self.now = now
        self.known: dict[bytes, tuple[str, Callable[[bytes, bytes], None]]] = {}

    def check(self, certificate: bytes, signature: bytes, statement: bytes) -> str:
        """Return the name in the certificate when its key has signed *statement*."""
        if certificate not in self.known:
            self.known[certificate] = self.judge(certificate)
        name, verify = self.known[certificate]
        try:
            verify(signature, statement)
        except (InvalidSignature, ValueError):
            refuse("signature", f"the signature does not verify with the key of {name}")
        return name

    def judge(self, der: bytes) -> tuple[str, Callable[[bytes, bytes], None]]:
        try:
            leaf = x509.load_der_x509_certificate(der)
            public = leaf.public_key()
            extensions = {type(one.value): one for one in leaf.extensions}
            issuer, hash_name = leaf.issuer, leaf.signature_hash_algorithm
            unused_bits = der[-len(leaf.signature) - 1]
        except Exception as error:
            refuse("certificate", f"the certificate cannot be parsed: {error}")
        authority = None
        for one in self.authorities:
            if one.subject == issuer:
                try:
                    leaf.verify_directly_issued_by(one)
                    authority = one
                except (InvalidSignature, ValueError, TypeError):
                    continue
        if authority is None:
            refuse("unknown-ca", "no trusted CA has issued the certificate")
        if isinstance(authority.public_key(), ed25519.Ed25519PublicKey):
            strong = hash_name is None
        else:
            strong = isinstance(hash_name, hashes.SHA256 | hashes.SHA384 | hashes.SHA512)
        if not strong:
            refuse("algorithm", "the CA's signature uses a weak hash")
        name = self.name_of(leaf, extensions)
        if unused_bits:
            refuse("certificate", "unused bits in front of the CA's signature")
        now = time.time() if self.now is None else self.now
        for what in (leaf, authority):
            if now < what.not_valid_before_utc.timestamp() - LEEWAY:
                refuse("not-yet-valid", f"valid from {what.not_valid_before_utc}")
            if now > what.not_valid_after_utc.timestamp() + LEEWAY:
                refuse("expired", f"valid until {what.not_valid_after_utc}")
        if isinstance(public, ed25519.Ed25519PublicKey):
            return name, public.verify
        if isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1):
            verify = public.verify
            return name, lambda signature, statement: verify(signature, statement, ec.ECDSA(hashes.SHA256()))
        refuse("algorithm", "the key is neither ECDSA P-256 nor Ed25519")

    def name_of(self, leaf: x509.Certificate, extensions: dict[type, Any]) -> str:
        known = {
            x509.BasicConstraints,
            x509.KeyUsage,
            x509.ExtendedKeyUsage,
            x509.SubjectAlternativeName,
            x509.SubjectKeyIdentifier,
            x509.AuthorityKeyIdentifier,
        }
        for kind, extension in extensions.items():
            if extension.critical and kind not in known:
                refuse("certificate", "an unknown critical extension")
        basic = extensions.get(x509.BasicConstraints)
        usage = extensions.get(x509.KeyUsage)
        extended = extensions.get(x509.ExtendedKeyUsage)
        names = extensions.get(x509.SubjectAlternativeName)
        if basic and basic.value.ca:
            refuse("certificate", "a CA's certificate")
        if not usage or not usage.value.digital_signature or usage.value.key_cert_sign or usage.value.crl_sign:
            refuse("certificate", "the key usage is not that of a signer")
        if not extended or ExtendedKeyUsageOID.CLIENT_AUTH not in extended.value:
            refuse("certificate", "the extended key usage lacks clientAuth")
        uris = names.value.get_values_for_type(x509.UniformResourceIdentifier) if names else []
        found = [uri.removeprefix("fedbus:") for uri in uris if uri.startswith("fedbus:")]
        if len(found) != 1 or len(found[0]) > 64 or not NAME.fullmatch(found[0]):
            refuse("certificate", "not exactly one endpoint's name")
        common = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if any(one.value != found[0] for one in common):
            refuse("certificate", "another common name")
        return str(found[0])


# --- JSON ------------------------------------------------------------------------------------------------------


def strict_json(data: bytes) -> dict[str, Any]:
    if len(data) > MESSAGE_BYTES:
        refuse("oversize", f"{len(data)} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        refuse("encoding", str(error))
    if text.startswith("\ufeff"):
        refuse("encoding", "a byte order mark")
    depth, quoted, escaped = 0, False, False
    for char in text:
        if quoted:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                quoted = False
        elif char == '"':
            quoted = True
        elif char in "{[":
            depth += 1
            if depth > NESTING:
                refuse("nesting", f"more than {NESTING} levels")
        elif char in "}]":
            depth -= 1

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            refuse("duplicate-key", "two members of one name")
        return dict(pairs)

    def integer(digits: str) -> int:
        if digits == "-0" or len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
            refuse("number", "an integer beyond 64 bits, or -0")
        return int(digits)

    def real(digits: str) -> float:
        if len(digits) > 400 or float(digits) in (float("inf"), float("-inf")):
            refuse("number", "beyond a double")
        return float(digits)

    def constant(word: str) -> NoReturn:
        refuse("number", word)

    try:
        value = json.loads(
            text, object_pairs_hook=members, parse_int=integer, parse_float=real, parse_constant=constant
        )
    except json.JSONDecodeError as error:
        refuse("json", str(error))
    if not isinstance(value, dict):
        refuse("json", "not an object")
    count = 0
    todo: list[Any] = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, str):
            if re.search("[\0\ud800-\udfff]", one):
                refuse("text", "U+0000 or a lone surrogate")
        elif isinstance(one, dict | list):
            count += len(one)
            if isinstance(one, dict):
                if any(len(name.encode("utf-8", "replace")) > KEY_BYTES for name in one):
                    refuse("count", "too long a name")
                todo += one
                todo += one.values()
            else:
                todo += one
    if count > MEMBERS:
        refuse("count", "too many members")
    return value


# --- parcels ---------------------------------------------------------------------------------------------------


def check_parcel(frame: bytes, trust: Trust) -> dict[str, Any]:
    """Verify one parcel with all its messages."""
    if not frame:
        refuse("frames", "an empty frame")
    if len(frame) > FRAME_BYTES:
        refuse("oversize", f"{len(frame)} bytes")
    end = frame.find(b"\0")
    topic = frame[: max(end, 0)].decode("latin-1")
    if not 0 < end <= 255 or not FIELDS.fullmatch(topic):
        refuse("topic", f"{topic[:80]!r} is no topic")
    read = Reader(frame, end + 1)
    if read.number(1) != VERSION:
        refuse("version", "another version")
    name = read.take(read.number(1))
    if not name or not name.isascii():
        refuse("malformed", "no endpoint's name")
    epoch = read.take(16)
    first, size, start, count = read.number(8), read.number(4), read.number(4), read.number(4)
    if not (first >= 1 and first + size <= 2**63 and 1 <= size <= 65536 and count >= 1 and start + count <= size):
        refuse("malformed", "an impossible place in the batch")
    signature, certificate = read.proof()
    levels = read.number(1)
    if levels != topic.count(".") + 1:
        refuse("malformed", "not one level for each field")
    chain = read.take(12 * levels)
    pairs = [struct.unpack_from(">QI", chain, 12 * place) for place in range(levels)]
    inside = [size, *(one[1] for one in pairs), count]
    if any(prior >= first for prior, _ in pairs) or inside != sorted(inside, reverse=True):
        refuse("malformed", "the chain contradicts itself")
    path = [read.take(32) for _ in range(read.number(1))]
    lengths = [read.number(4) for _ in range(count)]
    envelopes = [read.take(length) for length in lengths]
    if read.at != len(frame):
        refuse("malformed", "bytes are left over")

    leaves = [sha256(b"\0" + topic.encode() + b"\0" + chain + envelope) for envelope in envelopes]
    root = root_of(leaves, start, size, path)
    statement = b"fedbus seal 1\0" + bytes([len(name)]) + name + epoch + struct.pack(">QI", first, size) + root
    signer = trust.check(certificate, signature, statement + sha256(certificate))
    if signer.encode() != name:
        refuse("endpoint-mismatch", f"{signer} signed for {name!r}")

    uuid = str(UUID(bytes=epoch))
    messages = []
    last = first - 1
    for envelope in envelopes:
        message = check_envelope(envelope, topic, signer, uuid)
        sequence = int(message["sequence"])
        if not last < sequence < first + size:
            refuse("sequence", f"/sequence is {sequence}, not within its place in the batch")
        last = sequence
        messages.append(message)
    return {
        "topic": topic,
        "endpoint": signer,
        "epoch": uuid,
        "first": first,
        "size": size,
        "start": start,
        "chain": [list(one) for one in pairs],
        "messages": messages,
    }


def check_envelope(envelope: bytes, topic: str, endpoint: str, epoch: str) -> dict[str, Any]:
    message = strict_json(envelope)
    for member in ("type", "source", "epoch", "specversion", "id", "time", "datacontenttype", "sequence", "data"):
        if member not in message:
            refuse("envelope", f"/{member} is missing")
    if message["type"] != topic:
        refuse("topic-mismatch", f"/type is {message['type']!r}")
    if message["source"] != f"fedbus:{endpoint}":
        refuse("envelope", f"/source is {message['source']!r}")
    if message["epoch"] != epoch:
        refuse("epoch", f"/epoch is {message['epoch']!r}")
    right = {
        "specversion": message["specversion"] == "1.0",
        "datacontenttype": message["datacontenttype"] == "application/json",
        "id": isinstance(message["id"], str),
        "data": isinstance(message["data"], dict),
        "time": isinstance(message["time"], str) and TIME.fullmatch(message["time"]),
        "sequence": isinstance(message["sequence"], str) and re.fullmatch("[0-9]{20}", message["sequence"]),
        "dataschema": isinstance(message.get("dataschema", ""), str),
        "traceparent": isinstance(message.get("traceparent", ""), str),
    }
    for member, fine in right.items():
        if not fine:
            refuse("envelope", f"/{member} is {message[member]!r}")
    return message


# --- beats and replay ------------------------------------------------------------------------------------------


def plain_object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        refuse("json", str(error))
    if not isinstance(value, dict):
        refuse("json", "not an object")
    return value


def whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def check_beat(frame: bytes, trust: Trust) -> dict[str, Any]:
    if len(frame) > BEAT_BYTES:
        refuse("oversize", f"{len(frame)} bytes")
    end = frame.find(b"\0")
    if frame[:1] != b"\x02" or not 2 <= end <= 256:
        refuse("malformed", "not a beat")
    read = Reader(frame, end + 1)
    if read.number(1) != VERSION:
        refuse("version", "another version")
    signature, certificate = read.proof()
    payload = frame[read.at :]
    facts = plain_object(payload)
    numbers = ("start", "head", "window", "sent_at_ms", "interval_ms")
    topics = facts.get("topics")
    if (
        not all(type(facts.get(one)) is int for one in numbers)
        or not all(isinstance(facts.get(one), str) for one in ("endpoint", "epoch"))
        or not isinstance(topics, dict)
        or not all(type(one) is int for one in topics.values())
    ):
        refuse("json", "a member is missing or of another type")
    if frame[1:end] != facts["endpoint"].encode():
        refuse("topic-mismatch", "another endpoint in the payload")
    window, head = facts["window"], facts["head"]
    if (
        not all(whole(facts[one]) for one in numbers)
        or not window <= head
        or not 1 <= facts["start"] <= head + 1
        or not all(window < one <= head for one in topics.values())
        or facts["interval_ms"] < 1
    ):
        refuse("malformed", "the numbers contradict each other")
    try:
        canonical = str(UUID(facts["epoch"])) == facts["epoch"]
    except ValueError:
        canonical = False
    if not canonical:
        refuse("epoch", "no UUID in canonical form")
    signer = trust.check(certificate, signature, b"fedbus beat 1\0" + sha256(certificate) + payload)
    if signer != facts["endpoint"]:
        refuse("endpoint-mismatch", f"{signer} signed for {facts['endpoint']}")
    return facts


def check_request(frame: bytes) -> dict[str, Any]:
    if len(frame) > REQUEST_BYTES:
        refuse("oversize", f"{len(frame)} bytes")
    request = plain_object(frame)
    given = [request[one] for one in ("after", "time_ms", "age_ms") if request.get(one) is not None]
    filters = request.get("filters", [])
    if (
        not all(type(one) is int for one in [request.get("id"), request.get("budget"), *given])
        or not isinstance(filters, list)
        or not all(isinstance(one, str) for one in filters)
        or not isinstance(request.get("epoch", ""), str | None)
        or not isinstance(request.get("op", "fetch"), str)
    ):
        refuse("json", "a member is missing or of another type")
    if (
        request.get("op", "fetch") != "fetch"
        or len(given) != 1
        or len(filters) > 256
        or not 0 <= request["id"] < 2**32
        or not 0 < request["budget"] < 2**40
        or not whole(given[0])
    ):
        refuse("malformed", "not a fetch")
    for one in filters:
        if len(one) > 255 or not FILTER.fullmatch(one):
            refuse("topic", f"{one!r} is no filter")
    return request


def records(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        if at + 32 > len(data):
            refuse("malformed", "a record's header is cut short")
        length, checksum = struct.unpack_from(">II", data, at)
        end = at + 32 + length
        if end > len(data) or zlib.crc32(data[at + 8 : end]) != checksum:
            refuse("malformed", "a record is cut short or damaged")
        yield data[at + 32 : end]
        at = end


def check_answer(parts: list[tuple[bytes, bytes]], trust: Trust) -> dict[str, Any]:
    """Verify a whole answer: BEAT START RECORDS* END, or as far as an ERROR."""
    names = {1: "BEAT", 2: "START", 3: "RECORDS", 4: "END", 5: "ERROR"}
    order = []
    messages: list[dict[str, Any]] = []
    found: dict[str, Any] = {}
    ids = set()
    for header, payload in parts:
        if len(header) != 5 or header[0] not in names:
            refuse("malformed", "not the header of an answer")
        kind = names[header[0]]
        ids.add(header[1:])
        order.append(kind)
        if kind == "BEAT":
            found["beat"] = check_beat(payload, trust)
        elif kind == "RECORDS":
            for frame in records(payload):
                messages += check_parcel(frame, trust)["messages"]
        else:
            found[kind.lower()] = plain_object(payload)
    row = " ".join(order)
    if len(ids) != 1 or not re.fullmatch(r"BEAT START( RECORDS)* (END|ERROR)|ERROR", row):
        refuse("malformed", f"an answer of {row}")
    return {**found, "id": int.from_bytes(ids.pop(), "big"), "messages": messages}


# --- the command -----------------------------------------------------------------------------------------------


def contains(found: Any, expected: Any) -> bool:
    """Whether *found* has all that *expected* names; objects may have more."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(key in found and contains(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return (
            isinstance(found, list)
            and len(found) == len(expected)
            and all(contains(one, other) for one, other in zip(found, expected, strict=True))
        )
    return bool(found == expected)


def check_case(case: dict[str, Any], trust: Trust) -> dict[str, Any]:
    if case["kind"] == "answer":
        return check_answer([(bytes.fromhex(one), bytes.fromhex(two)) for one, two in case["parts"]], trust)
    frame = bytes.fromhex(case["frame"])
    if case["kind"] == "request":
        return check_request(frame)
    return check_beat(frame, trust) if case["kind"] == "beat" else check_parcel(frame, trust)


def run_vectors(paths: list[Path]) -> bool:
    files: list[Path] = []
    for path in paths:
        files += sorted(path.glob("*.json")) if path.is_dir() else [path]
    good = bool(files)
    for path in files:
        vectors = json.loads(path.read_bytes())
        trust = Trust((path.parent / vectors.get("ca", "ca.crt")).read_bytes(), vectors["now"])
        for case in vectors["cases"]:
            found: dict[str, Any] = {}
            try:
                found = check_case(case, trust)
                verdict = "ok"
            except Refused as error:
                verdict = error.reason
            fine = verdict == case["expect"] and contains(found, case.get("holds", {}))
            good &= fine
            print(f"{'pass' if fine else 'FAIL'}  {path.name}: {case['name']}: {verdict}")
            if not fine:
                print(f"      expected {case['expect']} {json.dumps(case.get('holds', {}))}; found {found!a}")
    return good


def frames_of(data: bytes) -> Iterator[bytes]:
    lines = data.split()
    try:
        yield from [bytes.fromhex(line.decode("ascii")) for line in lines]
        return
    except ValueError:
        pass
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if at + 4 + length > len(data):
            refuse("malformed", "the file ends within a frame")
        yield data[at + 4 : at + 4 + length]
        at += 4 + length


def report(frame: bytes, trust: Trust) -> int:
    """Print what one frame holds and return the number of messages; -1 for a refusal."""
    try:
        if frame[:1] == b"\x02":
            facts = check_beat(frame, trust)
            print(f"beat     {facts['endpoint']} {facts['epoch']} start {facts['start']} head {facts['head']}")
            return 0
        parcel = check_parcel(frame, trust)
    except Refused as error:
        print(f"refused  {error.reason}: {str(error)!a}")
        return -1
    for message in parcel["messages"]:
        print(f"message  {parcel['endpoint']} {parcel['epoch']} {int(message['sequence'])} {parcel['topic']}")
    return len(parcel["messages"])


def run_connect(address: str, count: int, timeout: float, topic: str, trust: Trust) -> int:
    import zmq  # for this option alone

    deadline = time.monotonic() + timeout
    seen = 0
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.linger = 0
        socket.maxmsgsize = FRAME_BYTES
        socket.connect(address)
        for subscription in (topic.encode() + b".", topic.encode() + b"\0") if topic else (b"",):
            socket.subscribe(subscription)
        socket.subscribe(b"\x02")  # last: a publisher that counts readers by it then has all the others too
        while seen < count:
            left = deadline - time.monotonic()
            if left <= 0 or not socket.poll(int(left * 1000) + 1):
                print(f"{seen} of {count} messages within {timeout} s", file=sys.stderr)
                return 6
            frames = socket.recv_multipart()
            if len(frames) != 1:
                print("refused  frames: not one frame")
                return 4
            got = report(frames[0], trust)
            if got < 0:
                return 4
            seen += got
            sys.stdout.flush()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Check what a fedbus endpoint sends.")
    parser.add_argument("vectors", nargs="*", type=Path, help="files or folders of test vectors")
    parser.add_argument("--ca", type=Path, help="CA certificates, PEM")
    parser.add_argument("--frames", type=Path, help="a file of parcels and beats")
    parser.add_argument("--connect", metavar="ADDRESS", help="the publish socket of an endpoint")
    parser.add_argument("--count", type=int, default=1, help="with --connect: messages to wait for")
    parser.add_argument("--timeout", type=float, default=30.0, help="with --connect: seconds to wait at most")
    parser.add_argument("--topic", default="", help="with --connect: a topic prefix; all by default")
    parser.add_argument("--now", type=float, help="seconds since 1970 to judge certificates at, instead of now")
    asked = parser.parse_args()
    if asked.frames is None and asked.connect is None:
        return 0 if run_vectors(asked.vectors or [Path(__file__).resolve().parent]) else 4
    if asked.ca is None:
        parser.error("--ca is needed with --frames and --connect")
    trust = Trust(asked.ca.read_bytes(), asked.now)
    if asked.connect is not None:
        return run_connect(asked.connect, asked.count, asked.timeout, asked.topic, trust)
    try:
        results = [report(frame, trust) for frame in frames_of(asked.frames.read_bytes())]
    except Refused as error:
        print(f"refused  {error.reason}: {str(error)!a}")
        return 4
    return 4 if not results or min(results) < 0 else 0


if __name__ == "__main__":
    sys.exit(main())
