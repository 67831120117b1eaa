"""`fedbus check`: is this installation fit for work? In words, as JSON, or with the exit codes of Nagios."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click

from fedbus.cli.common import counted
from fedbus.clock import SystemClock
from fedbus.config.lint import VERBS, Finding, lint
from fedbus.config.settings import Settings
from fedbus.errors import ConfigError, JournalError, KeysError
from fedbus.journal.journal import JournalReader
from fedbus.model.topic import service_of_endpoint
from fedbus.transport.endpoint import Address, Endpoint
from fedbus.trust.expiry import Expiry
from fedbus.trust.keyring import Keyring, load_certificates
from fedbus.trust.signer import Signer

_EXAMPLES = """\b
Examples:
  fedbus check                         settings, keys, and whether the endpoints answer
  fedbus check --nagios                one line, exit code 0, 1, 2 or 3
  fedbus check config                  the settings alone
  fedbus check topics package.builds.completed
"""
_CONFIG_EXAMPLES = """\b
Examples:
  fedbus check config
  fedbus check config --json
"""
_KEYS_EXAMPLES = """\b
Examples:
  fedbus check keys
  fedbus check keys --json
"""
_TOPICS_EXAMPLES = """\b
Examples:
  fedbus check topics                          those in the journals of this host
  fedbus check topics package.build.complete
  fedbus check topics --json - < topics.txt
  fedbus check topics --verb cherrypick commit.cherrypick
"""

OK, WARNING, CRITICAL, UNKNOWN = "ok", "warning", "critical", "unknown"
_NAGIOS = {OK: 0, WARNING: 1, CRITICAL: 2, UNKNOWN: 3}
_EXIT = {"config": 3, "keys": 4, "endpoints": 5}
_CONNECTIONS = 16  # at the same time
_TOPICS_LIMIT = 100_000


@dataclass(frozen=True, slots=True)
class Result:
    """One thing that was looked at."""

    area: str  # config, keys, endpoints
    name: str
    state: str
    text: str


@click.group("check", invoke_without_command=True, epilog=_EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="All results as JSON.")
@click.option("--nagios", is_flag=True, help="One line, and exit 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.")
@click.option(
    "--timeout",
    type=click.FloatRange(0.01, 600.0),
    default=2.0,
    show_default=True,
    help="Seconds to wait for an endpoint.",
)
@click.pass_context
def check(ctx: click.Context, as_json: bool, nagios: bool, timeout: float) -> None:
    """Check settings, keys and endpoints.

    Exit code 0 when all is well or only warnings were found, 3 for the configuration, 4 for keys, 5 for endpoints
    that do not answer. An endpoint of this host that nobody publishes as is a warning.
    """
    if ctx.invoked_subcommand is not None:
        return
    try:
        settings = _settings(ctx)
    except ConfigError as error:
        if not nagios and not as_json:
            raise
        results = [Result("config", "configuration", UNKNOWN, problem) for problem in error.problems]
    else:
        text = f"{settings.directory}: {counted(len(settings.endpoints), 'endpoint')}"
        results = [Result("config", "configuration", OK, text)]
        results += _check_keys(settings, time.time())
        settings = _check_dns(settings, results)
        results += _check_endpoints(settings, timeout)
    _report(ctx, results, as_json=as_json, nagios=nagios)


@check.command("config", epilog=_CONFIG_EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
@click.pass_context
def check_config(ctx: click.Context, as_json: bool) -> None:
    """Read all files of the configuration and list every fault with its file and line; exit code 3 if any."""
    try:
        settings = _settings(ctx)
    except ConfigError as error:
        if not as_json:
            raise
        click.echo(json.dumps({"ok": False, "problems": error.problems}, indent=2))
        ctx.exit(3)
    if as_json:
        click.echo(json.dumps({"ok": True, "problems": [], "directory": str(settings.directory)}, indent=2))
        return
    click.echo(
        f"{settings.directory} is fit for use: {settings.naming.root}, "
        f"{counted(len(settings.endpoints), 'endpoint')}, {counted(len(settings.policy.rules), 'policy rule')}, "
        f"{counted(len(settings.consumers), 'consumer')}"
    )


@check.command("keys", epilog=_KEYS_EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="The results as JSON.")
@click.pass_context
def check_keys(ctx: click.Context, as_json: bool) -> None:
    """Check the CA, its revocation list, and the certificates and keys that are on this host; exit code 4 if bad."""
    _report(ctx, _check_keys(_settings(ctx), time.time()), as_json=as_json, nagios=False)


@check.command("topics", epilog=_TOPICS_EXAMPLES)
@click.argument("topics", nargs=-1)
@click.option("--verb", "verbs", multiple=True, help="Take this event for a known verb too; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON.")
@click.pass_context
def check_topics(ctx: click.Context, topics: tuple[str, ...], verbs: tuple[str, ...], as_json: bool) -> None:
    """Hold names against the naming rules: singular objects, known verbs, existing words before new ones.

    TOPICS are full, begin with a service, or are what publishing code says; - reads them from stdin, one on a line.
    Without any, those in the journals of this host are checked. Exit code 1 when there is something to mend.
    """
    settings = _settings(ctx)
    existing = sorted(_topics_in_journals(settings))
    wanted = [topic for argument in topics for topic in (_lines() if argument == "-" else [argument])]
    services = frozenset(service_of_endpoint(name) for name in settings.endpoints)
    findings = lint(
        wanted if topics else existing,
        existing if topics else (),
        naming=settings.naming,
        services=services,
        verbs=VERBS | frozenset(verbs),
    )
    _report_findings(findings, len(wanted if topics else existing), as_json=as_json)
    ctx.exit(1 if findings else 0)


# --- what is looked at -----------------------------------------------------------------------------------------


def _settings(ctx: click.Context) -> Settings:
    return Settings.load((ctx.find_object(dict) or {}).get("config"))


def _check_keys(settings: Settings, now: float) -> list[Result]:
    results = []
    try:
        keyring = Keyring.load(settings.keyring)
    except KeysError as error:
        results.append(Result("keys", "ca", CRITICAL, str(error)))
    else:
        results += [_expiry(expiry, now) for expiry in keyring.expiries()]
        for authority in keyring.authorities:
            if settings.keyring.crl is not None and authority.crl is None:
                text = f"no usable revocation list of {authority.name} in {settings.keyring.crl}; all will be refused"
                results.append(Result("keys", "crl", CRITICAL, text))
    for endpoint in settings.endpoints.values():
        results += _check_pair(endpoint, now)
    return results


def _check_pair(endpoint: Endpoint, now: float) -> list[Result]:
    """Check what is on this host; other hosts have the keys of their own endpoints."""
    certificate, key = endpoint.certificate, endpoint.key
    if certificate is None or key is None or endpoint.wire != "native":
        return []
    name = f"certificate {endpoint.name}"
    try:
        if key.exists():
            ends = Signer.load(endpoint.name, certificate, key).expires_at
        elif certificate.exists():
            ends = load_certificates(certificate, "certificate")[0].not_valid_after_utc.timestamp()
        else:
            return []
    except (KeysError, OSError) as error:
        return [Result("keys", name, CRITICAL, str(error))]
    return [_expiry(Expiry(what=name, advice=f"renew it: fedbus keys rotate {endpoint.name}", expires_at=ends), now)]


def _expiry(expiry: Expiry, now: float) -> Result:
    stage = expiry.stage(now)
    state = CRITICAL if stage >= len(expiry.alarm_days) else WARNING if stage else OK
    return Result("keys", expiry.what, state, expiry.text(now))


def _check_dns(settings: Settings, results: list[Result]) -> Settings:
    """Ask the DNS once, where that is configured; return *settings* with what it lists."""
    options = settings.discovery.dns
    if options is None:
        return settings
    from fedbus.config.discovery import Discovery

    discovery = Discovery(settings, clock=SystemClock())
    try:
        discovery.begin(wait=True)
        dns = discovery.dns
        assert dns is not None
        for refusal in dns.refusals:
            results.append(Result("endpoints", "dns", WARNING, f"refused, {refusal.reason}: {refusal.text}"))
        for text in discovery.conflicts:
            results.append(Result("endpoints", "dns", WARNING, f"{text}; the file wins"))
        if dns.answers:
            listed = counted(len(dns.endpoints), "endpoint")
            results.append(Result("endpoints", "dns", OK, f"{listed} below {options.domain} in the DNS"))
        else:
            reason = dns.failure or f"no answer within {options.timeout:g} s"
            text = f"endpoints below {options.domain} cannot be looked up: {reason}; what runs keeps the last list"
            results.append(Result("endpoints", "dns", CRITICAL, text))
    except ConfigError as error:
        results.append(Result("config", "dns", CRITICAL, str(error)))
    finally:
        discovery.close()
    return discovery.settings


def _check_endpoints(settings: Settings, timeout: float) -> list[Result]:
    wanted = [
        (endpoint, role, address)
        for endpoint in settings.endpoints.values()
        for role, address in (("publish", endpoint.publish), ("replay", endpoint.replay))
        if address
    ]
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        faults = list(pool.map(lambda entry: _connect(entry[2], timeout), wanted))
    # asked afterwards: a publisher that opens meanwhile has its journal open then, and its ports soon
    locked = _flocks() if any(faults) else None
    results = []
    for (endpoint, role, address), fault in zip(wanted, faults, strict=True):
        name = f"{endpoint.name} {role}"
        if not fault:
            results.append(Result("endpoints", name, OK, f"{name} {address} answers"))
        elif _rests_here(endpoint, settings.journal_for(endpoint.name).directory, locked):
            text = f"{name} {address} is not running: its key is on this host, and no process has its journal open"
            results.append(Result("endpoints", name, WARNING, text))
        else:
            text = f"{name} {address} does not answer: {fault}; is it running?"
            results.append(Result("endpoints", name, CRITICAL, text))
    return results


def _rests_here(endpoint: Endpoint, journal: Path, locked: frozenset[int] | None) -> bool:
    """Say whether *endpoint* is one of this host that nobody publishes as now; *locked* are inodes, None if unknown."""
    if endpoint.key is None or locked is None:
        return False
    try:
        if not endpoint.key.exists():
            return False
        return (journal / "lock").stat().st_ino not in locked
    except FileNotFoundError:
        return True  # nobody has published as this endpoint yet
    except OSError:
        return False  # who may not look cannot tell


def _flocks() -> frozenset[int] | None:
    """Return the inodes of all files that processes hold an flock on; None where the kernel does not say.

    To try the lock ourselves would be simpler, and would refuse a publisher that opens at that moment.
    """
    try:
        lines = Path("/proc/locks").read_text("ascii").splitlines()
    except OSError:
        return None
    # 1: FLOCK  ADVISORY  WRITE 3072 08:01:7602200 0 EOF; proc(5)
    return frozenset(int(fields[5].rpartition(":")[2]) for line in lines if (fields := line.split())[1] == "FLOCK")


def _connect(text: str, timeout: float) -> str:
    """Return why a connection to the address *text* fails, or nothing."""
    address = Address.parse(text)
    try:
        if address.scheme == "tcp":
            with socket.create_connection((address.host, address.port), timeout):
                return ""
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
            connection.settimeout(timeout)
            connection.connect(address.path)
            return ""
    except TimeoutError:
        return f"no answer within {timeout:g} s"
    except OSError as error:
        return error.strerror or str(error)


def _topics_in_journals(settings: Settings) -> set[str]:
    topics: set[str] = set()
    for name in settings.endpoints:
        # an endpoint of another host has no journal here
        with contextlib.suppress(JournalError), JournalReader.open(settings.journal_for(name).directory) as journal:
            topics.update(journal.heads)
    return topics


def _lines() -> list[str]:
    lines = (line.strip() for line in sys.stdin)
    wanted = [line for line in lines if line and not line.startswith("#")]
    if len(wanted) > _TOPICS_LIMIT:
        raise click.UsageError(f"more than {_TOPICS_LIMIT} topics on stdin; check them in parts")
    return wanted


# --- how it is told --------------------------------------------------------------------------------------------


def _report(ctx: click.Context, results: list[Result], *, as_json: bool, nagios: bool) -> None:
    states = {result.state for result in results}
    worst = next((state for state in (UNKNOWN, CRITICAL, WARNING) if state in states), OK)
    bad = [result for result in results if result.state != OK]
    if nagios:
        told = "; ".join(result.text for result in bad) or f"{len(results)} checks passed"
        click.echo(f"FEDBUS {worst.upper()} - {_line(told)} | checks={len(results)} bad={len(bad)}")
        ctx.exit(_NAGIOS[worst])
    if as_json:
        report = {"state": worst, "results": [dataclasses.asdict(result) for result in results]}
        click.echo(json.dumps(report, indent=2))
    else:
        for result in results:
            click.echo(f"{result.state.upper():<8}  {_line(result.text)}")
    failed = [result.area for result in results if result.state in (CRITICAL, UNKNOWN)]
    ctx.exit(_EXIT[failed[0]] if failed else 0)


def _line(text: str) -> str:
    """Return *text* on one line, without what Nagios takes for the start of its figures."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return shown.replace("|", "/")


def _report_findings(findings: list[Finding], count: int, *, as_json: bool) -> None:
    if as_json:
        report = {"checked": count, "findings": [dataclasses.asdict(finding) for finding in findings]}
        click.echo(json.dumps(report, indent=2))
        return
    for finding in findings:
        topic = finding.topic if finding.topic.isprintable() else ascii(finding.topic)
        click.echo(f"{topic}: {finding.rule}: {finding.text}")
    if not findings:
        click.echo(f"{counted(count, 'topic')}, nothing to mend", err=True)
