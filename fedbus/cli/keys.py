"""``fedbus keys``: make a CA, issue, rotate and revoke certificates, and say what expires when."""

from __future__ import annotations

import hashlib
import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from fedbus.cli.common import counted, notice
from fedbus.clock import SystemClock
from fedbus.errors import FedbusError, KeysError, TrustError
from fedbus.model.topic import Naming
from fedbus.transport.endpoint import check_name
from fedbus.trust import curve
from fedbus.trust.authority import (
    ALGORITHMS,
    CA_DAYS,
    CERTIFICATE_DAYS,
    CRL_DAYS,
    Algorithm,
    Authority,
    Issued,
    check_issuable,
    check_reason,
)
from fedbus.trust.expiry import Expiry, stamp
from fedbus.trust.keyring import Keyring, load_certificates
from fedbus.trust.leaf import certificate_names
from fedbus.trust.names import is_name
from fedbus.trust.options import KeyringOptions
from fedbus.trust.policy import Policy
from fedbus.trust.verifier import Verifier

NOT_TRUSTED = 4  # exit code: signature or policy

# what monitoring plugins return: https://www.monitoring-plugins.org/doc/guidelines.html
OK, WARNING, CRITICAL, UNKNOWN = range(4)
_WORDS = {OK: "OK", WARNING: "WARNING", CRITICAL: "CRITICAL", UNKNOWN: "UNKNOWN"}

_MAX_CERTIFICATE_FILE = 1 * 2**20  # bytes

F = TypeVar("F", bound=Callable[..., Any])


def _epilog(*lines: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def _directory_option(function: F) -> F:
    return click.option(
        "--dir",
        "directory",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="The folder of keys; otherwise what the configuration names (keys.directory, else keys beside it).",
    )(function)


_json_option = click.option("--json", "as_json", is_flag=True, help="Write one JSON document, for scripts.")
_algorithm_help = "The kind of key."


def _days_option(default: int, what: str) -> Callable[[F], F]:
    return click.option(
        "--days", type=click.IntRange(1, 36_500), default=default, show_default=True, help=f"How long {what} is valid."
    )


@click.group(
    epilog=_epilog(
        "fedbus keys ca --dir keys --name 'Example bus CA'",
        "fedbus keys issue koji.build01 bodhi.web01",
        "fedbus keys check",
    )
)
def keys() -> None:
    """Make a private CA; issue, rotate, revoke, show and verify certificates.

    Everything is kept in one folder. The CA's key (ca.key) is needed on the host that issues, and nowhere else; hosts
    of the bus need ca.crt, crl.pem, and the NAME.crt and NAME.key of their own endpoints.
    """


@keys.command("ca", epilog=_epilog("fedbus keys ca", "fedbus keys ca --dir keys --name 'Example bus CA' --days 1825"))
@_directory_option
@click.option("--name", default="fedbus CA", show_default=True, help="The CA's common name.")
@_days_option(CA_DAYS, "the CA certificate")
@click.option(
    "--algorithm", type=click.Choice(ALGORITHMS), default=ALGORITHMS[0], show_default=True, help=_algorithm_help
)
@_json_option
@click.pass_context
def create_ca(
    context: click.Context, directory: Path | None, name: str, days: int, algorithm: Algorithm, as_json: bool
) -> None:
    """Make a new CA, with an empty revocation list."""
    folder = _folder(context, directory)
    authority = Authority.create(folder, common_name=name, days=days, algorithm=algorithm)
    _written(as_json, ca=authority.certificate_path, key=authority.key_path, crl=authority.crl_path)
    notice(f"keep {authority.key_path} secret; renew the revocation list within {CRL_DAYS} days: fedbus keys crl")


@keys.command(
    "issue",
    epilog=_epilog("fedbus keys issue koji.build01", "fedbus keys issue koji.build01 bodhi.web01 --algorithm ed25519"),
)
@click.argument("names", metavar="NAME…", nargs=-1, required=True)
@_directory_option
@_days_option(CERTIFICATE_DAYS, "each certificate")
@click.option(
    "--algorithm", type=click.Choice(ALGORITHMS), default=ALGORITHMS[0], show_default=True, help=_algorithm_help
)
@_json_option
@click.pass_context
def issue(
    context: click.Context,
    names: tuple[str, ...],
    directory: Path | None,
    days: int,
    algorithm: Algorithm,
    as_json: bool,
) -> None:
    """Issue a key and a certificate for each endpoint NAME."""
    _check_names(names)
    authority = Authority.open(_folder(context, directory))
    _issued(as_json, {name: authority.issue(name, days=days, algorithm=algorithm) for name in names})


@keys.command("rotate", epilog=_epilog("fedbus keys rotate koji.build01"))
@click.argument("names", metavar="NAME…", nargs=-1, required=True)
@_directory_option
@_days_option(CERTIFICATE_DAYS, "the new certificate")
@click.option("--algorithm", type=click.Choice(ALGORITHMS), help=f"{_algorithm_help} Otherwise as before.")
@_json_option
@click.pass_context
def rotate(
    context: click.Context,
    names: tuple[str, ...],
    directory: Path | None,
    days: int,
    algorithm: Algorithm | None,
    as_json: bool,
) -> None:
    """Replace key and certificate of each endpoint NAME.

    Running publishers take the new pair up by themselves. The old certificate stays valid, as messages signed with it
    are still on their way; revoke it by its serial (fedbus keys list) when its key was exposed.
    """
    _check_names(names)
    authority = Authority.open(_folder(context, directory))
    _issued(as_json, {name: authority.rotate(name, days=days, algorithm=algorithm) for name in names})


@keys.command(
    "revoke",
    epilog=_epilog(
        "fedbus keys revoke koji.build01 --reason cessationOfOperation",
        "fedbus keys revoke 5f3a…c1 --reason keyCompromise",
    ),
)
@click.argument("who", metavar="NAME|SERIAL")
@_directory_option
@click.option("--reason", default="unspecified", show_default=True, help="A word of RFC 5280, such as keyCompromise.")
@_json_option
@click.pass_context
def revoke(context: click.Context, who: str, directory: Path | None, reason: str, as_json: bool) -> None:
    """Revoke all certificates of an endpoint, or the one with this serial, and write the new revocation list."""
    try:
        check_reason(reason)
    except KeysError as error:
        raise click.UsageError(f"--reason: {error}") from error
    authority = Authority.open(_folder(context, directory))
    records = authority.revoke(who, reason)
    if as_json:
        _json({"revoked": [{"name": one.name, "serial": f"{one.serial:x}"} for one in records]})
    else:
        for one in records:
            click.echo(f"revoked {one.name} {one.serial:x} ({reason})")
    if not records:
        notice(f"nothing to do: {_shown(who)} was revoked before")
    now = SystemClock.wall()
    issued = [one for one in authority.list() if one.revoked_at is None and one.not_after > now]
    for name in sorted({one.name for one in records} or {who}):
        count = sum(one.name == name for one in records)
        if count:
            notice(f"{counted(count, 'certificate')} of {_shown(name)} revoked: readers refuse all that was signed so")
        if is_name(name) and not any(one.current and one.name == name for one in issued):
            notice(
                f"{_shown(name)} has no certificate that readers accept until: fedbus keys rotate {_shown(name)}; "
                "a publisher that runs goes on meanwhile, and no reader takes its messages"
            )
    notice(f"bring {authority.crl_path} to every host; until then, they go on trusting what is revoked")


@keys.command("crl", epilog=_epilog("fedbus keys crl", "fedbus keys crl --days 14"))
@_directory_option
@_days_option(CRL_DAYS, "the list")
@_json_option
@click.pass_context
def renew_crl(context: click.Context, directory: Path | None, days: int, as_json: bool) -> None:
    """Renew the revocation list; run it from a timer, well before the list expires."""
    _written(as_json, crl=Authority.open(_folder(context, directory)).write_crl(days))


@keys.command("roll-ca", epilog=_epilog("fedbus keys roll-ca", "fedbus keys roll-ca --name 'Example bus CA 2'"))
@_directory_option
@click.option("--name", help="The new CA's common name; otherwise as before.")
@_days_option(CA_DAYS, "the new CA certificate")
@click.option("--algorithm", type=click.Choice(ALGORITHMS), help=f"{_algorithm_help} Otherwise as before.")
@_json_option
@click.pass_context
def roll_ca(
    context: click.Context,
    directory: Path | None,
    name: str | None,
    days: int,
    algorithm: Algorithm | None,
    as_json: bool,
) -> None:
    """Make a new CA; ca.crt then holds the new and the old one, and both are trusted."""
    authority = Authority.open(_folder(context, directory))
    path = authority.roll_over(common_name=name, days=days, algorithm=algorithm)
    _written(as_json, ca=path, key=authority.key_path, crl=authority.crl_path)
    notice(
        f"next: bring {path} and {authority.crl_path} to every host, then rotate each endpoint (fedbus keys rotate "
        f"NAME); when nothing of the old CA is left, take its certificate, the last in {path}, out"
    )


@keys.command(
    "curve",
    epilog=_epilog("fedbus keys curve koji.build01", "fedbus keys curve koji.build01 --out keys/koji.build01-2.curve"),
)
@click.argument("names", metavar="NAME…", nargs=-1, required=True)
@_directory_option
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Another file than NAME.curve, for a change of keys."
)
@_json_option
@click.pass_context
def create_curve(
    context: click.Context, names: tuple[str, ...], directory: Path | None, out: Path | None, as_json: bool
) -> None:
    """Make the key pair with which the links to each endpoint NAME are encrypted; show the public key.

    Where NAME has a pair already, it is shown and kept. The public key belongs into the endpoints file, as `curve`; the
    file stays on the host that publishes as NAME.
    """
    if out is not None and len(names) > 1:
        raise click.UsageError("--out names one file; give one NAME with it")
    for name in names:
        check_name(name)
    folder = _folder(context, directory)
    pairs = {name: _curve_pair(out or folder / f"{name}{curve.SUFFIX}", f"endpoint {name}") for name in names}
    if as_json:
        _json({name: {"curve": public, "key": str(path)} for name, (public, path) in pairs.items()})
        return
    for name, (public, _) in pairs.items():
        click.echo(f'{name}: {{curve: "{public}"}}')
    notice("put each `curve` into the endpoints file of all hosts, then restart the publisher: doc/encryption.rst")


@keys.command("link", epilog=_epilog("fedbus keys link", "fedbus keys link --name web01 >> clients"))
@_directory_option
@click.option("--name", help="What the list of clients calls this host; otherwise its host name.")
@_json_option
@click.pass_context
def create_link(context: click.Context, directory: Path | None, name: str | None, as_json: bool) -> None:
    """Make the key pair with which readers of this host connect to encrypted endpoints; show its line for lists.

    Where there is one already (link.curve, or what links.key names), it is shown and kept. Publishers that let only
    listed clients connect (links.clients) need the line in their list.
    """
    path = directory / curve.LINK_KEY if directory is not None else None
    if path is None:
        settings = _settings(context)
        path = settings.links.key or settings.keys / curve.LINK_KEY
    host = socket.gethostname() if name is None else name
    if not host.strip() or not host.isprintable() or host != host.strip():
        raise click.UsageError("a client's name is printable text, without blanks at its ends")
    public, path = _curve_pair(path, "the readers of this host")
    if as_json:
        _json({"name": host, "curve": public, "key": str(path)})
    else:
        click.echo(f"{public} {host}")


def _curve_pair(path: Path, what: str) -> tuple[str, Path]:
    """Return the public key of the pair at *path*, which is made where there is none."""
    if path.exists():
        return curve.load_pair(path).public, path
    pair = curve.make()
    curve.write_pair(path, pair, what)
    notice(f"{path} was made; keep it secret")
    return pair.public, path


@keys.command("list", epilog=_epilog("fedbus keys list", "fedbus keys list --json | jq '.[] | select(.current)'"))
@_directory_option
@_json_option
@click.pass_context
def list_certificates(context: click.Context, directory: Path | None, as_json: bool) -> None:
    """List every certificate that was issued here."""
    now = SystemClock.wall()
    rows = []
    for one in Authority(_folder(context, directory)).list():
        if one.revoked_at is not None:
            state = f"revoked {stamp(one.revoked_at)} ({one.reason})"
        elif one.not_after < now:
            state = "expired"
        else:
            state = "current" if one.current else "replaced, still valid"
        rows.append((one, state))
    if as_json:
        _json(
            [
                {
                    "name": one.name,
                    "serial": f"{one.serial:x}",
                    "not_before": stamp(one.not_before),
                    "not_after": stamp(one.not_after),
                    "current": one.current,
                    "revoked_at": None if one.revoked_at is None else stamp(one.revoked_at),
                    "reason": one.reason,
                    "path": str(one.path),
                }
                for one, _ in rows
            ]
        )
        return
    width = max([len("NAME"), *(len(one.name) for one, _ in rows)])
    click.echo(f"{'NAME':{width}}  {'UNTIL':20}  {'SERIAL':40}  STATE")
    for one, state in rows:
        click.echo(f"{_shown(one.name):{width}}  {stamp(one.not_after)}  {one.serial:<40x}  {state}")


@keys.command("show", epilog=_epilog("fedbus keys show koji.build01", "fedbus keys show /tmp/unknown.crt --json"))
@click.argument("what", metavar="NAME|FILE|-")
@_directory_option
@_json_option
@click.pass_context
def show(context: click.Context, what: str, directory: Path | None, as_json: bool) -> None:
    """Show what a certificate says, trusted or not."""
    found = [_described(certificate) for certificate in _certificates(context, what, directory)]
    if as_json:
        _json(found)
        return
    for place, fields in enumerate(found):
        if place:
            click.echo()
        for key, value in fields.items():
            shown = ", ".join(value) if isinstance(value, list) else value
            click.echo(f"{key.replace('_', ' '):12}  {_shown(shown)}")


@keys.command(
    "verify", epilog=_epilog("fedbus keys verify koji.build01", "fedbus keys verify /tmp/unknown.crt && echo ok")
)
@click.argument("what", metavar="NAME|FILE|-")
@_directory_option
@_json_option
@click.pass_context
def verify(context: click.Context, what: str, directory: Path | None, as_json: bool) -> None:
    """Say whether the bus trusts a certificate; exit with 4 when it does not."""
    certificate = _certificates(context, what, directory)[0]
    verifier = Verifier(Keyring.load(_keyring_options(context, directory)), Policy(Naming()))
    try:
        identity = verifier.identify(certificate.public_bytes(serialization.Encoding.DER))
    except TrustError as error:
        if as_json:
            _json({"trusted": False, "reason": error.reason.value, "text": str(error)})
        else:
            notice(f"not trusted ({error.reason.value}): {_shown(str(error))}")
        context.exit(NOT_TRUSTED)
    if as_json:
        _json({"trusted": True, "name": identity.name, "fingerprint": identity.fingerprint})
    else:
        click.echo(f"trusted: {identity.name} until {stamp(identity.not_after)}")


@keys.command("check", epilog=_epilog("fedbus keys check", "fedbus keys check --dir keys --json"))
@_directory_option
@_json_option
@click.pass_context
def check(context: click.Context, directory: Path | None, as_json: bool) -> None:
    """Say what expires soon, as a monitoring plugin does.

    Exits with 0 (OK), 1 (WARNING: within 30 days, of a revocation list 7), 2 (CRITICAL: within 1 day, or expired,
    or without a revocation list), 3 (UNKNOWN: the files cannot be read).
    """
    now = SystemClock.wall()
    try:
        folder = _folder(context, directory)
        options = _keyring_options(context, directory)
        keyring = Keyring.load(options)
        expiries = keyring.expiries() + _leaf_expiries(folder)
    except FedbusError as error:
        _checked(as_json, UNKNOWN, [_shown(str(error))])
        context.exit(UNKNOWN)
    status = OK
    lines = []
    for one in sorted(expiries, key=lambda one: one.expires_at):
        stage = one.stage(now)
        if stage:
            status = max(status, CRITICAL if stage >= len(one.alarm_days) else WARNING)
            lines.append(_shown(one.text(now)))
    for authority in keyring.authorities:
        if options.crl is not None and authority.crl is None:
            status = CRITICAL
            lines.append(
                f"there is no usable revocation list of {_shown(authority.name)} in {options.crl}; "
                "renew it: fedbus keys crl"
            )
    if not lines:
        lines.append(f"{len(expiries)} certificates and lists, none expires soon")
    _checked(as_json, status, lines)
    context.exit(status)


def _checked(as_json: bool, status: int, lines: list[str]) -> None:
    if as_json:
        _json({"status": _WORDS[status], "text": lines})
    else:
        # One line, then details: what monitoring shows, and what it keeps.
        click.echo(f"KEYS {_WORDS[status]} - {lines[0]}")
        for line in lines[1:]:
            click.echo(line)


def _leaf_expiries(folder: Path) -> list[Expiry]:
    found = []
    for path in sorted(folder.glob("*.crt")):
        if is_name(path.stem) and path.stem != "ca":
            certificate = load_certificates(path, "certificate")[0]
            found.append(
                Expiry(
                    what=f"certificate {path.stem}",
                    advice=f"renew it: fedbus keys rotate {path.stem}",
                    expires_at=certificate.not_valid_after_utc.timestamp(),
                )
            )
    return found


def _folder(context: click.Context, directory: Path | None) -> Path:
    """The folder of keys: *directory*, or the one of the configuration."""
    return directory if directory is not None else _settings(context).keys


def _keyring_options(context: click.Context, directory: Path | None) -> KeyringOptions:
    if directory is not None:
        return KeyringOptions(ca=directory / "ca.crt", crl=directory / "crl.pem")
    options: KeyringOptions = _settings(context).keyring
    return options


def _settings(context: click.Context) -> Any:
    from fedbus.config.settings import Settings  # slow to import, and not needed with --dir

    return Settings.load((context.obj or {}).get("config"))


def _certificates(context: click.Context, what: str, directory: Path | None) -> list[x509.Certificate]:
    """The certificates in the file *what*, PEM or DER, or of the endpoint *what*; - is stdin."""
    path = Path(what)
    if is_name(what) and not path.is_file():
        path = _folder(context, directory) / f"{what}.crt"
    try:
        if what == "-":
            data = b"" if sys.stdin is None else sys.stdin.buffer.read(_MAX_CERTIFICATE_FILE + 1)
        else:
            with path.open("rb") as file:
                data = file.read(_MAX_CERTIFICATE_FILE + 1)
    except OSError as error:
        raise KeysError(f"cannot read certificate {path}: {error.strerror}; name an endpoint or a file") from error
    if len(data) > _MAX_CERTIFICATE_FILE:
        raise KeysError(f"refusing certificate {path}: it has more than {_MAX_CERTIFICATE_FILE} bytes")
    try:
        if b"-----BEGIN" in data:
            return x509.load_pem_x509_certificates(data)
        return [x509.load_der_x509_certificate(data)]
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise KeysError(f"cannot read certificate {path}: it holds none in PEM or DER form") from error


def _described(certificate: x509.Certificate) -> dict[str, Any]:
    return {
        "names": certificate_names(certificate),
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "serial": f"{certificate.serial_number:x}",
        "not_before": stamp(certificate.not_valid_before_utc.timestamp()),
        "not_after": stamp(certificate.not_valid_after_utc.timestamp()),
        "key": _key_kind(certificate),
        "sha256": hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest(),
    }


def _key_kind(certificate: x509.Certificate) -> str:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return "unknown"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "Ed25519"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"ECDSA {key.curve.name}"
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    return type(key).__name__


def _check_names(names: tuple[str, ...]) -> None:
    # all of them before the first is issued
    for name in names:
        try:
            check_issuable(name)
        except KeysError as error:
            raise click.UsageError(str(error)) from error


def _issued(as_json: bool, pairs: dict[str, Issued]) -> None:
    if as_json:
        _json(
            {
                name: {"certificate": str(pair.certificate_path), "key": str(pair.key_path)}
                for name, pair in pairs.items()
            }
        )
        return
    for name, pair in pairs.items():
        click.echo(f"{name}  {pair.certificate_path}  {pair.key_path}")


def _written(as_json: bool, **paths: Path) -> None:
    if as_json:
        _json({what: str(path) for what, path in paths.items()})
        return
    for what, path in paths.items():
        click.echo(f"{what:4} {path}")


def _json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def _shown(text: str) -> str:
    """*text* with what a terminal could obey escaped; a certificate may come from anyone."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
