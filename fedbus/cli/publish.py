"""`fedbus publish`: messages from scripts and hooks, acknowledged once they are in the journal."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from fedbus.cli.common import complete_endpoint, complete_topic, examples, load_settings, notice, verbosity
from fedbus.cli.signals import Finished, Stop, silence_stdout

if TYPE_CHECKING:
    from fedbus.errors import MessageError, WireError
    from fedbus.transport.endpoint import Endpoint

_RETRY_SECONDS = 0.1  # between two tries for an endpoint that another process holds
_FETCH_SECONDS = 0.2  # what a subscriber on the network needs to ask for what it missed, once it heard a beat
_IN_FLIGHT = 4096  # lines queued whose receipts were not printed yet
_CHUNK_BYTES = 256 * 2**10

_EXAMPLES = examples(
    'fedbus publish package.build.complete \'{"package": "bash"}\' --as koji.build01',
    "jq -n '{package: \"bash\"}' | fedbus publish package.build.complete -",
    "fedbus publish build.start --lines --json < builds.jsonl > receipts.jsonl",
    'fedbus publish --lines --with-topic <<< \'{"topic": "tag.add", "body": {"tag": "f42"}}\'',
    "fedbus publish build.start '{}' --dry-run",
)


@click.command("publish", epilog=_EXAMPLES)
@click.argument("topic", required=False, shell_complete=complete_topic)
@click.argument("body", metavar="[JSON|-]", required=False)
@click.option(
    "--as",
    "endpoint",
    metavar="ENDPOINT",
    shell_complete=complete_endpoint,
    help="Whose message it is; needed where this host has the keys of several endpoints.",
)
@click.option("--lines", is_flag=True, help="Read one JSON body a line from stdin.")
@click.option(
    "--with-topic", is_flag=True, help='Read one {"topic": …, "body": …} a line from stdin; TOPIC is left out.'
)
@click.option("--json", "as_json", is_flag=True, help="Print receipts as JSON, one object a line.")
@click.option("--dry-run", is_flag=True, help="Check topic, body, schema and policy; publish nothing.")
@click.option(
    "--wait",
    type=click.FloatRange(0.0, 3600.0),
    default=1.0,
    show_default=True,
    metavar="S",
    help="At most how long to stay, so that subscribers can come; 0: leave once it is in the journal.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.0, 3600.0),
    default=10.0,
    show_default=True,
    metavar="S",
    help="How long to wait for an endpoint that another process holds, for the journal, and for the relay.",
)
@click.option(
    "--rate", type=click.FloatRange(0.001, 1e6), metavar="N", help="With --lines: at most N messages a second."
)
@click.option("--dataschema", metavar="NAME", help="The name of the JSON Schema that the body obeys.")
@click.option("--traceparent", metavar="TEXT", help="W3C trace context; otherwise $TRACEPARENT.", envvar="TRACEPARENT")
@click.pass_context
def publish(context: click.Context, /, **options: Any) -> int:
    """Publish JSON under TOPIC, such as package.build.complete.

    The topic is written without prefix, environment and service, which come from the configuration; with them it is
    taken too. The JSON is one object; - reads it from stdin, and so does leaving it out where stdin is no terminal.

    It is published once the receipt is printed: it is in the endpoint's journal, on the disk. An endpoint that is
    marked `relay: true` is published by the relay of this host; where none runs, the message is spooled, and published
    when one does. Any other endpoint is open only while this command runs, so it stays up to --wait seconds for
    subscribers; those that come later read the journal.

    With --lines, a bad line is reported and the others are published; the exit code is then 1.
    """
    return _Command(context, **options).run()


def _facts(receipt: Any) -> dict[str, Any]:
    """Return what JSON says of a receipt; of a spooled message, what is known by now."""
    facts = dataclasses.asdict(receipt)
    if receipt.spooled:
        return {key: value for key, value in facts.items() if value} | {"spooled": True}
    return facts


def _line(receipt: Any) -> str:
    if receipt.spooled:
        return f"{receipt.endpoint} spooled {receipt.topic} {receipt.submission}"
    return f"{receipt.endpoint}#{receipt.sequence} {receipt.topic} {receipt.id}"


class _BadLine(Exception):
    """A line that cannot be published; what follows it can."""


class _Command:
    def __init__(
        self,
        context: click.Context,
        *,
        topic: str | None,
        body: str | None,
        endpoint: str | None,
        lines: bool,
        with_topic: bool,
        as_json: bool,
        dry_run: bool,
        wait: float,
        timeout: float,
        rate: float | None,
        dataschema: str | None,
        traceparent: str | None,
    ) -> None:
        self._lines = lines or with_topic
        if with_topic and topic is not None:
            raise click.UsageError("with --with-topic each line names its topic; leave TOPIC out")
        if not with_topic and topic is None:
            raise click.UsageError("a TOPIC is missing, such as package.build.complete")
        if self._lines and body not in (None, "-"):
            raise click.UsageError("with --lines the bodies come from stdin; leave JSON out")
        if rate is not None and not self._lines:
            raise click.UsageError("--rate is for --lines")
        self._topic = topic
        self._body = body
        self._with_topic = with_topic
        self._as_json = as_json
        self._dry_run = dry_run
        self._linger = wait
        self._timeout = timeout
        self._rate = rate
        self._extra = {"dataschema": dataschema, "traceparent": traceparent}
        self._silent = verbosity(context) < 0
        self._failed = False
        self._printing = True
        self._settings = load_settings(context)
        self._endpoint = self._choose(endpoint)
        self._naming = self._settings.naming

    def run(self) -> int:
        if self._dry_run:
            return self._check()
        if self._settings.endpoint(self._endpoint).relay:
            return self._through_relay()
        short, single = "", None
        if not self._lines:
            # before anything is opened: bad input then costs nobody a socket
            short, single = self._checked(self._one_body())
        from fedbus.bus import Bus

        with Stop() as stop, Bus(self._settings) as bus:
            publisher = self._open(bus, stop)
            if publisher is None:
                return stop.code
            live = self._settings.endpoint(self._endpoint).wire == "fedmsg"
            if live and publisher.wait_for_subscribers(1, self._linger):
                stop.wait(_FETCH_SECONDS)  # nobody can ask for it later, so the others get a moment, too
            if single is not None:
                receipt = publisher.publish(short, single, timeout=self._timeout, **self._extra)
                self._print([receipt])
            else:
                self._publish_lines(publisher, stop)
            if publisher.stats.published and not live:
                self._stay(publisher, stop)
        return stop.code or (1 if self._failed else 0)

    def _through_relay(self) -> int:
        """Hand in what is to be published; where the relay is not there, spool it. Return the exit code.

        What takes long to import (JSON that is as strict as that of readers, cryptography, sockets) is left to the
        relay: hooks run this with each push.
        """
        from fedbus.errors import MessageError
        from fedbus.transport.relay_client import RelayPublisher

        settings = self._settings
        publisher = RelayPublisher(
            settings.endpoint(self._endpoint),
            naming=settings.naming,
            limits=settings.limits,
            options=settings.relay,
            spool=settings.spools / self._endpoint,
        )
        try:
            if self._lines:
                with Stop() as stop, publisher:
                    self._publish_lines(publisher, stop)
                return Finished(stop.code or (1 if self._failed else 0))
            with publisher:
                short = self._checked_topic()
                data = self._one_body()
                try:
                    receipt = publisher.publish_json(short, data, timeout=self._timeout, **self._extra)
                except MessageError as error:
                    raise self._bad_body(error) from error
                self._print([receipt])
            return Finished(0)
        finally:
            if publisher.stats.spooled and not self._silent:
                notice(f"fedbus: spooled, and published once a relay runs: {publisher.problem}")

    # --- what is to be published -------------------------------------------------------------------------------

    def _choose(self, wanted: str | None) -> str:
        """Return the endpoint to publish as."""
        settings = self._settings
        if wanted is not None:
            return settings.endpoint(wanted).name
        here = [one.name for one in settings.endpoints.values() if one.wire == "native" and self._is_here(one)]
        root = settings.naming.root + "."
        if self._topic is not None and self._topic.startswith(root):
            service = self._topic[len(root) :].split(".", 1)[0]
            here = [name for name in here if name.split(".", 1)[0] == service] or here
        if len(here) == 1:
            return here[0]
        if not here:
            from fedbus.errors import KeysError

            raise KeysError(
                f"there is no private key of any endpoint in {settings.keys}; issue one (fedbus keys issue NAME) or "
                "bring it here"
            )
        choices = ", ".join(sorted(here)[:20]) + (", …" if len(here) > 20 else "")
        raise click.UsageError(f"say who publishes, with --as ENDPOINT; this host has the keys of: {choices}")

    def _is_here(self, endpoint: Endpoint) -> bool:
        """Say whether *endpoint* is one of this host: its key is here, or the relay of this host has a spool for it."""
        try:
            if endpoint.key is not None and endpoint.key.exists():
                return True
        except PermissionError:
            pass  # keys are the relay's business
        return endpoint.relay and (self._settings.spools / endpoint.name).is_dir()

    def _short(self, topic: str) -> str:
        """Return *topic* without prefix, environment and service, or whole where it is of another service.

        Raises:
            MessageError: It is no topic.
            TrustError: It is of another bus, or of another service and no rule of the policy grants it.
        """
        from fedbus.model.topic import check_topic

        naming, endpoint = self._naming, self._endpoint
        if topic.startswith(naming.prefix + "."):
            check_topic(topic)
            topic = topic.removeprefix(f"{naming.root}.{endpoint.split('.', 1)[0]}.")
            if topic.startswith(naming.prefix + "."):
                self._settings.policy.check(endpoint, topic)
                return topic
        self._settings.policy.check(endpoint, self._full(topic))
        return topic

    def _full(self, short: str) -> str:
        """Return the topic that *short*, as of :meth:`_short`, is published under."""
        naming = self._naming
        return short if short.startswith(naming.root + ".") else naming.expand(self._endpoint.split(".", 1)[0], short)

    def _checked(self, data: bytes) -> tuple[str, dict[str, Any]]:
        """Return short topic and body; what is wrong with an argument is an error of usage."""
        from fedbus.errors import MessageError, WireError
        from fedbus.wire import strict

        short = self._checked_topic()
        try:
            body = self._decode(data)
            strict.encode(body, self._settings.limits)
        except (WireError, MessageError) as error:
            raise self._bad_body(error) from error
        return short, body

    def _checked_topic(self) -> str:
        from fedbus.errors import MessageError

        try:
            return self._short(self._topic or "")
        except MessageError as error:
            raise click.UsageError(f"TOPIC: {error}") from error

    def _bad_body(self, error: WireError | MessageError) -> Exception:
        """Return what to raise for a body that cannot be published."""
        if self._body is None or self._body == "-":
            return type(error)(error.reason, f"the JSON on stdin: {error}")
        return click.UsageError(f"JSON: {error}")

    def _decode(self, data: bytes) -> dict[str, Any]:
        from fedbus.wire import strict

        return strict.decode(data, self._settings.limits)

    def _one_body(self) -> bytes:
        from fedbus.errors import MessageError, Reason

        if self._body is not None and self._body != "-":
            return os.fsencode(self._body)
        if sys.stdin is None:
            raise click.ClickException("stdin is closed; give the JSON as an argument")
        if self._body is None and sys.stdin.isatty():
            raise click.UsageError("the JSON is missing; write it behind the topic, or - to read it from stdin")
        limit = self._settings.limits.message_bytes
        data = sys.stdin.buffer.read(limit + 2)
        data = data[:-1] if data.endswith(b"\n") else data
        if len(data) > limit:  # what is beyond it was not read, so nobody knows how long it is
            raise MessageError(Reason.OVERSIZE, f"the JSON on stdin: longer than {limit} bytes, the limit of a message")
        return data

    def _check(self) -> int:
        """Do all but publish; return the exit code."""
        from fedbus.config.schemas import open_schemas
        from fedbus.errors import FedbusError
        from fedbus.wire import strict

        schemas, _ = open_schemas(self._settings)

        def hold_against_schema(short: str, body: dict[str, Any]) -> None:
            if check := schemas.publishing(self._full(short)):
                check(body)

        if not self._lines:
            short, body = self._checked(self._one_body())
            hold_against_schema(short, body)
            self._show_checked(short, body)
            return 0
        for number, line in self._numbered_lines():
            if not number:
                continue
            try:
                topic, body = self._parse(line)
                short = self._short(topic)
                strict.encode(body, self._settings.limits)
                hold_against_schema(short, body)
            except (FedbusError, _BadLine) as error:
                self._report(number, error)
                continue
            self._show_checked(short, body)
        return 1 if self._failed else 0

    def _show_checked(self, short: str, body: dict[str, Any]) -> None:
        from fedbus.cli.render import to_json

        full = self._full(short)
        if self._as_json:
            self._write(to_json({"topic": full, "endpoint": self._endpoint, "body": body, "dry_run": True}) + "\n")
        elif not self._silent:
            self._write(f"{self._endpoint} would publish {full}\n")

    def _parse(self, line: bytes) -> tuple[str, dict[str, Any]]:
        value = self._decode(line)
        if not self._with_topic:
            return self._topic or "", value
        topic, body = value.get("topic"), value.get("body")
        unknown = sorted(set(value) - {"topic", "body"})
        if not isinstance(topic, str) or not isinstance(body, dict) or unknown:
            found = f"; it has {', '.join(map(repr, unknown[:5]))} too" if unknown else ""
            raise _BadLine(f'not of the form {{"topic": "…", "body": {{…}}}}{found}')
        return topic, body

    def _numbered_lines(self, stop: Stop | None = None) -> Iterator[tuple[int, bytes]]:
        """Yield the lines of stdin with their numbers; (0, b"") when nothing has come right now."""
        if sys.stdin is None:
            raise click.ClickException("stdin is closed; there is nothing to publish")
        descriptor = sys.stdin.fileno()
        # the envelope of --with-topic and white space around; what is beyond it is refused without being kept
        most = self._settings.limits.message_bytes + 2**16
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if stop is not None:
            poll.register(stop.descriptor, select.POLLIN)
        number = 0
        rest = b""
        skipping = False
        while stop is None or not stop.signal:
            if not poll.poll(0):
                yield 0, b""
                poll.poll()
                continue
            if stop is not None and stop.signal:
                return
            data = os.read(descriptor, _CHUNK_BYTES)
            lines = (rest + data).split(b"\n")
            # what follows the last newline; at the end of stdin the last line may do without one
            rest = lines.pop() if data else b""
            for line in lines:
                number += 1
                if skipping:
                    skipping = False
                elif line.strip():
                    yield number, line
            if len(rest) > most and not skipping:
                self._report(number + 1, _BadLine(f"longer than {most} bytes"))
                skipping = True
            if skipping:
                rest = b""
            if not data:
                return

    # --- publishing --------------------------------------------------------------------------------------------

    def _open(self, bus: Any, stop: Stop) -> Any:
        """Return the publisher; None when a signal came first.

        Raises:
            JournalLocked, BindError: Another process held the endpoint until the deadline, or its address can never be
                bound here.
        """
        from fedbus.errors import BindError, JournalLocked

        deadline = time.monotonic() + self._timeout
        told = False
        while True:
            try:
                return bus.publisher(self._endpoint)
            except (JournalLocked, BindError) as error:
                if isinstance(error, BindError) and not error.in_use:
                    raise
                left = deadline - time.monotonic()
                if left <= 0:
                    text = (
                        f"endpoint {self._endpoint} is in use by another process, and was so for {self._timeout:g} s: "
                        f"{error}; let that process publish, choose another endpoint with --as, or give more --timeout"
                    )
                    if isinstance(error, BindError):
                        raise BindError(text, endpoint=error.endpoint, address=error.address, in_use=True) from error
                    raise JournalLocked(text) from error
                if not told and not self._silent:
                    told = True
                    notice(f"endpoint {self._endpoint} is in use by another process; trying for {left:.0f} s")
                if stop.wait(min(left, _RETRY_SECONDS)):
                    return None

    def _publish_lines(self, publisher: Any, stop: Stop) -> None:
        from fedbus.errors import FedbusError, PublisherClosed, QueueFull

        pending: deque[tuple[int, Any]] = deque()
        pause = 1.0 / self._rate if self._rate else 0.0
        due = time.monotonic()
        known: dict[str, str] = {}
        for number, line in self._numbered_lines(stop):
            if stop.signal:
                break
            if not number:
                # stdin is quiet: hand out what there is before waiting for more
                self._settle(pending, all_of_it=True)
                continue
            try:
                topic, body = self._parse(line)
                short = known.get(topic)
                if short is None:
                    if len(known) > 10_000:
                        known.clear()
                    short = known[topic] = self._short(topic)
                pending.append((number, publisher.enqueue(short, body, timeout=self._timeout, **self._extra)))
            except (QueueFull, PublisherClosed):
                self._settle(pending, all_of_it=False)
                raise
            except (FedbusError, _BadLine) as error:
                self._report(number, error)
            self._settle(pending, all_of_it=len(pending) >= _IN_FLIGHT)
            if pause:
                due = max(due + pause, time.monotonic() - 1.0)
                if due > time.monotonic():
                    self._settle(pending, all_of_it=True)
                    stop.wait(due - time.monotonic())
        self._settle(pending, all_of_it=True)

    def _settle(self, pending: deque[tuple[int, Any]], *, all_of_it: bool) -> None:
        """Print the receipts of what is journaled, in order; with *all_of_it* wait for the rest."""
        from fedbus.errors import FedbusError, JournalWriteError, MessageError, Refused

        receipts = []
        try:
            while pending and (all_of_it or pending[0][1].done):
                number, one = pending.popleft()
                # to the relay: what it does not answer for in time is spooled
                settle = getattr(one, "settle", one.result)
                try:
                    receipts.append(settle(max(self._timeout, 1.0)))
                except (JournalWriteError, MessageError, Refused) as error:
                    self._report(number, error)
                except FedbusError as error:
                    self._report(number, error)
                    raise
        finally:
            self._print(receipts)

    def _stay(self, publisher: Any, stop: Stop) -> None:
        """Linger for subscribers: until one has connected, heard a beat, and had time to ask for what it missed."""
        deadline = time.monotonic() + self._linger
        stats = publisher.stats
        while not stats.subscribers and time.monotonic() < deadline:
            if stop.wait(0.02):
                return
        beats = stats.beats
        while stats.beats == beats and time.monotonic() < deadline:
            if stop.wait(0.02):
                return
        stop.wait(min(_FETCH_SECONDS, deadline - time.monotonic()))

    # --- telling -----------------------------------------------------------------------------------------------

    def _report(self, number: int, error: Exception) -> None:
        self._failed = True
        notice(f"line {number}: {error}")

    def _print(self, receipts: list[Any]) -> None:
        if not receipts:
            return
        if self._as_json:
            self._write("".join(json.dumps(_facts(one), separators=(",", ":")) + "\n" for one in receipts))
        elif not self._silent:
            self._write("".join(_line(one) + "\n" for one in receipts))

    def _write(self, text: str) -> None:
        if not self._printing or sys.stdout is None:
            return
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            # nobody wants the receipts; the messages are wanted all the same
            self._printing = False
            silence_stdout()
