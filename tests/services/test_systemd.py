"""The units under a real systemd: its user manager, in namespaces of its own, as a container has no other."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from fedbus import Bus
from fedbus.cli.units import rendered
from fedbus.config.init import create, free_ports
from tests.support import need_program, wait_until

KOJI = "koji.build01"
ROOT = Path(__file__).resolve().parents[2]
SITE = sysconfig.get_path("purelib")
PYTHON = str(Path(sys.executable).resolve())  # that of the environment may lie where the units see nothing
PATIENCE = 120.0
SYSTEMD = "/lib/systemd/systemd"
# In the new namespaces: what a booted system has, as far as a user manager looks at it. /mnt is the test's own folder,
# since the units hide /tmp and /home.
BEGIN = """
mount --make-rprivate / || exit 3
# what this machine has mounted below would still be on the manager's list, and it would look for it in vain
while read -r _ _ _ _ place _; do
    case $place in /run/*) umount --lazy "$(printf %b "$place")" ;; esac
done < /proc/self/mountinfo
mount -t tmpfs tmpfs /run && mount --bind {folder} /mnt || exit 3
mkdir -p /mnt/root /mnt/site && mount --bind {root} /mnt/root && mount --bind {site} /mnt/site || exit 3
mkdir -p /run/systemd/system /run/user/0
for hierarchy in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
    if [ -w $hierarchy/cgroup.procs ]; then mkdir -p $hierarchy/{group} && echo $$ > $hierarchy/{group}/cgroup.procs; fi
done
export XDG_RUNTIME_DIR=/run/user/0 XDG_CONFIG_HOME=/mnt/config HOME=/mnt PATH="$PATH:/usr/sbin:/sbin:/usr/bin:/bin"
unset NOTIFY_SOCKET DBUS_SESSION_BUS_ADDRESS
SYSTEMD_LOG_TARGET=console SYSTEMD_LOG_LEVEL=info {systemd} --user --unit=basic.target > /mnt/manager.log 2>&1 &
manager=$!
"""


class Manager:
    """A user manager, and a shell in its namespaces."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.group = f"fedbus-{uuid4().hex[:12]}"
        self.shell = subprocess.Popen(
            [need_program("unshare"), "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def call(self, *words: str, script: str = "") -> tuple[int, str]:
        """Run a command, or a script, in there; return its exit code and what it said."""
        assert self.shell.stdin is not None and self.shell.stdout is not None
        mark = uuid4().hex
        try:
            self.shell.stdin.write(f"{script or shlex.join(words)}\ncode=$?; echo; echo {mark} $code\n")
            self.shell.stdin.flush()
        except BrokenPipeError:
            return -1, self.shell.stdout.read()
        said = []
        for line in self.shell.stdout:
            if line.startswith(mark):
                return int(line.split()[1]), "".join(said).strip()
            said.append(line)
        return -1, "".join(said)

    def systemctl(self, *words: str) -> tuple[int, str]:
        return self.call("systemctl", "--user", "--no-pager", *words)

    def property(self, unit: str, name: str) -> str:
        return self.systemctl("show", "--value", "-p", name, unit)[1]

    def close(self) -> None:
        self.shell.kill()
        self.shell.wait(PATIENCE)
        for pipe in (self.shell.stdin, self.shell.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
        for hierarchy in ("systemd", "unified", ""):
            top = Path("/sys/fs/cgroup") / hierarchy / self.group
            for place, _, _ in os.walk(top, topdown=False):

                def gone(place: str = place) -> bool:
                    try:
                        os.rmdir(place)  # noqa: PTH106
                    except OSError:
                        return not Path(place).exists()
                    return True

                wait_until(gone, PATIENCE, f"{place} to be empty")


def refuse(reason: str) -> None:
    text = f"no systemd can run here: {reason}"
    if os.environ.get("CI") == "true":
        pytest.fail(text)
    pytest.skip(text)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    if os.geteuid() != 0:
        refuse("only root may make the namespaces")
    need_program("systemctl")
    if not Path(SYSTEMD).exists():
        refuse(f"there is no {SYSTEMD}")
    one = Manager(tmp_path)
    try:
        code, said = one.call(
            script=BEGIN.format(folder=tmp_path, group=one.group, systemd=SYSTEMD, root=ROOT, site=SITE)
        )
        if code != 0:
            refuse(said)

        def answers() -> bool:
            return one.systemctl("show", "--value", "-p", "Version")[0] == 0

        # where it cannot run it ends by itself, soon
        answered = wait_until(
            lambda: "yes" if answers() else "no" if one.call(script="kill -0 $manager")[0] else "", PATIENCE, "systemd"
        )
        if answered == "no":
            refuse((tmp_path / "manager.log").read_text())
        # what it mounts over what is hidden, which it looks for where the manager of the system has it
        assert one.call(script="cp -a /run/user/0/systemd/inaccessible /run/systemd/")[0] == 0
        yield one
    finally:
        one.close()


@pytest.fixture
def unit(manager: Manager) -> Callable[..., str]:
    """Install a unit of ours with a drop-in, and return its name."""

    def install(name: str, *environment: str, arguments: str, watchdog: str = "60") -> str:
        place = manager.folder / "config" / "systemd" / "user"
        drop = place / f"{name}.d"
        drop.mkdir(parents=True, exist_ok=True)
        program, config = manager.folder / "fedbus", Path("/mnt/bus")
        # the command of the environment that the tests run in, whatever started them
        program.write_text(f'#!/bin/sh\nPYTHONPATH=/mnt/root:/mnt/site exec {shlex.quote(PYTHON)} -m fedbus.cli "$@"\n')
        program.chmod(0o755)
        text = rendered(
            name,
            program=Path("/mnt/fedbus"),
            config=config,
            user="root",
            state=config / "state",
            needs=[Path(PYTHON), Path(sys.base_prefix)],
        )
        (place / name).write_text(text)
        command = "relay" if "relay" in name else "hub"
        lines = [f"Environment={one}" for one in environment]
        (drop / "test.conf").write_text(
            "[Service]\n" + "\n".join(lines) + "\nReadWritePaths=/mnt/bus\n"
            f"WatchdogSec={watchdog}\nTimeoutAbortSec=60\nTimeoutStartSec=300\nRestartSec=100ms\n"
            f"StandardError=append:/mnt/stderr\nExecStart=\nExecStart=/mnt/fedbus {command} {arguments}\n"
        )
        assert manager.systemctl("daemon-reload")[0] == 0
        return name

    return install


CONSUMER = """
import fedbus

class Record(fedbus.Consumer):
    topics = ("#",)
    since = "beginning"
    def consume(self, message):
        with open("/mnt/bus/state/got", "a") as file:
            file.write(f"{message.sequence}\\n")
"""


def hub_arguments(manager: Manager) -> str:
    create(manager.folder / "bus", [KOJI])
    (manager.folder / "bus" / "record.py").write_text(CONSUMER)
    (manager.folder / "bus" / "record.py").chmod(0o644)
    (manager.folder / "bus" / "state").mkdir(mode=0o700, exist_ok=True)
    return f"--consumer /mnt/bus/record.py --http 127.0.0.1:{free_ports(1)[0]}"


def got(manager: Manager) -> list[int]:
    path = manager.folder / "bus" / "state" / "got"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def why(manager: Manager, name: str) -> str:
    errors = manager.folder / "stderr"
    said = errors.read_text() if errors.exists() else ""
    return f"{manager.systemctl('status', name)[1]}\n{said}\n{(manager.folder / 'manager.log').read_text()}"


@pytest.mark.fault("F20")
def test_a_hub_under_systemd_says_that_it_is_ready_reloads_and_stops(
    manager: Manager, unit: Callable[..., str]
) -> None:
    name = unit("fedbus-hub.service", arguments=hub_arguments(manager))
    assert manager.systemctl("start", name)[0] == 0, why(manager, name)  # returns when READY=1 has come
    assert manager.property(name, "ActiveState") == "active", why(manager, name)
    assert "consumers=record endpoints=1" in manager.property(name, "StatusText")
    with Bus.open(manager.folder / "bus") as bus, bus.publisher(KOJI) as koji:
        for number in range(1, 4):
            koji.publish("package.build.start", {"n": number})
        wait_until(lambda: got(manager) == [1, 2, 3], PATIENCE, why(manager, name))
    assert manager.systemctl("reload", name)[0] == 0
    wait_until(lambda: "configuration was read again" in (manager.folder / "stderr").read_text(), PATIENCE)
    wait_until(lambda: manager.property(name, "SubState") == "running", PATIENCE)
    assert manager.property(name, "NRestarts") == "0"
    assert manager.systemctl("stop", name)[0] == 0
    assert (manager.property(name, "Result"), manager.property(name, "ExecMainStatus")) == ("success", "0")
    assert "Traceback" not in (manager.folder / "stderr").read_text()


def test_a_hub_whose_own_loop_hangs_is_ended_and_started_again(manager: Manager, unit: Callable[..., str]) -> None:
    armed, go_on = manager.folder / "bus" / "armed", manager.folder / "bus" / "go-on"
    arguments = hub_arguments(manager)
    name = unit(
        "fedbus-hub.service",
        "FEDBUS_FAILPOINTS=cursor.commit.before=stall:/mnt/bus/go-on?/mnt/bus/armed",
        arguments=arguments,
        watchdog="15",  # long enough for what is only slow
    )
    assert manager.systemctl("start", name)[0] == 0, why(manager, name)
    first = manager.property(name, "MainPID")
    with Bus.open(manager.folder / "bus") as bus, bus.publisher(KOJI) as koji:
        armed.touch()
        koji.publish("package.build.start", {})

        # its threads that listen and deliver are well, and so is the one that speaks to systemd
        def restarted() -> bool:
            return manager.property(name, "NRestarts") not in ("", "0")

        wait_until(restarted, PATIENCE, why(manager, name))
        armed.unlink()
        go_on.touch()
        wait_until(lambda: manager.property(name, "ActiveState") == "active", PATIENCE)
        assert manager.property(name, "MainPID") != first
        koji.publish("package.build.start", {})
        wait_until(lambda: 2 in got(manager), PATIENCE, why(manager, name))
    log = (manager.folder / "stderr").read_text()
    assert "Fatal Python error: Aborted" in log and "hit" in log  # where it hung
    assert manager.systemctl("stop", name)[0] == 0


def test_the_relay_under_systemd_takes_messages_within_what_it_may_do(
    manager: Manager, unit: Callable[..., str]
) -> None:
    create(manager.folder / "bus", [KOJI])
    endpoints = manager.folder / "bus" / "20-endpoints.yaml"
    endpoints.write_text(endpoints.read_text().replace(f"  {KOJI}:\n", f"  {KOJI}:\n    relay: true\n"))
    (manager.folder / "bus" / "state").mkdir(mode=0o700, exist_ok=True)
    name = unit("fedbus-relay.service", arguments="")
    assert manager.systemctl("start", name)[0] == 0, why(manager, name)
    code, said = manager.call(
        "/mnt/fedbus", "publish", "--config", "/mnt/bus", "package.build.start", "{}", "--as", KOJI, "--json"
    )
    assert code == 0 and '"sequence":1' in said and "spooled" not in said, why(manager, name)
    # strict: nothing but its state can be written
    code, said = manager.call("systemctl", "--user", "show", "--value", "-p", "ProtectSystem", name)
    assert said == "strict"
    assert manager.systemctl("stop", name)[0] == 0
    assert manager.property(name, "Result") == "success"
