"""`fedbus check`: is this installation fit for work? In words, as JSON, for Nagios, or for Prometheus."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import click
import zmq
from click.core import ParameterSource

from fedbus.bus import load_link_pair
from fedbus.cli.common import counted, notice
from fedbus.cli.health import CRITICAL, OK, UNKNOWN, WARNING, Result, Thresholds, examine
from fedbus.cli.report import FORMATS, Found, exit_code, render, write
from fedbus.clock import SystemClock
from fedbus.config.lint import VERBS, Finding, lint
from fedbus.config.schemas import load as load_schemas
from fedbus.config.settings import Settings
from fedbus.errors import ConfigError, JournalError, KeysError, Reason, TrustError
from fedbus.journal.reader import JournalReader
from fedbus.journal.state import is_locked, locked_inodes
from fedbus.model.topic import service_of_endpoint
from fedbus.transport.endpoint import Address, Endpoint
from fedbus.transport.zap import explain, probe
from fedbus.trust import curve
from fedbus.trust.curve import CurvePair
from fedbus.trust.expiry import CRL_ALARM_DAYS, Expiry
from fedbus.trust.keyring import Keyring, load_certificates
from fedbus.trust.signer import Signer
from fedbus.trust.verifier import Verifier

_EXAMPLES = """\b
Examples:
  fedbus check                         settings, keys, endpoints, streams, journals, disk
  fedbus check --json | jq '.streams[] | {endpoint, head, lag}'
  fedbus check --format nagios --lag 1000,50000 --lag-of irc=10,50
  fedbus check --format prometheus --output /run/fedbus-check/fedbus.prom
  fedbus check --consumer irc          does the hub run it?
  fedbus check config                  the settings alone, those of consumers too
  fedbus check topics package.builds.completed
"""
_CONFIG_EXAMPLES = """\b
Examples:
  fedbus check config
  fedbus check config --json
  fedbus check config --no-consumers   where no hub runs
"""
_KEYS_EXAMPLES = """\b
Examples:
  fedbus check keys
  fedbus check keys --format nagios
"""
_TOPICS_EXAMPLES = """\b
Examples:
  fedbus check topics                          those in the journals of this host
  fedbus check topics package.build.complete
  fedbus check topics --json - < topics.txt
  fedbus check topics --verb cherrypick commit.cherrypick
"""

_CONNECTIONS = 16  # at the same time
_TOPICS_LIMIT = 100_000


def _pair(context: click.Context, parameter: click.Parameter, text: str) -> tuple[float, float]:
    """Take WARNING,CRITICAL apart."""
    warning, comma, critical = text.partition(",")
    try:
        limits = float(warning), float(critical)
    except ValueError:
        limits = math.nan, math.nan
    if not comma or not all(math.isfinite(one) and one >= 0 for one in limits):
        raise click.BadParameter("write two numbers, WARNING,CRITICAL")
    return limits


def _named_pairs(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> dict[str, tuple[float, float]]:
    """Take NAME=WARNING,CRITICAL apart."""
    found = {}
    for text in texts:
        name, _, pair = text.rpartition("=")
        if not name:
            raise click.BadParameter("write NAME=WARNING,CRITICAL, such as irc=10,50")
        found[name] = _pair(context, parameter, pair)
    return found


def _threshold(option: str, text: str) -> Callable[[Any], Any]:
    default = ",".join(f"{one:g}" if one < 10**6 else str(one) for one in getattr(Thresholds(), option.strip("-")))
    return click.option(option, default=default, show_default=True, callback=_pair, metavar="WARN,CRIT", help=text)


def _formats(*forms: str) -> Callable[[Any], Any]:
    """Add --format with *forms*, and its short forms; `_chosen_format` reads them."""
    text = "text; json: all results; nagios: one line and figures, exit 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN"
    more = "; prometheus: metrics for its textfile collector." if "prometheus" in forms else "."
    options = (
        click.option("--format", "form", type=click.Choice(forms), help=text + more),
        click.option("--json", "as_json", is_flag=True, help="The same as --format json."),
        click.option("--nagios", is_flag=True, help="The same as --format nagios."),
    )

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _chosen_format(form: str | None, as_json: bool, nagios: bool) -> str:
    """Return one of `FORMATS`."""
    chosen = {one for one in (form, "json" if as_json else "", "nagios" if nagios else "") if one}
    if len(chosen) > 1:
        raise click.UsageError("choose one of --format, --json and --nagios")
    return chosen.pop() if chosen else "text"


# not for Prometheus: its series would be those of the whole check, which holds the same results
_part_formats = _formats("text", "json", "nagios")


@click.group("check", invoke_without_command=True, epilog=_EXAMPLES)
@_formats(*FORMATS)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Put it into FILE in one step, and not on stdout.",
)
@click.option("--consumer", "consumers", multiple=True, metavar="NAME", help="The hub must run it; may be repeated.")
@click.option(
    "--timeout",
    type=click.FloatRange(0.01, 600.0),
    default=2.0,
    show_default=True,
    help="Seconds to wait for an endpoint, and then for its beat.",
)
@_threshold("--lag", "Sequences that a cursor is behind the head.")
@click.option(
    "--lag-of",
    "lag_of",
    multiple=True,
    callback=_named_pairs,
    metavar="NAME=WARN,CRIT",
    help="The same for one consumer or cursor; may be repeated.",
)
@_threshold("--dead", "Dead letters of one consumer.")
@_threshold("--beat", "Seconds since the last beat.")
@_threshold("--skew", "Seconds that a publisher's clock is ahead of ours or behind.")
@_threshold("--disk", "Percent of the disk below `state` that are free.")
@_threshold("--quota", "Percent of its limit that a journal takes.")
@_threshold("--spool", "Bytes of messages that wait in the spool.")
@click.pass_context
def check(
    ctx: click.Context,
    /,
    form: str | None,
    as_json: bool,
    nagios: bool,
    output: Path | None,
    timeout: float,
    **limits: Any,
) -> None:
    """Check settings, keys, endpoints, programs, streams, journals and the disk.

    Of each endpoint that answers a beat is heard and verified: how far its stream has come, whether its clock is right.
    Of each cursor of this host: how far it is behind, and whether retention was quicker. Gaps and losses are those that
    the hub counts (hub.http) and another program (metrics.http); these and the relay (relay.http) are asked whether
    they are ready.

    Exit code 0 when all is well or only warnings were found, 3 for the configuration, 4 for keys, 5 for endpoints
    that do not answer, 7 for losses, 1 for all else. An endpoint of this host that nobody publishes as is a warning.
    """
    if ctx.invoked_subcommand is not None:
        _refuse_options_of_the_whole(ctx, ctx.invoked_subcommand)
        return
    shown = _chosen_format(form, as_json, nagios)
    found = _look(ctx, timeout, Thresholds(**limits), shown)
    if output is not None:
        write(output, render(found, shown))
        ctx.exit(exit_code(found, shown))
    _show(ctx, found, shown)


def _look(ctx: click.Context, timeout: float, limits: Thresholds, form: str) -> Found:
    try:
        settings = _settings(ctx)
    except ConfigError as error:
        if form == "text":
            raise
        return _unfit(error)
    text = f"{settings.directory}: {counted(len(settings.endpoints), 'endpoint')}"
    results = [Result("config", "configuration", OK, text)]
    expiries: list[Expiry] = []
    results += _check_keys(settings, time.time(), expiries)
    settings = _check_dns(settings, results)
    endpoints = _check_endpoints(settings, timeout)
    results += endpoints
    answering = {one.name.removesuffix(" publish") for one in endpoints if one.state == OK}
    health = examine(settings, answering, timeout=timeout, limits=limits)
    return Found([*results, *health.results], health, expiries, limits)


def _refuse_options_of_the_whole(ctx: click.Context, part: str) -> None:
    """An option before the name of a part would have no effect on it, so say so."""
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if name in ctx.params and ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"{parameter.opts[0]} before `{part}` is for the whole check; put the options of `fedbus check {part}` "
                "behind its name"
            )


@check.command("config", epilog=_CONFIG_EXAMPLES)
@_part_formats
@click.option("--no-consumers", is_flag=True, help="Do not load consumers: for hosts that have no hub, nor their code.")
@click.pass_context
def check_config(ctx: click.Context, form: str | None, as_json: bool, nagios: bool, no_consumers: bool) -> None:
    """Read all files of the configuration and list every fault with its file and line; exit code 3 if any.

    Enabled consumers are loaded as the hub does it, and their settings checked, but none is started: run this as the
    user of the hub. A fault there is a fault of the configuration.
    """
    shown = _chosen_format(form, as_json, nagios)
    try:
        settings = _settings(ctx)
        if settings.consumers and not no_consumers:
            from fedbus.cli.check_consumers import problems_of_consumers

            if problems := problems_of_consumers(settings):
                raise ConfigError(problems)
    except ConfigError as error:
        if shown == "text":
            raise
        if shown == "json":
            click.echo(json.dumps({"ok": False, "problems": error.problems}, indent=2))
            ctx.exit(3)
        _show(ctx, _unfit(error), shown)
    if shown == "json":
        click.echo(json.dumps({"ok": True, "problems": [], "directory": str(settings.directory)}, indent=2))
        return
    text = (
        f"{settings.directory} is fit for use: {settings.naming.root}, "
        f"{counted(len(settings.endpoints), 'endpoint')}, {counted(len(settings.policy.rules), 'policy rule')}, "
        f"{counted(len(settings.consumers), 'consumer')}"
    )
    if shown == "nagios":
        _show(ctx, Found([Result("config", "configuration", OK, text)]), shown)
    click.echo(text)


@check.command("keys", epilog=_KEYS_EXAMPLES)
@_part_formats
@click.pass_context
def check_keys(ctx: click.Context, form: str | None, as_json: bool, nagios: bool) -> None:
    """Check the CA, its revocation list, and the certificates and keys that are on this host; exit code 4 if bad."""
    shown = _chosen_format(form, as_json, nagios)
    try:
        found = Found(_check_keys(_settings(ctx), time.time(), []))
    except ConfigError as error:
        if shown == "text":
            raise
        found = _unfit(error)
    _show(ctx, found, shown)


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
    settings = Settings.load((ctx.find_object(dict) or {}).get("config"))
    load_schemas(settings)  # whoever publishes or reads would refuse what is wrong there
    return settings


def _check_keys(settings: Settings, now: float, expiries: list[Expiry]) -> list[Result]:
    """Check all that is on this host; *expiries* gets what ends some day."""
    results = []
    verifier = None
    try:
        keyring = Keyring.load(settings.keyring)
    except KeysError as error:
        results.append(Result("keys", "ca", CRITICAL, str(error)))
    else:
        verifier = Verifier(keyring, settings.policy)
        expiries += keyring.expiries()
        for authority in keyring.authorities:
            if settings.keyring.crl is not None and authority.crl is None:
                text = f"no usable revocation list of {authority.name} in {settings.keyring.crl}; all will be refused"
                results.append(Result("keys", "crl", CRITICAL, text))
    for endpoint in settings.endpoints.values():
        results += _check_pair(endpoint, expiries, verifier)
    results += _check_fedmsg(settings, expiries)
    results += [_expiry(expiry, now) for expiry in expiries]
    results += _check_links(settings)
    return results


def _check_fedmsg(settings: Settings, expiries: list[Expiry]) -> list[Result]:
    """Check what endpoints that are marked ``wire: fedmsg`` are read with, and signed for on this host."""
    endpoints = [one for one in settings.endpoints.values() if one.wire == "fedmsg"]
    if not endpoints:
        return []
    from fedbus.fedmsg.authority import Authorities
    from fedbus.fedmsg.signer import FedmsgSigner

    results = []
    try:
        authorities = Authorities(settings.fedmsg, clock=SystemClock())
    except (KeysError, OSError) as error:
        results.append(Result("keys", "fedmsg ca", CRITICAL, str(error)))
    else:
        crl, advice = settings.fedmsg.crl, "bring the new one of the CA of fedmsg"
        for one in authorities.known:
            what = f"fedmsg CA certificate {one.name} in {settings.fedmsg.ca}"
            expiries.append(Expiry(what=what, advice=advice, expires_at=one.not_after))
            if crl is not None and one.crl is None:
                text = f"{crl} holds no list that {one.name} has signed; all that it has issued is refused"
                results.append(Result("keys", "fedmsg crl", CRITICAL, text))
            elif crl is not None:
                what, until = f"fedmsg revocation list of {one.name}: {crl}", authorities.list_until(one)
                expiries.append(Expiry(what=what, advice=advice, expires_at=until, alarm_days=CRL_ALARM_DAYS))
    for endpoint in endpoints:
        if endpoint.certificate is None or endpoint.key is None or not endpoint.key.exists():
            continue  # whoever publishes there does so on another host
        what, advice = f"fedmsg certificate {endpoint.name}", "have the CA of fedmsg issue a new pair"
        try:
            until = FedmsgSigner.load(endpoint.certificate, endpoint.key).expires_at
        except (KeysError, OSError) as error:
            results.append(Result("keys", what, CRITICAL, str(error)))
        else:
            expiries.append(Expiry(what=what, advice=advice, expires_at=until))
    return results


def _check_links(settings: Settings) -> list[Result]:
    """Check the keys of encrypted links that are on this host."""
    results = []
    for endpoint in settings.endpoints.values():
        for offer in (endpoint, endpoint.also):
            if offer is None or not offer.curve or offer.curve_key is None or not offer.curve_key.exists():
                continue
            name = f"curve key {endpoint.name}"
            try:
                found = curve.load_pair(offer.curve_key).public
            except (KeysError, OSError) as error:
                results.append(Result("keys", name, CRITICAL, str(error)))
                continue
            if found == offer.curve:
                results.append(Result("keys", name, OK, f"{name} in {offer.curve_key} is the one of the entry"))
            else:
                text = f"{endpoint.origin}: {name} in {offer.curve_key} is another one; its public key is {found}"
                results.append(Result("keys", name, CRITICAL, text))
    try:
        load_link_pair(settings)
        if settings.links.clients is not None:
            count = len(curve.load_clients(settings.links.clients))
            text = f"{counted(count, 'client')} in {settings.links.clients} may connect to encrypted endpoints here"
            results.append(Result("keys", "links", OK, text))
    except (KeysError, OSError) as error:
        results.append(Result("keys", "links", CRITICAL, str(error)))
    return results


def _check_pair(endpoint: Endpoint, expiries: list[Expiry], verifier: Verifier | None) -> list[Result]:
    """Check what is on this host; other hosts have the keys of their own endpoints."""
    certificate, key = endpoint.certificate, endpoint.key
    if certificate is None or key is None or endpoint.wire != "native":
        return []
    name = f"certificate {endpoint.name}"
    try:
        if key.exists():
            signer = Signer.load(endpoint.name, certificate, key)
            ends = signer.expires_at
            if verifier is not None:
                verifier.identify(signer.certificate)
        elif certificate.exists():
            ends = load_certificates(certificate, "certificate")[0].not_valid_after_utc.timestamp()
        else:
            return []
    except (KeysError, OSError) as error:
        return [Result("keys", name, CRITICAL, str(error))]
    except TrustError as error:
        # that a list is missing or a date has passed is told for itself
        if error.reason not in (Reason.CRL, Reason.EXPIRED):
            return [Result("keys", name, CRITICAL, f"readers refuse what {endpoint.name} signs: {error}")]
    expiries.append(Expiry(what=name, advice=f"renew it: fedbus keys rotate {endpoint.name}", expires_at=ends))
    return []


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
    try:
        pair = load_link_pair(settings)
    except KeysError:
        pair = None  # told by the check of keys
    with zmq.Context() as context, ThreadPoolExecutor(_CONNECTIONS) as pool:
        faults = list(pool.map(lambda one: _shake(context, one[0], one[1], one[2], pair, timeout), wanted))
    # asked afterwards: a publisher that opens meanwhile has its journal open then, and its ports soon
    locked = locked_inodes() if any(faults) else None
    results = []
    for (endpoint, role, address), fault in zip(wanted, faults, strict=True):
        name = f"{endpoint.name} {role}"
        if not fault:
            results.append(Result("endpoints", name, OK, f"{name} {address} answers"))
        elif _rests_here(endpoint, settings.journal_for(endpoint.name).directory, locked):
            text = f"{name} {address} is not running: its key is on this host, and no process has its journal open"
            results.append(Result("endpoints", name, WARNING, text))
        else:
            text = f"{name} {address} {fault}"
            results.append(Result("endpoints", name, CRITICAL, text))
    return results


def _rests_here(endpoint: Endpoint, journal: Path, locked: frozenset[int] | None) -> bool:
    """Say whether *endpoint* is one of this host that nobody publishes as now; *locked* are inodes, None if unknown."""
    if endpoint.key is None or locked is None:
        return False
    try:
        return endpoint.key.exists() and is_locked(journal, locked) is False
    except OSError:
        return False  # who may not look cannot tell


def _shake(
    context: zmq.Context[zmq.Socket[bytes]],
    endpoint: Endpoint,
    role: str,
    address: str,
    pair: CurvePair | None,
    timeout: float,
) -> str:
    """Return why a reader cannot use *address*, behind its name, or nothing: it answers, and a handshake succeeds."""
    shaken = probe(context, address, replay=role == "replay", server=endpoint.curve, pair=pair, timeout=timeout)
    if shaken is None:
        # only now: where somebody answers, a connection without a handshake would stand in its log as a fault
        fault = _connect(address, timeout)
        return f"does not answer: {fault}; is it running?" if fault else ""
    return "" if shaken.fault is None else f"does not let us in: {explain(shaken.fault, bool(endpoint.curve))}"


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


def _unfit(error: ConfigError) -> Found:
    """Return what is found where the configuration cannot be used."""
    return Found([Result("config", "configuration", UNKNOWN, problem) for problem in error.problems])


def _show(ctx: click.Context, found: Found, form: str) -> NoReturn:
    click.echo(render(found, form), nl=False)
    ctx.exit(exit_code(found, form))


def _report_findings(findings: list[Finding], count: int, *, as_json: bool) -> None:
    if as_json:
        report = {"checked": count, "findings": [dataclasses.asdict(finding) for finding in findings]}
        click.echo(json.dumps(report, indent=2))
        return
    for finding in findings:
        topic = finding.topic if finding.topic.isprintable() else ascii(finding.topic)
        click.echo(f"{topic}: {finding.rule}: {finding.text}")
    if not findings:
        notice(f"{counted(count, 'topic')}, nothing to mend")
