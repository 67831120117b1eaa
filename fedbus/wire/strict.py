"""JSON that means the same to every reader: one object, no duplicate keys, no rounding, no text that others refuse.

Most messages take a path of three C calls: decode, encode again with orjson's fixed formatting, compare. Where that
gives the same bytes there can be no duplicate key, byte order mark, rounded number or lone surrogate; integers beyond
53 bits make the encoder stop. Everything else, foreign formatting included, takes the exact path through the standard
library's decoder. (This compares formatting only; signatures are checked over the bytes as received.)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection
from enum import Enum
from functools import lru_cache
from typing import Any, NoReturn

import msgspec
import orjson
from orjson import dumps, loads

from fedbus.errors import MessageError, Reason, WireError
from fedbus.model.limits import Limits

_STRICT_INTEGER = orjson.OPT_STRICT_INTEGER
_PLAIN = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME  # neither comes back as what it was
ENVELOPE_MEMBERS = 12  # members of an envelope besides what its body holds: nine attributes and three optional ones
_msgpack = msgspec.msgpack.Encoder()
_SCALARS = frozenset((str, int, float, bool, type(None)))
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1
# possessive, and the closing quote may be missing: so it never goes back, however the quotes of bad input stand
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_BRACKET = re.compile(rb"[][{}]")
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


def decode(data: bytes, limits: Limits) -> dict[str, Any]:
    """Return the one JSON object that *data* is.

    Raises:
        WireError: ``data`` is too large, not UTF-8, not one object, nested too deep, has a duplicate key, a number that
            64 bits cannot hold, a lone surrogate or U+0000, or more members than *limits* allow.
    """
    if len(data) > limits.message_bytes:
        raise WireError(Reason.OVERSIZE, f"{len(data)} bytes where the limit is {limits.message_bytes}")
    value = plain_decoder(limits, limits.nesting)(data)
    return _decode_exactly(data, limits) if value is None else value


@lru_cache(maxsize=16)
def plain_decoder(limits: Limits, nesting: int) -> Callable[[bytes], dict[str, Any] | None]:
    """Return a function that returns the one object that bytes are, or None where that takes a closer look.

    The object is at most *nesting* levels deep and keeps to *limits*; bytes beyond ``limits.message_bytes`` are the
    caller's to refuse.
    """
    small = _small(limits)

    def decode_one(data: bytes) -> dict[str, Any] | None:
        try:
            value = loads(data)
            size = len(data)
            if (
                # CPython counts brackets fastest by the length of what is left without them
                (
                    2 * size - len(data.replace(b"{", b"")) - len(data.replace(b"[", b"")) <= nesting
                    or _is_shallow(value, nesting)
                )
                and dumps(value, None, _STRICT_INTEGER) == data
                and (b"\\" not in data or b"\\u0000" not in data)
                and type(value) is dict
                and (size <= small or _has_short_keys(data, limits))
            ):
                return value
        except (orjson.JSONDecodeError, orjson.JSONEncodeError):
            pass
        return None

    return decode_one


def _is_shallow(value: object, nesting: int) -> bool:
    """Say whether *value* is made of plain JSON types, at most *nesting* levels of them; where it cannot tell, no."""
    level = [value]
    for _ in range(nesting):
        below: list[object] = []
        for one in level:
            if type(one) is dict:
                inner: Collection[object] = one.values()
            elif type(one) is list:
                inner = one
            else:
                return False
            below += [each for each in inner if type(each) not in _SCALARS]
        if not below:
            return True
        level = below
    return False


def is_within(value: dict[str, Any], data: bytes, limits: Limits) -> bool:
    """Say whether *value*, which *data* was decoded to, keeps to *limits* and has no U+0000; in doubt it says no.

    Whether *data* has a duplicate key or a rounded number is another question.
    """
    size = len(data)
    return (
        (
            2 * size - len(data.replace(b"{", b"")) - len(data.replace(b"[", b"")) <= limits.nesting
            or _is_shallow(value, limits.nesting)
        )
        and (b"\\" not in data or b"\\u0000" not in data)
        and (size <= _small(limits) or _has_short_keys(data, limits))
    )


def _small(limits: Limits) -> int:
    """Return up to which length an object cannot have too long a key or too many members, whatever it holds."""
    return min(limits.key_bytes, limits.members - ENVELOPE_MEMBERS)


def _has_short_keys(data: bytes, limits: Limits) -> bool:
    """Say whether no key in *data* can be too long, nor the members be too many; where it cannot tell, it says no."""
    if b'\\"' in data:
        return False  # a quote within a key would look like its end
    members = data.count(b",") + data.count(b"[") + data.count(b"{")  # at most
    if members + ENVELOPE_MEMBERS > limits.members:
        return False
    most = limits.key_bytes
    return all(len(part) <= most or len(part) - part.rfind(b'"') <= most for part in data.split(b'":'))


def encode(body: object, limits: Limits) -> bytes:
    """Return the JSON of a message's *body*, in a form that :func:`decode` takes back unchanged.

    Raises:
        MessageError: The body is not an object, or holds what JSON or the limits cannot carry: NaN, an infinity, an
            integer beyond 64 bits, U+0000, a lone surrogate, a key that is no string, too many levels or members.
    """
    return encoder(limits)(body)


@lru_cache(maxsize=16)
def encoder(limits: Limits) -> Callable[[object], bytes]:
    """Return a function that does what :func:`encode` does with *limits*."""
    small, most_bytes = _small(limits), limits.message_bytes
    nesting = limits.nesting - 1  # one level is the envelope's
    options = _STRICT_INTEGER | _PLAIN

    def encode_one(body: object) -> bytes:
        if type(body) is dict:
            try:
                data = dumps(body, None, options)
            except orjson.JSONEncodeError:
                return _encode_exactly(body, limits)
            size = len(data)
            if (
                (
                    2 * size - len(data.replace(b"{", b"")) - len(data.replace(b"[", b"")) <= nesting
                    or _is_shallow(body, nesting)
                )
                and (b"\\" not in data or b"\\u0000" not in data)
                and (size <= small or (size <= most_bytes and _has_short_keys(data, limits)))
                # orjson writes NaN and the infinities as null, so a null is looked at twice
                and (b"null" not in data or _all_finite(body))
            ):
                return data
        return _encode_exactly(body, limits)

    return encode_one


def _encode_exactly(body: object, limits: Limits) -> bytes:
    """Encode what is not plain, after a look at each of its values."""
    if not isinstance(body, dict):
        raise MessageError(Reason.JSON, f"a message's body is a JSON object (a dict), not {type(body).__name__}")
    try:
        data = dumps(body, None, _PLAIN)
    except orjson.JSONEncodeError as error:
        reason = Reason.TEXT if "surrogate" in str(error) else Reason.JSON
        reason = Reason.NUMBER if "Integer" in str(error) else reason
        reason = Reason.NESTING if "ecursion" in str(error) else reason
        raise MessageError(reason, f"the body cannot be written as JSON: {error}") from None
    if len(data) > limits.message_bytes:
        raise MessageError(Reason.OVERSIZE, f"the body has {len(data)} bytes, the limit is {limits.message_bytes}")
    try:
        check_value(body, limits, level=2, members=ENVELOPE_MEMBERS)
    except WireError as error:
        raise MessageError(error.reason, f"the body cannot be published: {error}") from None
    return data


def _all_finite(body: dict[str, Any]) -> bool:
    """Say whether no float of *body* is NaN or an infinity; where it cannot tell, it says no.

    MessagePack writes a double as 0xcb and its eight bytes, big-endian, and those of NaN and the infinities begin with
    0x7f or 0xff: one pass in C and a search, where a walk in Python takes three times as long.
    """
    try:
        packed = _msgpack.encode(body)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return False  # not plain JSON values: the exact check tells
    return not ((b"\x7f" in packed and b"\xcb\x7f" in packed) or (b"\xff" in packed and b"\xcb\xff" in packed))


def check_value(value: object, limits: Limits, *, level: int = 1, members: int = 0) -> None:
    """Raise WireError unless *value* keeps to *limits* and to what 64 bits and JSON's text hold.

    It stands at nesting *level*, beside *members* that are counted with its own.
    """
    todo: list[tuple[object, int]] = [(value, level)]
    while todo:
        one, depth = todo.pop()
        if isinstance(one, str):
            _check_text(one)
        elif isinstance(one, bool) or one is None:
            continue
        elif isinstance(one, int):
            if not _INT_MIN <= one <= _INT_MAX:
                raise WireError(Reason.NUMBER, "an integer does not fit into 64 bits with sign")
        elif isinstance(one, float):
            if not math.isfinite(one):
                raise WireError(Reason.NUMBER, f"{one} is not a JSON number")
        elif isinstance(one, Enum):  # which orjson writes as its value
            todo.append((one.value, depth))
        elif isinstance(one, (dict, list, tuple)):
            if depth > limits.nesting:
                raise WireError(Reason.NESTING, f"nested deeper than {limits.nesting} levels")
            members += len(one)
            if members > limits.members:
                raise WireError(Reason.COUNT, f"more than {limits.members} members")
            if isinstance(one, dict):
                for key in one:
                    if not isinstance(key, str):
                        raise WireError(Reason.JSON, f"the key {key!r} is not a string")
                    if len(key) > limits.key_bytes or len(key.encode("utf-8", "replace")) > limits.key_bytes:
                        raise WireError(Reason.COUNT, f"a key is longer than {limits.key_bytes} bytes")
                    _check_text(key)
                todo.extend((inner, depth + 1) for inner in one.values())
            else:
                todo.extend((inner, depth + 1) for inner in one)


def _check_text(text: str) -> None:
    if "\0" in text:
        raise WireError(Reason.TEXT, "U+0000 in a string")
    if not text.isascii() and _LONE_SURROGATE.search(text):
        raise WireError(Reason.TEXT, "a lone surrogate in a string")


def _depth(data: bytes) -> int:
    """Return how deep brackets nest in *data*, without parsing it."""
    deepest = depth = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", data)):
        depth += 1 if bracket in b"{[" else -1
        deepest = max(deepest, depth)
    return deepest


def _decode_exactly(data: bytes, limits: Limits) -> dict[str, Any]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise WireError(Reason.ENCODING, f"not UTF-8: {error.reason} at byte {error.start}") from None
    if text.startswith("\ufeff"):
        raise WireError(Reason.ENCODING, "begins with a byte order mark")
    if _depth(data) > limits.nesting:
        raise WireError(Reason.NESTING, f"nested deeper than {limits.nesting} levels")
    value = _decode_canonical(data)
    if value is None:
        value = _decode_foreign(text, limits)
    check_value(value, limits)
    return value


def _decode_canonical(data: bytes) -> dict[str, Any] | None:
    """Return the object that *data* is as orjson itself would write it, or None."""
    try:
        value = loads(data)
        return value if type(value) is dict and dumps(value, None, _STRICT_INTEGER) == data else None
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return None


def _decode_foreign(text: str, limits: Limits) -> dict[str, Any]:
    """Return the object that *text* is, whatever its formatting."""
    try:
        value = json.loads(
            text,
            object_pairs_hook=_pairs,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
    except json.JSONDecodeError as error:
        raise WireError(Reason.JSON, f"not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise WireError(Reason.NESTING, f"nested deeper than {limits.nesting} levels") from None
    if not isinstance(value, dict):
        raise WireError(Reason.JSON, f"one JSON object is needed, this is of type {type(value).__name__}")
    return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise WireError(Reason.DUPLICATE_KEY, "an object has the same key twice")
    return members


def _integer(text: str) -> int:
    # the length is looked at first: converting thousands of digits takes time that grows with their square
    if len(text) > 20 or text == "-0" or not _INT_MIN <= int(text) <= _INT_MAX:
        raise WireError(Reason.NUMBER, "an integer does not fit into 64 bits with sign, or is -0")
    return int(text)


def _float(text: str) -> float:
    if len(text) > 400:
        raise WireError(Reason.NUMBER, "a number of more than 400 characters")
    value = float(text)
    if not math.isfinite(value):
        raise WireError(Reason.NUMBER, f"{text[:40]} is beyond a double")
    return value


def _constant(text: str) -> NoReturn:
    raise WireError(Reason.NUMBER, f"{text} is not JSON")
