"""`fedbus history verify`: whether what is stored is what was signed, and the store whole."""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any

import click

from fedbus.cli.common import counted, examples, load_settings, notice
from fedbus.cli.escaping import escape
from fedbus.cli.history_options import TRUST, build_query, json_option, open_store, verifier_of, wanted
from fedbus.cli.history_rows import SHOWN, Doubts, message_of, seal_check

if TYPE_CHECKING:
    from fedbus.config.settings import Settings


@click.command(
    "verify",
    epilog=examples(
        "fedbus history verify",
        "fedbus history verify koji --since 1d --json",
        "fedbus history verify --lines november.jsonl",
    ),
)
@wanted(0.0)
@click.option(
    "--lines",
    type=click.Path(allow_dash=True, dir_okay=False),
    metavar="FILE",
    help="Check the lines of an export instead; - is stdin.",
)
@click.option("--skip-files", is_flag=True, help="Check seals only, not whether the store as such is whole.")
@json_option
@click.pass_context
def verify(
    context: click.Context,
    /,
    lines: str | None,
    skip_files: bool,
    as_json: bool,
    store: str | None,
    **wanted: Any,
) -> int:
    """Prove again, from the stored bytes, who has signed each message, and that the store is whole.

    Seals are judged as of the time at which they were made: a certificate that has expired since was good then. What
    has no seal, or one that cannot be checked here, is not verifiable, which is not good. Exit code 4 when a message
    does not verify, 1 when the store is damaged.
    """
    settings = load_settings(context)
    if lines is not None:
        with click.open_file(lines, "rb") as file:
            return _verify_lines(settings, file, as_json)
    doubts = Doubts(quiet=as_json)
    faults: list[dict[str, str]] = []
    with open_store(settings, store) as opened:
        query = build_query(settings, opened, **wanted)
        if not skip_files:
            for fault in opened.faults():
                faults.append({"where": fault.where, "fault": fault.text})
                if not as_json:
                    notice(f"{fault.where}: {fault.text}; `fedbus history rebuild` mends it")
        check = seal_check(settings)
        damaged = {one["where"] for one in faults}
        try:
            for stored in opened.find(query):
                message_of(stored, check, doubts)
        except Exception as error:
            from fedbus.history.errors import HistoryDamaged

            # what was found so far is worth telling
            if not isinstance(error, HistoryDamaged):
                raise
            if error.where not in damaged:
                faults.append({"where": error.where, "fault": str(error)})
            notice(f"the rest was not looked at: {error}")
    if as_json:
        click.echo(
            json.dumps(
                {
                    "good": doubts.good,
                    "refused": doubts.refused,
                    "not_verifiable": doubts.unverifiable,
                    "unreadable": doubts.unreadable,
                    "faults": doubts.named,
                    "store_faults": faults,
                },
                indent=2,
            )
        )
    else:
        click.echo(
            f"{doubts.good} good, {doubts.refused} refused, {doubts.unverifiable} not verifiable"
            + (f", {doubts.unreadable} not readable" if doubts.unreadable else "")
            + (f"; {counted(len(faults), 'fault')} of the store" if faults else "")
        )
    code = doubts.finish()
    return code or (1 if faults else 0)


def _verify_lines(settings: Settings, lines: IO[bytes], as_json: bool) -> int:
    from fedbus.history.verify import SealCheck, State, check_line

    verifier = verifier_of(settings)
    check = SealCheck(verifier)
    counts = dict.fromkeys(State, 0)
    faults: list[dict[str, Any]] = []
    longest = 12 * settings.limits.message_bytes + 2**20
    number = 0
    while text := lines.readline(longest + 1):
        number += 1
        if len(text) > longest:
            raise click.ClickException(f"line {number} is longer than {longest} bytes; this is no export")
        if not text.strip():
            continue
        verdict = check_line(text, check, verifier)
        counts[verdict.state] += 1
        if verdict.state is not State.GOOD and len(faults) < SHOWN:
            faults.append({"line": number, "fault": str(verdict)})
            if not as_json:
                notice(f"line {number}: {verdict}")
    if as_json:
        result = {"good": counts[State.GOOD], "refused": counts[State.REFUSED]}
        result |= {"not_verifiable": counts[State.NOT_VERIFIABLE]}
        click.echo(json.dumps({**result, "faults": faults}, indent=2))
    else:
        click.echo(", ".join(f"{counts[state]} {escape(str(state))}" for state in State))
    return 0 if counts[State.GOOD] == sum(counts.values()) else TRUST
