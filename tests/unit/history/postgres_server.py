"""A PostgreSQL of the test's own: its data in a new folder, reached over a socket in it, owned by nobody of note."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import need_program, open_folder, wait_until

FOLDERS = tuple(f"/usr/lib/postgresql/{version}/bin" for version in range(19, 12, -1))
USER = "fedbus"
PATIENCE = 120.0


class Server:
    """Runs until :meth:`stop`; may be killed and started again on the same data."""

    def __init__(self, folder: Path) -> None:
        self._programs = {name: need_program(name, *FOLDERS) for name in ("initdb", "postgres")}
        self.folder = folder
        self.data = folder / "data"
        self._account = None
        if os.geteuid() == 0:
            # PostgreSQL refuses root
            self._account = pwd.getpwnam("postgres" if _exists("postgres") else "nobody")
            os.chown(folder, self._account.pw_uid, self._account.pw_gid)
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / "log"
        subprocess.run(
            [
                *(self._programs["initdb"], "-D", self.data, "-U", USER, "-A", "trust", "-E", "UTF8"),
                *("--locale=C", "--no-sync", "--no-instructions", "--wal-segsize=1"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=PATIENCE,
            **self._as_user(),
        )

    def _as_user(self) -> dict[str, object]:
        found: dict[str, object] = {"cwd": self.folder, "env": {"PATH": os.defpath, "LC_ALL": "C"}}
        if self._account is not None:
            found |= {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}
        return found

    @property
    def url(self) -> str:
        return f"postgresql://{USER}@/postgres?host={self.folder}"

    def start(self, *settings: str) -> None:
        """Start it, with settings such as ``statement_timeout=100``; it answers on return."""
        wanted = ("listen_addresses=", f"unix_socket_directories={self.folder}", "fsync=off", "shared_buffers=16MB")
        options = [word for setting in (*wanted, *settings) for word in ("-c", setting)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs["postgres"], "-D", self.data, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._as_user(),  # type: ignore[arg-type]
            )
        wait_until(self._answers, PATIENCE, f"PostgreSQL in {self.folder}")

    def _answers(self) -> bool:
        import psycopg

        assert self._process is not None and self._process.poll() is None, self._log.read_text()
        try:
            psycopg.connect(self.url, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, number: int = signal.SIGQUIT) -> None:
        """End it: SIGQUIT is at once, as in a crash but tidy; SIGINT closes its connections first."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(PATIENCE)


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


@contextmanager
def server() -> Iterator[Server]:
    """A server, not started yet, whose folder goes with it."""
    with open_folder("fedbus-pg-") as folder:
        one = Server(folder)
        try:
            yield one
        finally:
            one.stop()
