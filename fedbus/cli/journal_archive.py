"""`fedbus journal export` and `import`: a journal as lines that verify anywhere, and a journal made of them again."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedbus.cli.common import complete_endpoint, counted, examples, load_settings, notice
from fedbus.cli.escaping import escape
from fedbus.cli.journal_options import (
    SHOWN_FAULTS,
    TRUST,
    Reading,
    from_option,
    json_option,
    opened,
    to_option,
    topic_option,
    verifier_of,
)
from fedbus.cli.render import to_json
from fedbus.cli.whole_file import whole_file

if TYPE_CHECKING:
    from fedbus.config.settings import Settings


@click.command(
    "export",
    epilog=examples(
        "fedbus journal export koji.build01 -o koji.jsonl",
        "fedbus journal export koji.build01 --from 1000 | gzip > koji.jsonl.gz",
        "fedbus journal export koji.build01 --topic koji.package | jq .body",
    ),
)
@click.argument("endpoint", metavar="ENDPOINT", shell_complete=complete_endpoint)
@from_option
@to_option
@topic_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write to FILE, mode 600; - is stdout.",
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
    with opened(settings, endpoint) as reader, whole_file(output) as file:
        reading = Reading(settings, reader, topics, first, last)
        count = 0
        for line in lines_of(reading.messages(), record):
            file.write(to_json(line).encode() + b"\n")
            count += 1
    if output is not None and str(output) != "-":
        notice(f"{counted(count, 'message')} of {endpoint} written to {output}")
    return reading.code


@click.command(
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
@json_option
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
    if path == "-" and sys.stdin is None:
        raise click.ClickException("stdin is closed; name the file of the export")
    settings = load_settings(context)
    verifier = verifier_of(settings)
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
                if not as_json and len(problems) <= SHOWN_FAULTS:
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
    return TRUST if refused else 1 if problems or not summary.messages else 0


def _tell_import(
    summary: Any, problems: list[Any], following: int | None, settings: Settings, endpoint: str | None
) -> None:
    if len(problems) > SHOWN_FAULTS:
        notice(f"and {len(problems) - SHOWN_FAULTS} more; --json names all")
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
