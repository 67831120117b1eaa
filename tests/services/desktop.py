"""A private session bus with a notification server on a display that nobody sees: dbus-daemon, Xvfb and dunst."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

from tests.support import need_program, wait_until

_BUS = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={folder}/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""
_DUNST = """\
[global]
    markup = {markup}
    stack_duplicates = false
    history_length = 200
    notification_limit = 0
[urgency_low]
    timeout = 101
[urgency_normal]
    timeout = 102
[urgency_critical]
    timeout = 103
"""
_PATIENCE = 60.0


class Desktop:
    """Its parts are started and stopped one by one; ``close`` ends what still runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"unix:path={folder}/bus"
        self._programs = {name: need_program(name) for name in ("dbus-daemon", "Xvfb", "dunst", "dunstctl")}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "bus.conf").write_text(_BUS.format(folder=folder))
        self.environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
            "DBUS_SESSION_BUS_ADDRESS": self.address,
        }

    def start_bus(self) -> None:
        """Start the session bus."""
        (self.folder / "bus").unlink(missing_ok=True)
        self._start("dbus-daemon", f"--config-file={self.folder / 'bus.conf'}", "--nofork", "--nopidfile")
        wait_until(self._answers, _PATIENCE, "the session bus")

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self.folder / "bus")) == 0

    def start_server(self, *, markup: str = "full") -> None:
        """Start the notification server, and a display for it where there is none yet."""
        if "Xvfb" not in self._running:
            reader, writer = os.pipe()
            self._start("Xvfb", "-displayfd", str(writer), "-screen", "0", "640x480x24", "-nolisten", "tcp", fd=writer)
            os.close(writer)
            with os.fdopen(reader, encoding="ascii") as file:
                number = file.readline().strip()
            assert number, f"Xvfb has ended: {(self.folder / 'Xvfb.log').read_text()}"
            self.environment["DISPLAY"] = f":{number}"
        (self.folder / "dunstrc").write_text(_DUNST.format(markup=markup))
        self._start("dunst", "-config", str(self.folder / "dunstrc"))
        wait_until(lambda: self._control("count", check=False).returncode == 0, _PATIENCE, "the notification server")

    def _start(self, name: str, *arguments: str, fd: int | None = None) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [self._programs[name], *arguments],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=() if fd is None else (fd,),
            )

    def send(self, name: str, number: int) -> None:
        """Send a signal to one of the programs."""
        self._running[name].send_signal(number)

    def stop(self, name: str) -> None:
        """Kill one of the programs."""
        process = self._running.pop(name)
        process.kill()
        process.wait(_PATIENCE)

    def close(self) -> None:
        """End what still runs."""
        for name in [name for name in ("dunst", "dbus-daemon", "Xvfb") if name in self._running]:
            self.send(name, signal.SIGCONT)
            self.stop(name)

    def _control(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._programs["dunstctl"], *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=check,
        )

    def count(self, what: str = "displayed") -> int:
        """Return how many notifications are ``displayed``, or in the ``history``."""
        return int(self._control("count", what).stdout)

    def click(self) -> None:
        """Do what a click on the newest notification does."""
        self._control("action")

    def history(self) -> list[dict[str, Any]]:
        """Close all notifications, and return all there ever were, the oldest first."""
        self._control("close-all")
        wait_until(lambda: self.count() == 0, _PATIENCE, "an empty display")
        (entries,) = json.loads(self._control("history").stdout)["data"]
        shown = [{key: value["data"] for key, value in entry.items()} for entry in entries]
        return sorted(shown, key=lambda entry: entry["id"])
