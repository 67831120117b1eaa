"""`fedbus journal`: what the endpoints of this host have published, and whether it is all there."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from fedbus.cli.common import complete_endpoint, complete_filter, counted, examples, load_settings, notice, verbosity
from fedbus.cli.escaping import escape
from fedbus.cli.render import to_json

if TYPE_CHECKING:
    from fedbus.config.settings import Settings
    from fedbus.journal.audit import Audit, Fault, Kept
    from fedbus.journal.reader import JournalReader
    from fedbus.journal.state import JournalState
    from fedbus.trust.verifier import Verifier

_TRUST = 4  # the exit code for signatures and policy
_SHOWN_FAULTS = 50  # lines about one journal on stderr; --json has all

_json_option = click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
_from_option = click.option("--from", "first", type=click.IntRange(1), metavar="SEQ", help="From this sequence on.")
_to_option = click.option("--to", "last", type=click.IntRange(1), metavar="SEQ", help="Up to this sequence.")
_topic_option = click.option(
    "--topic", "topics", multiple=True, metavar="FILTER", shell_complete=complete_filter,
    help="Only messages below this topic, as `fedbus tail` takes it; may be repeated.",
)  # fmt: skip


@click.group(
    "journal",
    epilog=examples(
        "fedbus journal list",
        "fedbus journal show koji.build01 --last 5",
        "fedbus journal verify",
        "fedbus journal export koji.build01 -o koji.jsonl",
        "fedbus journal import koji.jsonl --check",
    ),
)
def journal() -> None:
    """Look at the journals of this host, verify them, and carry them elsewhere.

    All but import only read, and may be used while the publishers run.
    """


# --- list ---------------------------------------------------------------------------------------------------------


@journal.command("list", epilog=examples("fedbus journal list", "fedbus journal list --json | jq '.[].bytes'"))
@_json_option
@click.pass_context
def list_journals(context: click.Context, as_json: bool) -> int:
    """List the journals of this host: how far they reach, how much of their limit they use, what is damaged.

    Exit code 1 when one of them cannot be read.
    """
    from fedbus.errors import JournalError
    from fedbus.journal.state import locked_inodes, look

    settings = load_settings(context)
    locked = locked_inodes()
    states: list[JournalState] = []
    unreadable: list[tuple[str, str]] = []
    for name, directory in _journals(settings).items():
        try:
            states.append(look(directory, locked))
        except JournalError as error:
            unreadable.append((name, str(error)))
    rows = [_facts(settings, state) for state in states]
    if as_json:
        failed = [{"endpoint": name, "error": text} for name, text in unreadable]
        click.echo(json.dumps([*rows, *failed], indent=2))
        return 1 if unreadable else 0
    if rows:
        columns = ("ENDPOINT", "START", "HEAD", "SEGMENTS", "BYTES", "USED", "SYNC", "OLDEST", "NEWEST", "STATE")
        _table([columns, *(_row(row) for row in rows)])
    elif not unreadable:
        notice(f"there are no journals in {settings.state / 'journal'}")
    for row in rows:
        for text in [*row["damaged"], *(f"{name} was set aside" for name in row["aside"])]:
            notice(f"{row['endpoint']}: {text}")
    for name, text in unreadable:
        notice(f"{name}: {text}")
    return 1 if unreadable else 0


def _facts(settings: Settings, state: JournalState) -> dict[str, Any]:
    options = settings.journals.get(state.endpoint)
    limit = options.retain_bytes if options is not None else 0
    return {
        "endpoint": state.endpoint,
        "configured": options is not None,
        "epoch": state.epoch,
        "start": state.start,
        "head": state.head,
        "messages": state.messages,
        "bytes": state.bytes,
        "segments": state.segments,
        "oldest": _stamp(state.oldest_ms),
        "newest": _stamp(state.newest_ms),
        "sync": str(options.sync) if options is not None else None,
        "retain_bytes": limit,
        "retain_age": options.retain_age if options is not None else None,
        "used": round(state.bytes / limit, 4) if limit else None,
        "writing": state.writing,
        "damaged": list(state.damaged),
        "aside": list(state.aside),
        "directory": str(state.directory),
    }


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    state = {True: "open", False: "closed", None: "?"}[row["writing"]]
    if row["damaged"]:
        state += ", damaged"
    if not row["configured"]:
        state += ", not configured"
    return (
        escape(row["endpoint"]),
        str(row["start"]),
        str(row["head"]),
        str(row["segments"]),
        _size(row["bytes"]),
        "-" if row["used"] is None else f"{row['used']:.0%}",
        row["sync"] or "-",
        (row["oldest"] or "-")[:19],
        (row["newest"] or "-")[:19],
        state,
    )


def _table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        numbers = (1, 2, 3, 4, 5)
        cells = [
            cell.rjust(width) if place in numbers else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f}{unit}" if unit == "B" else f"{size:.1f}{unit}"
        size /= 1024
    return ""


def _stamp(time_ms: int | None) -> str | None:
    if time_ms is None:
        return None
    with contextlib.suppress(OverflowError, ValueError, OSError):
        return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return None


# --- show ---------------------------------------------------------------------------------------------------------


@journal.command(
    "show",
    epilog=examples(
        "fedbus journal show koji.build01 --last 5",
        "fedbus journal show koji.build01 --from 1000 --to 1010 --json",
        "fedbus journal show koji.build01 --topic koji.package --raw > envelopes.jsonl",
    ),
)
@click.argument("endpoint", metavar="ENDPOINT", shell_complete=complete_endpoint)
@_from_option
@_to_option
@click.option("--last", "tail", type=click.IntRange(1), metavar="N", help="Only the last N of these messages.")
@_topic_option
@click.option("--json", "as_json", is_flag=True, help="One object a line, as `fedbus tail --json`.")
@click.option("--raw", is_flag=True, help="The signed envelopes, byte for byte, one on a line.")
@click.pass_context
def show(
    context: click.Context,
    endpoint: str,
    first: int | None,
    last: int | None,
    tail: int | None,
    topics: tuple[str, ...],
    as_json: bool,
    raw: bool,
) -> int:
    """Show what ENDPOINT has published, as it stands in its journal on this host; every seal is verified.

    What does not verify is left out and told on stderr, and the exit code is then 4; 1 when something is damaged.
    """
    from collections import deque

    from fedbus.cli.render import Look, Renderer

    if as_json and raw:
        raise click.UsageError("--json and --raw exclude each other")
    settings = load_settings(context)
    renderer = Renderer(Look(form="json" if as_json else "short", root=settings.naming.root))
    with _opened(settings, endpoint) as reader:
        kept: Any
        reading = _Reading(settings, reader, topics, first, last)
        kept = reading.messages()
        if tail is not None:
            kept = deque(kept, maxlen=tail)
        terminal = sys.stdout.isatty()
        for one in kept:
            if not raw:
                click.echo(renderer.render(one.message))
            elif terminal:  # what is raw must not command it
                click.echo(escape(one.message.envelope.decode("utf-8", "replace")))
            else:
                sys.stdout.buffer.write(one.message.envelope + b"\n")
    return reading.code


class _Reading:
    """The messages of one journal that were asked for, and what was wrong with the others."""

    def __init__(
        self,
        settings: Settings,
        reader: JournalReader,
        topics: tuple[str, ...],
        first: int | None,
        last: int | None,
    ) -> None:
        from fedbus.errors import MessageError
        from fedbus.model.topic import TopicFilter

        try:
            filters = [TopicFilter.parse(text, settings.naming) for text in topics]
        except MessageError as error:
            raise click.UsageError(f"--topic: {error}") from error
        if first is not None and last is not None and last < first:
            raise click.UsageError(f"--to {last} is before --from {first}")
        self._settings = settings
        self._reader = reader
        self._after = (first or 1) - 1
        self._last = last
        self._wanted: Callable[[str], bool] | None = None
        if filters:
            self._wanted = lambda topic: any(one.matches(topic) for one in filters)
        self.refused = 0
        self.lost = 0

    @property
    def code(self) -> int:
        """The exit code for what was wrong."""
        return _TRUST if self.refused else 1 if self.lost else 0

    def messages(self) -> Iterator[Kept]:
        """Yield the messages."""
        from fedbus.journal.audit import kept_messages

        if self._after + 1 < self._reader.start and self._after:
            notice(
                f"{self._reader.endpoint}: the journal begins at {self._reader.start}; retention took what was before"
            )
        return kept_messages(
            self._reader,
            _verifier(self._settings),
            self._settings.limits,
            after=self._after,
            through=self._last,
            wanted=self._wanted,
            refuse=self._refuse,
            lost=self._lose,
        )

    def _refuse(self, fault: Fault) -> None:
        self.refused += 1
        notice(f"refused: {fault}")

    def _lose(self, first: int, last: int) -> None:
        self.lost += 1
        notice(f"{self._reader.endpoint}: sequences {first} to {last} cannot be read")


# --- verify -------------------------------------------------------------------------------------------------------


@journal.command(
    "verify",
    epilog=examples(
        "fedbus journal verify", "fedbus journal verify koji.build01", "fedbus journal verify --json | jq .damage"
    ),
)
@click.argument("endpoints", metavar="[ENDPOINT]...", nargs=-1, shell_complete=complete_endpoint)
@_json_option
@click.pass_context
def verify(context: click.Context, endpoints: tuple[str, ...], as_json: bool) -> int:
    """Check every record of the journals of these ENDPOINTs, or of all on this host.

    Checksums, sequences without a hole, the chain from each message to the one before it below every level of its
    topic, seal, certificate and policy. Certificates are judged as of the time that the journal took a message in.

    Exit code 4 when a seal, a certificate or the policy does not hold, 1 when something is damaged or missing.
    """
    from fedbus.errors import JournalError
    from fedbus.journal.audit import Kind, audit
    from fedbus.journal.segment import list_segments

    settings = load_settings(context)
    verifier = _verifier(settings)
    found: dict[str, Audit] = {}
    failed: dict[str, str] = {}
    quiet = verbosity(context) < 0
    for name, directory in _chosen(settings, endpoints).items():
        try:
            total = sum(path.stat().st_size for path in list_segments(directory))
            with _progress(name, total, quiet=quiet) as progress:
                found[name] = audit(directory, verifier, settings.limits, progress=progress)
        except (JournalError, OSError) as error:
            failed[name] = str(error)
    if as_json:
        rows = [_verdict(one) for one in found.values()]
        click.echo(json.dumps([*rows, *({"endpoint": name, "error": text} for name, text in failed.items())], indent=2))
    else:
        for one in found.values():
            _tell_audit(one)
        for name, text in failed.items():
            notice(f"{name}: {text}")
        if not found and not failed:
            notice(f"there are no journals in {settings.state / 'journal'}")
    kinds = {fault.kind for one in found.values() for fault in one.faults}
    return _TRUST if Kind.REFUSED in kinds else 1 if kinds or failed else 0


def _verdict(found: Audit) -> dict[str, Any]:
    from fedbus.journal.audit import Kind

    def rows(kind: Kind) -> list[dict[str, Any]]:
        return [
            {
                "where": fault.where,
                "first": fault.first if fault.last >= fault.first else None,
                "last": fault.last if fault.last >= fault.first else None,
                "text": fault.text,
                **({"reason": fault.reason.value} if fault.reason is not None else {}),
            }
            for fault in found.faults
            if fault.kind is kind
        ]

    return {
        "endpoint": found.endpoint,
        "epoch": found.epoch,
        "ok": not found.faults,
        "start": found.start,
        "head": found.head,
        "segments": found.segments,
        "records": found.records,
        "batches": found.batches,
        "messages": found.messages,
        "bytes": found.bytes,
        "passed_over": [{"first": first, "last": last} for first, last in found.passed],
        "torn_bytes": found.torn,
        **{str(kind): rows(kind) for kind in Kind},
        "unnamed": found.unnamed,
    }


def _tell_audit(found: Audit) -> None:
    verdict = "good" if not found.faults else f"{counted(len(found.faults) + found.unnamed, 'fault')}"
    click.echo(
        f"{escape(found.endpoint)}: {verdict}; {counted(found.messages, 'message')} from {found.start} to "
        f"{found.head}, {counted(found.records, 'record')}, {counted(found.segments, 'segment')}, "
        f"{_size(found.bytes)}"
    )
    for fault in found.faults[:_SHOWN_FAULTS]:
        word = f"{fault.kind} ({fault.reason.value})" if fault.reason is not None else str(fault.kind)
        click.echo(f"  {word}: {escape(str(fault))}")
    more = len(found.faults) + found.unnamed - _SHOWN_FAULTS
    if more > 0:
        click.echo(f"  and {more} more; --json names {len(found.faults)} of them")
    for first, last in found.passed:
        notice(f"{found.endpoint}: {first} to {last} were passed over, so that no number is given out twice")
    if found.torn:
        notice(
            f"{found.endpoint}: the last {found.torn} bytes are a batch being written, or torn; nobody has a receipt"
        )


@contextmanager
def _progress(name: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], object]]:
    """Show a bar where somebody looks at stderr."""
    if quiet or not sys.stderr.isatty():
        yield lambda size: None
        return
    with click.progressbar(length=total, label=escape(name), file=sys.stderr) as bar:
        yield bar.update


# --- export and import --------------------------------------------------------------------------------------------


@journal.command(
    "export",
    epilog=examples(
        "fedbus journal export koji.build01 -o koji.jsonl",
        "fedbus journal export koji.build01 --from 1000 | gzip > koji.jsonl.gz",
        "fedbus journal export koji.build01 --topic koji.package | jq .body",
    ),
)
@click.argument("endpoint", metavar="ENDPOINT", shell_complete=complete_endpoint)
@_from_option
@_to_option
@_topic_option
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write to FILE, mode 600."
)
@click.pass_context
def export(
    context: click.Context,
    endpoint: str,
    first: int | None,
    last: int | None,
    topics: tuple[str, ...],
    output: Path | None,
) -> int:
    """Write the journal of ENDPOINT as JSON lines that verify anywhere, with nothing but the CA.

    Each line is that of `fedbus tail --json` and holds envelope (the exact signed text), sealed (a parcel of this
    message alone, base64) and kept (what import needs). With --topic, or with a range that cuts a batch, it cannot be
    made into a journal again. FILE appears whole or not at all.

    Exit code 4 when something does not verify, 1 when something cannot be read; both are left out.
    """
    from fedbus.cli.render import record
    from fedbus.journal.archive import lines_of

    settings = load_settings(context)
    with _opened(settings, endpoint) as reader, _output(output) as file:
        reading = _Reading(settings, reader, topics, first, last)
        count = 0
        for line in lines_of(reading.messages(), record):
            file.write(to_json(line).encode() + b"\n")
            count += 1
    if output is not None:
        notice(f"{counted(count, 'message')} of {endpoint} written to {output}")
    return reading.code


@contextmanager
def _output(path: Path | None) -> Iterator[BinaryIO]:
    """Open stdout, or a file that gets its name only when all is in it and synced."""
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.flush()
        return
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    fresh = Path(name)
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


@journal.command(
    "import",
    epilog=examples(
        "fedbus journal import koji.jsonl --check",
        "fedbus journal import koji.jsonl --as koji.build01",
        "fedbus journal import koji.jsonl --as koji.build01 --complete",
    ),
)
@click.argument("path", type=click.Path(exists=True, dir_okay=False, allow_dash=True), metavar="FILE")
@click.option(
    "--as", "endpoint", metavar="ENDPOINT", shell_complete=complete_endpoint, help="Restore the journal of ENDPOINT."
)
@click.option("--check", is_flag=True, help="Only verify the lines, and tell whether they can be restored.")
@click.option(
    "--complete",
    is_flag=True,
    help="Nothing was published after the export, so the next message may have the next number.",
)
@_json_option
@click.pass_context
def import_journal(
    context: click.Context, path: str, endpoint: str | None, check: bool, complete: bool, as_json: bool
) -> int:
    """Verify what `fedbus journal export` wrote (- for stdin), and make a lost journal of it again.

    The journal gets its epoch, sequences and seals back, record for record, so readers go on at their cursors. It must
    not exist. Every line is verified; a hole, a repetition, a changed line or another endpoint is refused, and nothing
    is made then. Unless --complete, the next message gets a number far ahead, since numbers that were given out after
    the export must not be given out again.

    Exit code 4 when a line does not verify, 1 when the lines are not a whole journal.
    """
    from fedbus.cli.render import record
    from fedbus.clock import SystemClock
    from fedbus.errors import JournalError, Refused
    from fedbus.journal.archive import Problem, Restoration, Summary, check_order, read_lines, rebuild

    if endpoint is None and not check:
        raise click.UsageError("say --as ENDPOINT to restore its journal, or --check")
    settings = load_settings(context)
    verifier = _verifier(settings)
    summary = Summary()
    problems: list[Problem] = []
    restoration: Restoration | None = None
    following: int | None = None
    with contextlib.ExitStack() as stack:
        file = sys.stdin.buffer if path == "-" else stack.enter_context(Path(path).open("rb"))
        if endpoint is not None:
            restoration = Restoration(settings.journal_for(endpoint), endpoint, clock=SystemClock())
            stack.enter_context(restoration)
        for batch in check_order(read_lines(file, verifier, settings.limits, record), summary):
            if isinstance(batch, Problem):
                problems.append(batch)
                if not as_json and len(problems) <= _SHOWN_FAULTS:
                    notice(str(batch))
            elif not problems:
                try:
                    if restoration is not None:
                        restoration.add(batch, verifier)
                    else:
                        rebuild(batch)
                except Refused as error:
                    problems.append(Problem(batch[0].number, str(error), error.reason))
                except JournalError as error:
                    if not check:
                        raise
                    problems.append(Problem(batch[0].number, str(error)))
        if restoration is not None and not problems and not check:
            following = restoration.finish(complete=complete)
    refused = any(problem.reason is not None for problem in problems)
    if as_json:
        report = {
            "endpoint": summary.endpoint,
            "epoch": summary.epoch,
            "first": summary.first,
            "last": summary.last,
            "messages": summary.messages,
            "batches": summary.batches,
            "verified": not refused,
            "restorable": not problems and bool(summary.messages),
            "restored": following is not None,
            "next": following,
            "problems": [
                {"line": one.line, "text": one.text, **({"reason": one.reason.value} if one.reason else {})}
                for one in problems
            ],
        }
        click.echo(json.dumps(report, indent=2))
    else:
        _tell_import(summary, problems, following, settings, endpoint)
    return _TRUST if refused else 1 if problems or not summary.messages else 0


def _tell_import(
    summary: Any, problems: list[Any], following: int | None, settings: Settings, endpoint: str | None
) -> None:
    if len(problems) > _SHOWN_FAULTS:
        notice(f"and {len(problems) - _SHOWN_FAULTS} more; --json names all")
    if not summary.messages:
        notice("there is no message of a journal in it")
        return
    span = f"{escape(summary.endpoint)}/{summary.epoch}, sequences {summary.first} to {summary.last}"
    if problems:
        notice(f"{counted(summary.messages, 'good message')} of {span}; it cannot be restored as a journal")
    elif following is None:
        click.echo(f"{counted(summary.messages, 'message')} of {span}: all verified, and a whole journal")
    else:
        directory = settings.journal_for(str(endpoint)).directory
        click.echo(f"{counted(summary.messages, 'message')} of {span} restored to {directory}")
        notice(f"the next message of {endpoint} will be number {following}")


# --- what they share ----------------------------------------------------------------------------------------------


def _journals(settings: Settings) -> dict[str, Path]:
    """Return the folders of the journals on this host by name: of configured endpoints, and of others that are left."""
    from fedbus.journal.state import journals_in

    folders = {name: options.directory for name, options in settings.journals.items()}
    with contextlib.suppress(OSError):
        for folder in (settings.state / "journal").iterdir():
            if folder.is_dir() and not folder.name.startswith("."):
                folders.setdefault(folder.name, folder)
    present = set(journals_in(folders.values()))
    return {name: folder for name, folder in sorted(folders.items()) if folder in present}


def _chosen(settings: Settings, names: tuple[str, ...]) -> dict[str, Path]:
    known = _journals(settings)
    return {name: known[name] if name in known else _missing(settings, name) for name in names} if names else known


def _missing(settings: Settings, name: str) -> Path:
    """Raise, since there is no journal of *name* here."""
    options = settings.journal_for(name)  # which tells what there is where that is no endpoint at all
    raise click.ClickException(
        f"there is no journal of {name!r} on this host: nothing in {options.directory}; its publisher makes it when it "
        "first starts"
    )


@contextmanager
def _opened(settings: Settings, name: str) -> Iterator[JournalReader]:
    from fedbus.journal.reader import JournalReader

    with JournalReader.open(_chosen(settings, (name,))[name]) as reader:
        yield reader


def _verifier(settings: Settings) -> Verifier:
    from fedbus.trust.keyring import Keyring
    from fedbus.trust.verifier import Verifier

    return Verifier(Keyring.load(settings.keyring), settings.policy)
