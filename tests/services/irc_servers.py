"""Real IRC servers, each in a folder of its own on free loopback ports, and a client that sees every byte."""

from __future__ import annotations

import contextlib
import datetime
import os
import pwd
import signal
import socket
import ssl
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedbus.config.init import free_ports
from tests.support import need_program, open_folder, wait_until

PATIENCE = 90.0
OPERATOR = ("oper", "operpass")


# --- certificates --------------------------------------------------------------------------------------------------


class Authority:
    """A certificate authority of the test, and what it issues, as PEM files in *folder*."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.path = folder / f"{name}.pem"
        certificate = self._builder(self._name, self._key, days=10).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self._certificate = certificate.sign(self._key, hashes.SHA256())
        self.path.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def _builder(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, *, days: int, since: int = -5
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=since))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )

    def issue(self, name: str, *, days: int = 5) -> tuple[Path, Path]:
        """Return certificate and key of *name*, which is ``irc.test`` for servers; negative *days*: expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            self._builder(subject, key, days=days)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        for path in paths:
            path.chmod(0o644)  # the server reads them after it has become nobody
        return paths


# --- servers -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def folder_of_servers() -> Iterator[Path]:
    """A folder that servers may enter and write, whoever they run as; pytest's own are for its user alone."""
    with open_folder("fedbus-irc-") as folder:
        give_away(folder)
        yield folder


def give_away(folder: Path) -> None:
    """Let `nobody` write *folder*."""
    folder.chmod(0o755)
    if os.geteuid() == 0:
        user = pwd.getpwnam("nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)


class Server(ABC):
    """A server process; it is started again with the same configuration as often as a test likes."""

    def __init__(self, folder: Path, ports: int) -> None:
        self.folder = folder
        folder.mkdir()
        give_away(folder)
        self.port, *self.ports = free_ports(ports)
        self.processes: list[subprocess.Popen[bytes]] = []

    @abstractmethod
    def commands(self) -> list[list[str]]:
        """Return the command lines of its processes, in the order in which they start."""

    def start(self) -> None:
        for number, command in enumerate(self.commands()):
            with (self.folder / f"log{number}").open("ab") as file:
                process = subprocess.Popen(
                    command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file, **nobody()
                )
                self.processes.append(process)
            self.wait_for_port(self.port)

    def wait_for_port(self, port: int) -> None:
        def answers() -> bool:
            ended = [one for one in self.processes if one.poll() is not None]
            assert not ended, self.log()
            try:
                socket.create_connection(("127.0.0.1", port), 5.0).close()
            except OSError:
                return False
            return True

        wait_until(answers, PATIENCE, f"the server on port {port}")

    def stop(self, number: int = signal.SIGKILL) -> None:
        for process in reversed(self.processes):
            process.send_signal(number)
            process.wait(PATIENCE)
        self.processes.clear()

    def log(self) -> str:
        return "\n".join(path.read_text("utf-8", "replace") for path in sorted(self.folder.glob("log*")))


def nobody() -> dict[str, Any]:
    """How to start what refuses to run as root, or had better not."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


_NGIRCD = """\
[Global]
Name = {name}
Info = test
Listen = 127.0.0.1
Ports = {port}
MotdPhrase = hello
AdminInfo1 = test
AdminEMail = test@example.org
[Limits]
ConnectRetry = 1
MaxConnectionsIP = 0
MaxJoins = 0
MaxNickLength = {nick}
MaxPenaltyTime = {penalty}
[Options]
DNS = no
Ident = no
PAM = no
OperCanUseMode = yes
IncludeDir = {folder}/none
[Operator]
Name = oper
Password = operpass
{more}
"""


class Ngircd(Server):
    """ngIRCd: no capabilities beyond multi-prefix, no services."""

    def __init__(
        self,
        folder: Path,
        *,
        certificate: tuple[Path, Path] | None = None,
        name: str = "one.irc.test",
        nick: int = 20,
        penalty: int = 0,
        more: str = "",
    ) -> None:
        super().__init__(folder, 2)
        self._program = need_program("ngircd", "/usr/sbin")
        self.tls_port = self.ports[0]
        if certificate is not None:
            more += f"[SSL]\nCertFile = {certificate[0]}\nKeyFile = {certificate[1]}\nPorts = {self.tls_port}\n"
        self.name = name
        (folder / "none").mkdir(exist_ok=True)
        text = _NGIRCD.format(name=name, port=self.port, folder=folder, nick=nick, penalty=penalty, more=more)
        (folder / "ngircd.conf").write_text(text)

    def commands(self) -> list[list[str]]:
        return [[self._program, "-n", "-f", str(self.folder / "ngircd.conf")]]


# --- a client ------------------------------------------------------------------------------------------------------


@dataclass
class Line:
    """A line as it came, without CR LF."""

    raw: bytes

    @property
    def text(self) -> str:
        return self.raw.decode("utf-8", "replace")

    @property
    def source(self) -> str:
        return self.text.partition(" ")[0].removeprefix(":") if self.raw.startswith(b":") else ""

    @property
    def words(self) -> list[str]:
        text = self.text.partition(" ")[2] if self.raw.startswith(b":") else self.text
        head, colon, rest = text.partition(" :")
        return head.split() + ([rest] if colon else [])

    @property
    def command(self) -> str:
        return self.words[0]


class Client:
    """A person in a channel: keeps every line as it came, answers PING, and says what it is told to."""

    def __init__(
        self, port: int, nick: str, *channels: str, context: ssl.SSLContext | None = None, account: str = ""
    ) -> None:
        self.nick = nick
        self.lines: list[Line] = []
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        if context is not None:
            self._socket = context.wrap_socket(self._socket, server_hostname="irc.test")
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self.send(f"NICK {nick}", f"USER {nick} 0 * :{nick}")
        self.wait(lambda line: line.command == "001", "a welcome")
        for channel in channels:
            self.send(f"JOIN {channel}")
            self.wait(lambda line: line.command == "366", f"having joined {channel}")

    def send(self, *lines: str) -> None:
        with self._lock:
            self._socket.sendall("".join(f"{line}\r\n" for line in lines).encode())

    def _read(self) -> None:
        rest = b""
        while True:
            try:
                data = self._socket.recv(65536)
            except OSError:
                return
            if not data:
                return
            *whole, rest = (rest + data).split(b"\r\n")
            for raw in whole:
                if raw.startswith(b"PING"):
                    self.send("PONG" + raw[4:].decode("utf-8", "replace"))
                self.lines.append(Line(raw))

    def wait(self, wanted: Callable[[Line], bool], what: str, since: int = 0, timeout: float = PATIENCE) -> Line:
        """Return the first line from number *since* on that *wanted* accepts."""

        def find() -> list[Line]:
            return [line for line in self.lines[since:] if wanted(line)][:1]

        try:
            return wait_until(find, timeout, what)[0]
        except AssertionError:
            raise AssertionError(f"{self.nick} did not see {what}: {[line.raw for line in self.lines[-30:]]}") from None

    def heard(self, nick: str = "", channel: str = "") -> list[str]:
        """Return what *nick* said, or anybody, in *channel* or anywhere."""
        return [
            line.words[2]
            for line in list(self.lines)
            if line.command in ("PRIVMSG", "NOTICE")
            and len(line.words) > 2
            and "!" in line.source
            and (not nick or line.source.startswith(nick + "!"))
            and (not channel or line.words[1] == channel)
        ]

    def wait_to_hear(self, text: str, nick: str = "", since: int = 0) -> str:
        """Return the first line said that holds *text*."""
        line = self.wait(
            lambda one: (
                one.command in ("PRIVMSG", "NOTICE")
                and text in one.words[-1]
                and (not nick or one.source.startswith(nick + "!"))
            ),
            f"{text!r} said",
            since,
        )
        return line.words[-1]

    def count(self, command: str, nick: str) -> int:
        """Return how many lines with *command* came from *nick*."""
        return sum(one.command == command and one.source.startswith(nick + "!") for one in list(self.lines))

    def names(self, channel: str) -> set[str]:
        """Return who is in *channel*."""
        since = len(self.lines)
        self.send(f"NAMES {channel}")
        self.wait(lambda one: one.command == "366", "the end of NAMES", since)
        found = [one.words[-1].split() for one in self.lines[since:] if one.command == "353"]
        return {name.lstrip("~&@%+") for names in found for name in names}

    def wait_for_name(self, nick: str, channel: str) -> None:
        """Wait until *nick* is in *channel*."""
        if nick not in self.names(channel):
            self.wait(
                lambda one: (
                    one.command in ("JOIN", "NICK") and (one.source.startswith(nick + "!") or nick in one.words)
                ),
                f"{nick} in {channel}",
            )

    def close(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()
        self._thread.join(PATIENCE)


# --- InspIRCd and its services -------------------------------------------------------------------------------------

_INSPIRCD = """\
<server name="hub.irc.test" description="test" network="Test">
<admin name="test" nick="test" email="test@example.org">
<path moduledir="{modules}" datadir="{folder}" logdir="{folder}" configdir="{folder}">
<sslprofile name="Clients" provider="gnutls" certfile="{certificate}" keyfile="{key}" cafile="{ca}"
 hash="sha256" requestclientcert="yes">
<bind address="127.0.0.1" port="{port}" type="clients">
<bind address="127.0.0.1" port="{tls_port}" type="clients" sslprofile="Clients">
<bind address="127.0.0.1" port="{server_port}" type="servers">
<connect allow="*" maxchans="20" timeout="30" pingfreq="120" threshold="{threshold}" commandrate="{rate}"
 fakelag="no" recvq="{recvq}" hardsendq="1M" softsendq="8192" localmax="50" globalmax="50" resolvehostnames="no">
<performance softlimit="500" somaxconn="64" clonesonconnect="no">
<options prefixquit="Quit: " syntaxhints="no">
<security hidewhois="">
<log method="file" type="* -USERINPUT -USEROUTPUT" level="default" target="inspircd.log">
<class name="All" commands="*" privs="*" usermodes="*" chanmodes="*">
<type name="Oper" classes="All">
<oper name="oper" password="operpass" host="*@*" type="Oper">
{loads}
<sasl target="services.irc.test">
<uline server="services.irc.test" silent="yes">
<link name="services.irc.test" ipaddr="127.0.0.1" port="{server_port}" allowmask="127.0.0.1"
 sendpass="linkpass" recvpass="linkpass">
"""
_INSPIRCD_MODULES = (
    *(
        "ssl_gnutls",
        "cap",
        "ircv3",
        "ircv3_accounttag",
        "ircv3_capnotify",
        "ircv3_chghost",
        "services_account",
        "svshold",
        "sasl",
    ),
    *("spanningtree", "sslinfo", "blockcolor", "hidechans"),
)

_ATHEME = """\
{modules}
serverinfo {{
    name = "services.irc.test"; desc = "test"; numeric = "42X"; recontime = 1; netname = "Test"; adminname = "test";
    adminemail = "test@example.org"; registeremail = "test@example.org"; maxcertfp = 4; maxlogins = 20; maxusers = 20;
    mdlimit = 30; emaillimit = 10; emailtime = 300; auth = none; casemapping = rfc1459;
}};
uplink "hub.irc.test" {{
    host = "127.0.0.1"; port = {server_port}; send_password = "linkpass"; receive_password = "linkpass";
}};
nickserv {{ nick = "NickServ"; user = "NickServ"; host = "services.irc.test"; real = "test"; maxnicks = 5; }};
saslserv {{ nick = "SaslServ"; user = "SaslServ"; host = "services.irc.test"; real = "test"; }};
general {{ join_chans; }};
crypto {{ pbkdf2v2_rounds = 10000; }};
logfile "{folder}/atheme.log" {{ error; info; register; }};
"""
_ATHEME_MODULES = (
    *("protocol/inspircd", "backend/opensex", "crypto/pbkdf2v2", "nickserv/main", "nickserv/register"),
    *("nickserv/identify", "nickserv/ghost", "nickserv/cert", "nickserv/enforce", "saslserv/main", "saslserv/plain"),
    *("saslserv/external",),
)


class Inspircd(Server):
    """InspIRCd with TLS and, where *services*, atheme: accounts, SASL, and the capabilities of IRCv3."""

    def __init__(
        self,
        folder: Path,
        certificate: tuple[Path, Path],
        ca: Path,
        *,
        services: bool = True,
        threshold: int = 10,
        rate: int = 1000,
        recvq: int = 8192,
    ) -> None:
        super().__init__(folder, 3)
        self._program = need_program("inspircd", "/usr/sbin")
        self._atheme = need_program("atheme-services") if services else ""
        self.tls_port, self.server_port = self.ports
        text = _INSPIRCD.format(
            folder=folder,
            modules="/usr/lib/inspircd/modules",
            loads="\n".join(f'<module name="{name}">' for name in _INSPIRCD_MODULES),
            certificate=certificate[0],
            key=certificate[1],
            ca=ca,
            port=self.port,
            tls_port=self.tls_port,
            server_port=self.server_port,
            threshold=threshold,
            rate=rate,
            recvq=recvq,
        )
        (folder / "inspircd.conf").write_text(text)
        if services:
            self._atheme_folder = folder / "services"
            self._atheme_folder.mkdir()
            give_away(self._atheme_folder)
            (self._atheme_folder / "atheme.conf").write_text(
                _ATHEME.format(
                    modules="\n".join(f'loadmodule "modules/{name}";' for name in _ATHEME_MODULES),
                    server_port=self.server_port,
                    folder=self._atheme_folder,
                )
            )

    def start(self) -> None:
        super().start()
        if self._atheme:
            # whoever asks the server itself again and again whether they are there is ended for saying too much
            wait_until(self._linked, PATIENCE, "the services")

    def _linked(self) -> bool:
        path = self._atheme_folder / "atheme.log"
        return path.exists() and "finished synching with uplink" in path.read_text("utf-8", "replace")

    def commands(self) -> list[list[str]]:
        inspircd = [self._program, "--nofork", "--nopid", "--config", str(self.folder / "inspircd.conf")]
        if not self._atheme:
            return [inspircd]
        folder = self._atheme_folder
        atheme = [self._atheme, "-n", "-c", str(folder / "atheme.conf"), "-l", str(folder / "atheme.log")]
        return [inspircd, [*atheme, "-p", str(folder / "atheme.pid"), "-D", str(folder)]]
