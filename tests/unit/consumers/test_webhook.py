"""The consumer that posts messages: what arrives at a real server, and what servers that misbehave lead to."""

from __future__ import annotations

import base64
import email.utils
import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jsonschema
import msgspec
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from fedbus_consumers.webhook import (
    DeliveryFailed,
    Webhook,
    encode_header,
    parse_retry_after,
    parse_secret,
    signatures,
    to_http,
    webhook_id,
)
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook as Receiver
from standardwebhooks import WebhookVerificationError

from fedbus import Drop, Retry
from tests.unit.consumers.messages import message
from tests.unit.consumers.server import RawServer, Server, authority, server_context

OLD, NEW = (f"whsec_{base64.b64encode(bytes([number]) * 32).decode()}" for number in (1, 2))
BODY = {"package": "bash", "text": "ünïcödé \u2028", "list": [1, 2.5, None, True]}


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(f"{NEW}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


@pytest.fixture
def webhook(secret: Path) -> Iterator[Callable[..., Webhook]]:
    """Make and start webhooks: `webhook(URL, **settings)`; all are stopped at the end."""
    made: list[Webhook] = []

    def make(url: str, *, start: bool = True, **settings: Any) -> Webhook:
        settings = {"url": url, "secrets": [{"file": str(secret)}], "allow_http": True, **settings}
        jsonschema.validate(settings, Webhook.schema)
        one = Webhook(**settings)
        if start:
            one.start()
            made.append(one)
        return one

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def raw() -> Iterator[Callable[..., RawServer]]:
    """Make servers of raw bytes; all are closed at the end."""
    made: list[RawServer] = []

    def make(pieces: Callable[[], Any], **options: Any) -> RawServer:
        made.append(RawServer(pieces, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def answers(server: Server, *statuses: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
    """Have *server* answer with these, the last one for ever."""
    rest = itertools.chain(statuses, itertools.repeat(statuses[-1]))
    server.answer = lambda request: (next(rest), headers or {}, body)


# --- what arrives --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["structured", "binary"])
def test_a_receiver_of_standard_webhooks_and_of_cloudevents_takes_what_is_posted(webhook, server, mode):
    sent = message(BODY)
    webhook(server.url, mode=mode).consume(sent)
    (got,) = server.requests
    assert got.path == "/hook"
    assert Receiver(NEW).verify(got.body, got.headers, json_parse=True) is not None
    with pytest.raises(WebhookVerificationError):
        Receiver(OLD).verify(got.body, got.headers)
    with pytest.raises(WebhookVerificationError):
        Receiver(NEW).verify(got.body.replace(b"bash", b"dash"), got.headers)
    event = from_http_event(HTTPMessage(got.headers, got.body))
    assert event.get_id() == sent.id
    assert event.get_source() == "fedbus:koji.build01"
    assert event.get_type() == sent.topic
    assert event.get_specversion() == "1.0"
    assert event.get_datacontenttype() == "application/json"
    assert event.get_time().isoformat() == "2026-11-21T12:34:56.123456+00:00"
    assert event.get_extension("sequence") == f"{sent.sequence:020d}"
    assert event.get_extension("epoch") == sent.epoch
    assert event.get_data() == BODY


def test_a_structured_body_is_the_envelope_that_was_signed_byte_for_byte():
    sent = message(BODY)
    headers, body = to_http(sent, "structured")
    assert body == sent.envelope
    assert headers == {"Content-Type": "application/cloudevents+json; charset=UTF-8"}


def test_a_message_keeps_its_webhook_id_at_each_delivery_and_others_have_others(webhook, server):
    answers(server, 500, 200)
    one = webhook(server.url)
    with pytest.raises(Retry):
        one.consume(message({}))
    one.consume(message({}))
    one.consume(message({}, sequence=8))
    first, again, other = (request.headers["webhook-id"] for request in server.requests)
    assert first == again != other
    assert "." not in first


def test_two_messages_whose_senders_gave_them_the_same_id_are_two_to_a_receiver():
    one, other = message({}, sequence=1), message({}, sequence=2)
    other.parcel.envelopes[0] = one.envelope
    assert one.id == other.id and webhook_id(one) != webhook_id(other)


def test_while_secrets_are_exchanged_receivers_with_either_take_it_and_no_restart_is_needed(webhook, server, secret):
    one = webhook(server.url)
    one.consume(message({}))
    secret.write_text(f"{NEW}\n{OLD}\n")
    one.consume(message({}))
    secret.write_text("garbage")
    one.consume(message({}))
    first, both, kept = server.requests
    for key in (NEW, OLD):
        Receiver(key).verify(both.body, both.headers)
        Receiver(key).verify(kept.body, kept.headers)
    with pytest.raises(WebhookVerificationError):
        Receiver(OLD).verify(first.body, first.headers)


def test_a_secret_may_come_from_the_environment(webhook, server, monkeypatch):
    monkeypatch.setenv("HOOK_SECRET", OLD)
    webhook(server.url, secrets=[{"env": "HOOK_SECRET"}]).consume(message({}))
    (got,) = server.requests
    Receiver(OLD).verify(got.body, got.headers)


def test_headers_of_the_settings_are_sent(webhook, server):
    webhook(server.url, headers={"Authorization": "Bearer x", "User-Agent": "mine"}).consume(message({}))
    (got,) = server.requests
    assert (got.headers["authorization"], got.headers["user-agent"]) == ("Bearer x", "mine")


def test_several_workers_post_at_the_same_time(webhook, server):
    barrier = threading.Barrier(3, timeout=180)
    server.answer = lambda request: ((barrier.wait() and 204) or 204, {}, b"")
    one = webhook(server.url)
    workers = [threading.Thread(target=one.consume, args=[message({}, sequence=number)]) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    assert not barrier.broken and len(server.requests) == 3


@given(st.text())
def test_any_text_of_an_attribute_comes_back_from_a_header_of_plain_ascii(text):
    encoded = encode_header(text)
    assert all("!" <= letter <= "~" and letter != '"' for letter in encoded)
    assert unquote(encoded, errors="strict") == text.encode("utf-8", "replace").decode()


def test_the_example_of_the_specification_is_encoded_as_there():
    assert encode_header("Euro € 😀") == "Euro%20%E2%82%AC%20%F0%9F%98%80"


VALUES = (
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text() | st.lists(st.text(max_size=3), max_size=2)
)


@given(st.dictionaries(st.text(max_size=20) | st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True), VALUES, max_size=5))
def test_no_attribute_of_a_message_gets_out_of_its_header(extra):
    sent = message({})
    attributes = {**extra, **sent.attributes}
    changed = msgspec.structs.replace(sent, _attributes=attributes)
    headers, _ = to_http(changed, "binary")
    for name, value in headers.items():
        assert name.isascii() and name.replace("-", "").isalnum() and value.isascii() and value.isprintable()
    names = {"webhook-id", "webhook-signature", "host", "authorization"}
    assert not names & {name.lower() for name in headers}


def test_attributes_that_are_too_large_for_headers_fail_and_are_not_cut():
    changed = msgspec.structs.replace(message({}), _attributes={**message({}).attributes, "dataschema": "x" * 20_000})
    with pytest.raises(DeliveryFailed, match="use mode: structured"):
        to_http(changed, "binary")


@pytest.mark.parametrize("mode", ["structured", "binary"])
def test_a_message_in_another_format_becomes_a_cloudevent_too(mode):
    sent = msgspec.structs.replace(message(BODY), wire="fedmsg")
    headers, body = to_http(sent, mode)
    event = from_http_event(HTTPMessage(headers, body))
    assert (event.get_id(), event.get_type(), event.get_data()) == (webhook_id(sent), sent.topic, BODY)


# --- what is answered ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_any_2xx_says_that_it_is_done(webhook, server, status):
    answers(server, status)
    webhook(server.url).consume(message({}))


@pytest.mark.parametrize("status", [301, 307, 401, 403, 404, 408, 425, 429, 500, 502, 503, 504])
def test_trouble_of_the_address_makes_messages_wait(webhook, server, status):
    answers(server, status, headers={"Location": "http://127.0.0.1:1/"}, body=b"no\x1b[31m")
    with pytest.raises(Retry, match=rf"it answered {status}: no\\x1b\[31m"):
        webhook(server.url).consume(message({}))
    assert len(server.requests) == 1  # redirects are not followed


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_a_message_that_is_not_taken_has_failed(webhook, server, status):
    answers(server, status)
    with pytest.raises(DeliveryFailed, match=f"it answered {status}"):
        webhook(server.url).consume(message({}))


def test_an_address_that_is_gone_gets_nothing_more(webhook, server):
    answers(server, 410)
    one = webhook(server.url)
    for _ in range(3):
        with pytest.raises(Drop, match="410"):
            one.consume(message({}))
    assert len(server.requests) == 1


def test_what_a_status_means_can_be_set(webhook, server):
    answers(server, 404, 500, 410, 200)
    one = webhook(server.url, status_codes={"drop": [404], "fail": [500], "retry": [410, 200]})
    with pytest.raises(Drop):
        one.consume(message({}))
    with pytest.raises(DeliveryFailed):
        one.consume(message({}))
    for _ in range(2):
        with pytest.raises(Retry):
            one.consume(message({}))


def test_pauses_grow_up_to_the_longest_and_begin_anew_after_a_success(webhook, server):
    answers(server, *[500] * 6, 200, 500)
    one = webhook(server.url, longest_pause=5)
    pauses = []
    for _ in range(8):
        try:
            one.consume(message({}))
        except Retry as retry:
            pauses.append(retry.after)
    assert all(
        0.75 * wanted <= pause <= 1.25 * wanted for wanted, pause in zip([1, 2, 4, 5, 5, 5, 1], pauses, strict=True)
    )


@pytest.mark.parametrize(
    ("header", "low", "high"), [("120", 120, 120), ("99999999", 86400, 86400), ("soon", 0, 2), ("-5", 0, 2)]
)
def test_retry_after_is_honoured_within_a_day(webhook, server, header, low, high):
    answers(server, 503, headers={"Retry-After": header})
    with pytest.raises(Retry) as retry:
        webhook(server.url).consume(message({}))
    assert low <= retry.value.after <= high


def test_the_log_tells_once_that_an_address_is_out_of_reach_and_that_it_is_back(webhook, server, caplog):
    caplog.set_level(logging.INFO)
    answers(server, 500, 500, 500, 200)
    one = webhook(server.url + "?token=x")
    for _ in range(3):
        with pytest.raises(Retry):
            one.consume(message({}))
    one.consume(message({}))
    said = [record.getMessage() for record in caplog.records if record.name == "fedbus_consumers.webhook"]
    assert said == [
        f"{server.url}: it answered 500; messages wait for it",
        f"{server.url} answers again, after 3 requests in vain",
    ]


def test_retry_after_may_be_a_date():
    now = time.time()
    assert parse_retry_after(email.utils.formatdate(now + 90, usegmt=True), now) == pytest.approx(90, abs=1.1)
    assert parse_retry_after(email.utils.formatdate(now - 90, usegmt=True), now) == 0.0


@given(st.text() | st.from_regex(r"\w{3}, \d{1,3} \w{3} \d{1,6} \d\d:\d\d:\d\d [-+]?\w{3,5}"))
def test_any_retry_after_is_a_time_or_none(text):
    seconds = parse_retry_after(text, 1.7e9)
    assert seconds is None or 0.0 <= seconds < float("inf")


def test_what_was_tried_for_too_long_fails_and_is_not_tried_for_ever(webhook, server):
    answers(server, 500)
    one = webhook(server.url, give_up_after="1h")
    with pytest.raises(Retry):
        one.consume(message({}))
    one._since = {key: since - 3601 for key, since in one._since.items()}
    for _ in range(2):  # the hub's own attempts do not begin anew
        with pytest.raises(DeliveryFailed, match="it was tried for 36"):
            one.consume(message({}))
    answers(server, 200)
    one.consume(message({}))
    assert not one._since


# --- servers that misbehave ----------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"


def endless(piece: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: itertools.repeat(piece)


def after(start: bytes, piece: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: itertools.chain([start], itertools.repeat(piece))


BAD = {
    "garbage": lambda: [os.urandom(5000)],
    "text": lambda: [b"SSH-2.0-OpenSSH_9.2\r\n"],
    "another protocol version": lambda: [b"HTTP/9.9 200 OK\r\n\r\n"],
    "nothing": lambda: [],
    "half a status line": lambda: [b"HTTP/1.1 2"],
    "an endless status line": endless(b"H" * 60_000),
    "an endless header": after(OK + b"X: ", b"x" * 60_000),
    "endless headers": after(OK, b"X: y\r\n" * 5000),
    "endless interim answers": endless(b"HTTP/1.1 100 Continue\r\n\r\n" * 500),
    "a bad header": lambda: [b"HTTP/1.1 abc\r\n\r\n"],
}


@pytest.mark.badinput("B50")
@pytest.mark.parametrize("kind", BAD)
def test_garbage_and_endless_answers_are_no_answers(webhook, raw, kind):
    bad = raw(BAD[kind])
    with pytest.raises(Retry, match="no answer"):
        webhook(bad.url, timeout=5).consume(message({}))
    assert bad.sent < 64 * 2**20


@pytest.mark.badinput("B50")
@pytest.mark.parametrize(
    "pieces",
    [
        after(OK + b"\r\n", b"x" * 60_000),
        after(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b"x" * 4096 + b"\r\n"),
        lambda: [OK + b"Content-Length: 99999999999\r\n\r\nx"],
        lambda: [OK + b"Content-Length: 5\r\n\r\nx"],
        lambda: [OK + b"Content-Length: 5\r\nContent-Encoding: gzip\r\n\r\nxxxxx"],
        lambda: [OK + b"Transfer-Encoding: chunked\r\n\r\nzzzz\r\n"],
    ],
    ids=["endless", "endless chunks", "announced too long", "too short", "no gzip", "no chunk"],
)
def test_a_status_counts_however_large_or_broken_what_follows_is(webhook, raw, pieces):
    server = raw(pieces)
    webhook(server.url).consume(message({}))
    assert server.sent < 64 * 2**20


@pytest.mark.badinput("B50")
def test_a_server_that_never_answers_costs_the_timeout_and_no_more(webhook, raw):
    one = webhook(raw(lambda: [], hang=True).url, timeout=0.3)
    with pytest.raises(Retry, match="no answer: HTTPTimeoutError"):
        one.consume(message({}))


@pytest.mark.badinput("B50")
def test_a_body_that_never_ends_costs_the_timeout_and_the_status_counts(webhook, raw):
    for timeout in (0.3, 3, 30):  # a busy machine may not get as far as the status in the first
        one = webhook(raw(lambda: [OK + b"Content-Length: 5\r\n\r\n"], hang=True).url, timeout=timeout)
        try:
            one.consume(message({}))
        except Retry:
            continue
        return
    pytest.fail("the status does not count")


def test_an_address_where_nobody_listens_makes_messages_wait(webhook):
    with socket.socket() as held:  # so that nobody else does
        held.bind(("127.0.0.1", 0))
        with pytest.raises(Retry, match="no answer"):
            webhook(f"http://127.0.0.1:{held.getsockname()[1]}/").consume(message({}))


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[Server]:
    one = Server(server_context(authority(tmp_path / "ca"), ask_client=True))
    yield one
    one.close()


def test_a_server_of_our_own_ca_is_believed_and_gets_our_certificate(webhook, secure, tmp_path):
    ca = tmp_path / "ca"
    settings = {"certificate_file": str(ca / "server.pem"), "key_file": str(ca / "server.key")}
    webhook(secure.url, ca_file=str(ca / "ca.pem"), **settings).consume(message({}))
    assert len(secure.requests) == 1
    with pytest.raises(Retry, match="no answer"):
        webhook(secure.url, ca_file=str(ca / "ca.pem")).consume(message({}))  # without one
    assert len(secure.requests) == 1


@pytest.mark.parametrize("case", ["unknown CA", "system CAs", "another name"])
def test_a_server_that_cannot_prove_its_name_gets_nothing(webhook, tmp_path, case):
    ca = authority(tmp_path / "ca")
    other = authority(tmp_path / "other", "another CA")
    server = Server(server_context(ca))
    try:
        files = {"unknown CA": {"ca_file": str(other / "ca.pem")}, "system CAs": {}}
        settings = files.get(case, {"ca_file": str(ca / "ca.pem")})
        url = server.url.replace("127.0.0.1", "localhost") if case == "another name" else server.url
        with pytest.raises(Retry, match="CERTIFICATE_VERIFY_FAILED"):
            webhook(url, **settings).consume(message({}))
        assert server.requests == []
    finally:
        server.close()


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/",
        "http://localhost:1/",
        "http://[::1]:1/",
        "http://[::ffff:10.0.0.1]:1/",
        "http://[64:ff9b::a00:1]:1/",
    ],
)
def test_with_public_only_nothing_is_sent_into_private_networks(webhook, url):
    with pytest.raises(Retry, match="has no public address"):
        webhook(url, public_only=True).consume(message({}))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"url": "http://x.example/", "allow_http": False}, "is not encrypted"),
        ({"url": "https://a:b@x.example/"}, "a password in it shows up in logs"),
        ({"url": "https:///path"}, "is not an address"),
        ({"url": "https://x.example:99999/"}, "settings.url"),
        ({"url": "https://x.example/\r\nX: y"}, "is not an address"),
        ({"headers": {"Webhook-Id": "x"}}, "is set by the consumer itself"),
        ({"headers": {"Content-Length": "5"}}, "is set by the consumer itself"),
        ({"timeout": "never"}, "settings.timeout: 'never' is not a duration"),
        ({"status_codes": {"drop": [500], "fail": [500]}}, "500 is in drop and in fail"),
    ],
)
def test_settings_that_cannot_be_are_told_when_the_consumer_is_made(webhook, settings, says):
    with pytest.raises(ValueError, match=says):
        webhook(settings.pop("url", "https://x.example/"), start=False, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "ftp://x.example/"},
        {"secrets": []},
        {"secrets": [{"file": "relative"}]},
        {"secrets": [{"file": "/x", "env": "Y"}]},
        {"mode": "batched"},
        {"headers": {"X": "a\r\nY: b"}},
        {"headers": {"X\r\nY": "a"}},
        {"verify": False},
        {"key_file": "/x"},
    ],
)
def test_settings_of_another_shape_are_refused_by_the_schema(settings):
    whole = {"url": "https://x.example/", "secrets": [{"env": "X"}], **settings}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(whole, Webhook.schema)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hunter2", "not a secret"),
        ("whsec_!!!!", "not a secret"),
        (f"whsec_{base64.b64encode(b'x' * 8).decode()}", "24 to 64 bytes, this one 8"),
        ("", "holds no secret"),
    ],
)
def test_a_bad_secret_is_told_of_without_showing_it(webhook, secret, text, says):
    secret.write_text(text)
    with pytest.raises(ValueError, match=says) as error:
        webhook("https://x.example/")
    assert not text or text not in str(error.value)


def test_a_secret_that_others_can_read_is_refused(webhook, secret):
    secret.chmod(0o644)
    with pytest.raises(ValueError, match="mode 0644, so others can read it; use chmod 600"):
        webhook("https://x.example/")


@given(st.text())
def test_any_text_is_a_secret_or_a_value_error(text):
    try:
        assert 24 <= len(parse_secret(text, "here")) <= 64
    except ValueError as error:
        assert text == "" or len(text) < 6 or text not in str(error)


def test_signatures_are_those_of_the_reference_implementation():
    # from the test of the reference libraries: secret, id, time, payload and what must come out
    key = parse_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "here")
    signed = signatures([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
