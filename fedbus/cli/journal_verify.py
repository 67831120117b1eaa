"""`fedbus journal verify`: whether every record is there, whole, and what was signed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from fedbus.cli.common import complete_endpoint, counted, examples, load_settings, notice, verbosity
from fedbus.cli.escaping import escape
from fedbus.cli.journal_options import SHOWN_FAULTS, TRUST, check_owner, chosen, json_option, size_of, verifier_of

if TYPE_CHECKING:
    from fedbus.journal.audit import Audit, Kind


@click.command(
    "verify",
    epilog=examples(
        "fedbus journal verify", "fedbus journal verify koji.build01", "fedbus journal verify --json | jq .damage"
    ),
)
@click.argument("endpoints", metavar="[ENDPOINT]...", nargs=-1, shell_complete=complete_endpoint)
@json_option
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
    verifier = verifier_of(settings)
    found: dict[str, Audit] = {}
    failed: dict[str, str] = {}
    quiet = verbosity(context) < 0
    for name, directory in chosen(settings, endpoints).items():
        try:
            total = sum(path.stat().st_size for path in list_segments(directory))
            with _progress(name, total, quiet=quiet) as progress:
                one = audit(directory, verifier, settings.limits, progress=progress)
            check_owner(settings, name, one.endpoint)
            found[name] = one
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
    return TRUST if Kind.REFUSED in kinds else 1 if kinds or failed else 0


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
        f"{size_of(found.bytes)}"
    )
    for fault in found.faults[:SHOWN_FAULTS]:
        word = f"{fault.kind} ({fault.reason.value})" if fault.reason is not None else str(fault.kind)
        click.echo(f"  {word}: {escape(str(fault))}")
    more = len(found.faults) + found.unnamed - SHOWN_FAULTS
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
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield lambda size: None
        return
    with click.progressbar(length=total, label=escape(name), file=sys.stderr) as bar:
        yield bar.update
