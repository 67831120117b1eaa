"""Posts each message to an address as a CloudEvent, signed as Standard Webhooks says.

Formats: Standard Webhooks (github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md) and the HTTP
Protocol Binding 1.0.2 of CloudEvents, structured or binary. The address comes from the settings alone, redirects are
not followed, and of an answer only its status, its Retry-After and its first bytes are looked at.
"""

from __future__ import annotations

import asyncio
import base64
import email.utils
import hashlib
import hmac
import ipaddress
import json
import logging
import os
import random
import re
import socket
import ssl
import stat
import threading
import time
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping
from typing import Any

import msgspec
import orjson
from tornado.httpclient import HTTPRequest
from tornado.netutil import DefaultLoopResolver
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from fedbus import Consumer, Drop, Message, Retry, escape, parse_duration

log = logging.getLogger(__name__)

_DURATION: dict[str, Any] = {"type": ["number", "string"]}
_CODES: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 200, "maximum": 599}}
_FILE: dict[str, Any] = {"type": "string", "pattern": "^/"}
_SECRET_BYTES = (24, 64)  # Standard Webhooks, "Signature scheme"
_HEADER_BYTES = 16384  # of all attributes in binary mode, and of an answer's headers: what servers commonly take
_ANSWER_BYTES = 65536  # of an answer's body
_SHOWN_BYTES = 200
_CLIENTS = 100  # requests at a time; how many there are is up to the hub's workers
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052; stands for an IPv4 address
_FIRST_PAUSE = 1.0
_GONE_SECONDS = 3600.0  # for which an address that said 410 is left alone
_PATIENCE = 5.0  # beyond the timeout, for our own loop
_WAITING = 10_000  # messages whose first failure is remembered

# our own headers, those of HTTP itself, and those that say where the message goes
_RESERVED = re.compile(
    r"(?:webhook-.*|ce-.*|content-.*|host|connection|transfer-encoding|te|trailer|upgrade|expect|proxy-.*|keep-alive)\Z",
    re.I,
)
_ATTRIBUTE = re.compile(r"[a-z0-9]{1,64}\Z")  # CloudEvents 1.0.2, "Naming conventions"
_NOT_IN_HEADER = re.compile(r"[^!#$&-~]")  # all but U+0021 to U+007E without '"' and '%', "HTTP header values"


class DeliveryFailed(Exception):
    """The address does not take this message, or was out of reach for too long."""


class Webhook(Consumer):
    """Post each message to an address."""

    schema = {
        "type": "object",
        "properties": {
            "url": {"type": "string", "pattern": "^https?://", "maxLength": 2000},
            "secrets": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "properties": {"file": _FILE, "env": {"type": "string", "minLength": 1}},
                    "minProperties": 1,
                    "maxProperties": 1,
                    "additionalProperties": False,
                },
            },
            "mode": {"enum": ["structured", "binary"]},
            "headers": {
                "type": "object",
                "propertyNames": {"pattern": "^[A-Za-z0-9-]{1,100}$"},
                "additionalProperties": {"type": "string", "pattern": "^[ -~]*$", "maxLength": 8000},
            },
            "timeout": _DURATION,
            "connect_timeout": _DURATION,
            "longest_pause": _DURATION,
            "give_up_after": _DURATION,
            "status_codes": {
                "type": "object",
                "properties": {"done": _CODES, "retry": _CODES, "drop": _CODES, "fail": _CODES},
                "additionalProperties": False,
            },
            "ca_file": _FILE,
            "certificate_file": _FILE,
            "key_file": _FILE,
            "allow_http": {"type": "boolean"},
            "public_only": {"type": "boolean"},
        },
        "required": ["url", "secrets"],
        "dependentRequired": {"key_file": ["certificate_file"], "certificate_file": ["key_file"]},
        "additionalProperties": False,
    }

    def __init__(
        self,
        url: str,
        secrets: list[Mapping[str, str]],
        mode: str = "structured",
        headers: Mapping[str, str] | None = None,
        timeout: float | str = 20.0,
        connect_timeout: float | str = 10.0,
        longest_pause: float | str = 600.0,
        give_up_after: float | str = 3 * 86400.0,
        status_codes: Mapping[str, list[int]] | None = None,
        ca_file: str | None = None,
        certificate_file: str | None = None,
        key_file: str | None = None,
        allow_http: bool = False,
        public_only: bool = False,
    ) -> None:
        self.url, self.shown_url = _check_url(url, allow_http)
        self.mode = mode
        self.headers = dict(headers or {})
        for name in self.headers:
            if _RESERVED.match(name):
                raise ValueError(f"settings.headers: {name!r} is set by the consumer itself; remove it")
        self.timeout = _seconds("timeout", timeout, least=0.1)
        self.connect_timeout = _seconds("connect_timeout", connect_timeout, least=0.1)
        self.longest_pause = _seconds("longest_pause", longest_pause, least=0.1)
        self.give_up_after = _seconds("give_up_after", give_up_after)
        self.codes = _codes(status_codes or {})
        self._secrets = _Secrets(secrets)
        self._tls = _Tls(ca_file, certificate_file, key_file) if self.url.startswith("https") else None
        self._public_only = public_only
        self._lock = threading.Lock()
        self._failures = 0  # requests in a row that the address is to blame for
        self._since: dict[object, float] = {}  # when messages first failed for that reason
        self._gone_until = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._client: SimpleAsyncHTTPClient | None = None

    def start(self) -> None:
        """Begin; raises where a secret or a certificate cannot be read, and is called again later then."""
        self._secrets.current()
        if self._tls is not None:
            self._tls.current()
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="webhook", daemon=True)
            self._thread.start()
            self._client = self._await(self._open(), _PATIENCE)

    def stop(self) -> None:
        """End; no request is under way any more."""
        loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return
        if self._client is not None:
            loop.call_soon_threadsafe(self._client.close)
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join(_PATIENCE)
        if not self._thread.is_alive():
            loop.close()

    def consume(self, message: Message) -> None:
        """Post *message*. May be called from several threads.

        Raises:
            Retry: The address is out of reach, overloaded or set up wrongly; growing pauses, or as it says itself.
            Drop: It says that it is gone.
            DeliveryFailed: It does not take this message, or was out of reach for longer than ``give_up_after``.
        """
        if time.monotonic() < self._gone_until:
            raise Drop(f"{self.shown_url} said that it is gone (410)")
        status, detail, retry_after = self._await(self._post(message), self.timeout + _PATIENCE)
        what = self.codes.get(status) or _policy(status)
        text = f"{self.shown_url}: {detail}"
        with self._lock:
            if what != "retry":
                if self._failures:
                    log.info("%s answers again, after %d requests in vain", self.shown_url, self._failures)
                self._failures = 0
                self._since.pop(message.key, None)
            if what == "done":
                return
            if what == "drop":
                if status == 410:
                    self._gone_until = time.monotonic() + _GONE_SECONDS
                raise Drop(text)
            if what == "fail":
                raise DeliveryFailed(text)
            self._again(message, text, retry_after)

    def _again(self, message: Message, text: str, retry_after: float | None) -> None:
        now = time.monotonic()
        if len(self._since) >= _WAITING:
            self._since.clear()
        for_seconds = now - self._since.setdefault(message.key, now)
        if self.give_up_after and for_seconds >= self.give_up_after:
            raise DeliveryFailed(f"{text}; it was tried for {for_seconds:.0f} s")
        pause = min(self.longest_pause, _FIRST_PAUSE * 2.0 ** min(self._failures, 30)) * random.uniform(0.75, 1.25)
        if not self._failures:
            log.warning("%s; messages wait for it", text)
        self._failures += 1
        if retry_after is not None:
            pause = min(max(pause, retry_after), max(86400.0, self.longest_pause))
        raise Retry(pause, text)

    # --- one request, in the thread of the loop ------------------------------------------------------------------

    def _await(self, coroutine: Coroutine[Any, Any, Any], patience: float) -> Any:
        if self._loop is None:
            coroutine.close()
            raise Retry(_FIRST_PAUSE, "it is not running")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(patience)
        except TimeoutError as error:
            future.cancel()
            raise Retry(_FIRST_PAUSE, f"{self.shown_url}: no answer within {patience:g} s") from error

    async def _open(self) -> SimpleAsyncHTTPClient:
        return SimpleAsyncHTTPClient(
            force_instance=True,
            max_clients=_CLIENTS,
            max_buffer_size=_ANSWER_BYTES + _HEADER_BYTES,
            max_header_size=_HEADER_BYTES,
            max_body_size=_ANSWER_BYTES,
            resolver=_PublicResolver() if self._public_only else DefaultLoopResolver(),
        )

    async def _post(self, message: Message) -> tuple[int, str, float | None]:
        """Return the status (0: no answer), what happened in words, and the answer's Retry-After in seconds."""
        assert self._client is not None
        headers, body = to_http(message, self.mode)
        identifier, stamp = webhook_id(message), int(time.time())
        answer = _Answer()
        request = HTTPRequest(
            self.url,
            method="POST",
            headers={
                "User-Agent": "fedbus-webhook",
                **self.headers,
                **headers,
                "webhook-id": identifier,
                "webhook-timestamp": str(stamp),
                "webhook-signature": signatures(self._secrets.current(), identifier, stamp, body),
            },
            body=body,
            connect_timeout=self.connect_timeout,
            request_timeout=self.timeout,
            follow_redirects=False,
            decompress_response=False,
            header_callback=answer.line,
            streaming_callback=answer.chunk,
            ssl_options=None if self._tls is None else self._tls.current(),
        )
        try:
            await self._client.fetch(request, raise_error=False)
        except Exception as error:
            # what comes behind the status, endless or broken, does not make it another
            if not answer.status:
                return 0, f"no answer: {type(error).__name__}: {escape(str(error)[:500])}", None
        shown = _shown(answer.body)
        return answer.status, f"it answered {answer.status}{': ' if shown else ''}{shown}", answer.retry_after


class _Answer:
    """What is noted of an answer while it comes in."""

    def __init__(self) -> None:
        self.status = 0
        self.retry_after: float | None = None
        self.body = bytearray()

    def line(self, line: str) -> None:
        if match := re.match(r"HTTP/\d\.\d (\d{3})\b", line):
            self.status = int(match[1]) if match[1] >= "200" else 0
        elif line[:12].lower() == "retry-after:":
            self.retry_after = parse_retry_after(line[12:], time.time())

    def chunk(self, data: bytes) -> None:
        self.body += data[: max(0, _SHOWN_BYTES - len(self.body))]


# --- what is sent ----------------------------------------------------------------------------------------------------


class _Data(msgspec.Struct):
    data: msgspec.Raw


def to_http(message: Message, mode: str) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of a CloudEvent in HTTP, ``structured`` or ``binary``.

    A structured body is, byte for byte, the envelope that was signed on the bus.

    Raises:
        DeliveryFailed: Its attributes are too large for headers.
    """
    native = message.wire == "native"
    if mode == "structured":
        body = message.envelope if native else _json(_event(message))
        return {"Content-Type": "application/cloudevents+json; charset=UTF-8"}, body
    event = message.attributes if native else _event(message)
    headers = {"Content-Type": "application/json"}  # the one datacontenttype that there is on the bus
    size = 0
    for name, value in event.items():
        if name in ("data", "datacontenttype") or not _ATTRIBUTE.match(name):
            continue  # what has another name is no attribute of CloudEvents
        if isinstance(value, bool):
            value = "true" if value else "false"
        elif not isinstance(value, (str, int)):
            continue
        headers[f"ce-{name}"] = text = encode_header(str(value))
        size += len(name) + len(text)
    if size > _HEADER_BYTES:
        raise DeliveryFailed(
            f"its attributes have {size} bytes, {_HEADER_BYTES} fit into headers; use mode: structured"
        )
    return headers, bytes(msgspec.json.decode(message.envelope, type=_Data).data) if native else _json(message.body)


def _event(message: Message) -> dict[str, Any]:
    """Return a message that came in another format than our own as a CloudEvent."""
    return {
        "specversion": "1.0",
        "id": webhook_id(message),
        "source": f"fedbus:{message.endpoint}",
        "type": message.topic,
        "time": message.time,
        "datacontenttype": "application/json",
        "data": message.body,
    }


def encode_header(text: str) -> str:
    """Return *text* per-cent encoded, as the HTTP binding of CloudEvents has it: plain ASCII without blanks."""
    return _NOT_IN_HEADER.sub(lambda one: "".join(f"%{byte:02X}" for byte in one[0].encode("utf-8", "replace")), text)


def webhook_id(message: Message) -> str:
    """Return what names the message for receivers: the same at each delivery, and nobody else's, whatever it says."""
    return "msg_" + hashlib.sha256(str(message.key).encode()).hexdigest()[:32]


def signatures(secrets: list[bytes], identifier: str, stamp: int, body: bytes) -> str:
    """Return the value of ``webhook-signature``: one signature for each secret."""
    signed = b"%b.%d.%b" % (identifier.encode(), stamp, body)
    digests = (hmac.digest(secret, signed, "sha256") for secret in secrets)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


# --- what is answered ------------------------------------------------------------------------------------------------


def _policy(status: int) -> str:
    """Return what a status calls for: of the message (done, drop, fail), or of the address (retry)."""
    if 200 <= status < 300:
        return "done"
    if status == 410:
        return "drop"
    if status in (400, 405, 406, 409, 411, 413, 414, 415, 422, 431):
        return "fail"
    return "retry"  # no answer, 5xx, 429; and what somebody has to mend first: 3xx, 401, 403, 404, …


def parse_retry_after(text: str, now: float) -> float | None:
    """Return the seconds that a Retry-After header (RFC 9110, 10.2.3) asks for, or None where it is none."""
    text = text.strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError, IndexError, TypeError):
        return None


# --- settings --------------------------------------------------------------------------------------------------------


def _check_url(url: str, allow_http: bool) -> tuple[str, str]:
    """Return the address, and what is shown of it: no query, which may hold a token."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError as error:
        raise ValueError(f"settings.url: {url!r}: {error}") from error
    if not re.fullmatch(r"[!-~]+", url) or not parts.hostname or parts.fragment:
        raise ValueError(f"settings.url: {url!r} is not an address; write https://HOST/PATH in plain ASCII")
    if parts.username is not None or parts.password is not None:
        raise ValueError("settings.url: a password in it shows up in logs; put it into settings.headers")
    if parts.scheme != "https" and not allow_http:
        raise ValueError(f"settings.url: {url!r} is not encrypted; write https://, or set allow_http: true")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return url, f"{parts.scheme}://{host}{port}{parts.path}"


def _codes(wanted: Mapping[str, list[int]]) -> dict[int, str]:
    codes: dict[int, str] = {}
    for what, numbers in wanted.items():
        for number in numbers:
            if codes.setdefault(number, what) != what:
                raise ValueError(f"settings.status_codes: {number} is in {codes[number]} and in {what}; choose one")
    return codes


def _seconds(name: str, value: object, least: float = 0.0) -> float:
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise ValueError(f"settings.{name}: {error}") from error
    if seconds < least:
        raise ValueError(f"settings.{name}: {value!r} is less than {least:g} s")
    return seconds


class _Changing(ABC):
    """Something that is read from files, and read again when they have changed."""

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths
        self._lock = threading.Lock()
        self._state: object = None
        self._value: Any = None

    @abstractmethod
    def read(self) -> Any:
        """Return what the files say now."""

    def current(self) -> Any:
        """Return what the files say; where they cannot be read any more what they said before, with a warning."""
        with self._lock:
            state = [_state(path) for path in self._paths]
            if self._value is None or state != self._state:
                try:
                    self._value = self.read()
                except (OSError, ValueError) as error:
                    if self._value is None:
                        raise
                    log.warning("%s; what was read before stays in force", error)
                self._state = state
            return self._value


def _state(path: str) -> object:
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError as error:
        return error.errno
    return found.st_mtime_ns, found.st_ino, found.st_size, found.st_mode


class _Secrets(_Changing):
    """The keys of signatures; several while they are exchanged."""

    def __init__(self, places: list[Mapping[str, str]]) -> None:
        super().__init__([place["file"] for place in places if "file" in place])
        self._places = places

    def read(self) -> list[bytes]:
        found = []
        for place in self._places:
            if "file" in place:
                where, text = place["file"], _read_private(place["file"])
            else:
                where = f"environment variable {place['env']}"
                text = os.environ.get(place["env"], "")
            secrets = [parse_secret(word, where) for word in text.split()]
            if not secrets:
                raise ValueError(
                    f"settings.secrets: {where} holds no secret; write whsec_ and base64 of 32 random bytes"
                )
            found += secrets
        return found


def parse_secret(text: str, where: str) -> bytes:
    """Return the key that ``whsec_BASE64`` stands for.

    Raises:
        ValueError: It is not of that form, or too short or long; the text says nothing of the secret itself.
    """
    low, high = _SECRET_BYTES
    try:
        if not text.startswith("whsec_"):
            raise ValueError
        secret = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError:
        raise ValueError(
            f"settings.secrets: {where}: not a secret; write whsec_ and base64 of 32 random bytes"
        ) from None
    if not low <= len(secret) <= high:
        raise ValueError(f"settings.secrets: {where}: a secret has {low} to {high} bytes, this one {len(secret)}")
    return secret


def _read_private(path: str) -> str:
    with open(path, encoding="ascii", errors="replace", opener=_open_quickly) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"settings.secrets: {path} is not a regular file")
        if found.st_mode & 0o027:
            mode = stat.S_IMODE(found.st_mode)
            raise ValueError(f"settings.secrets: {path} has mode {mode:04o}, so others can read it; use chmod 600")
        return file.read(65536)


def _open_quickly(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a FIFO in place of the file must not hold us up


class _Tls(_Changing):
    """How servers are verified, and what we show them."""

    def __init__(self, ca_file: str | None, certificate_file: str | None, key_file: str | None) -> None:
        super().__init__([path for path in (ca_file, certificate_file, key_file) if path is not None])
        self._ca_file, self._certificate_file, self._key_file = ca_file, certificate_file, key_file

    def read(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self._ca_file)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self._certificate_file is not None:
                context.load_cert_chain(self._certificate_file, self._key_file)
        except (OSError, ValueError) as error:
            raise ValueError(f"settings: cannot use {', '.join(self._paths)}: {error}") from error
        return context


class _PublicResolver(DefaultLoopResolver):
    """Knows public addresses alone; asked for each connection, so a name cannot move to another later."""

    async def resolve(
        self, host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[tuple[int, Any]]:
        found = await super().resolve(host, port, family)
        public = [(kind, address) for kind, address in found if _is_public(address[0])]
        if not public:
            raise OSError(f"{host} has no public address, and public_only is set")
        return public


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
    if inner in _NAT64:
        inner = ipaddress.IPv4Address(int(inner) & 0xFFFFFFFF)
    return bool(inner.is_global and not inner.is_multicast)


def _shown(data: bytearray) -> str:
    return escape(data.decode("utf-8", "backslashreplace"))


def _json(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()
