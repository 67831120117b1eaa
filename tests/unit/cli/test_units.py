"""The units for systemd: what its own tools say of them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fedbus.cli import main
from fedbus.cli.units import UNITS, rendered, systemd
from tests.support import need_program

SERVICES = [name for name in UNITS if name.endswith(".service")]
SYSTEM = [name for name in UNITS if not name.endswith(".conf")]


def write(folder: Path, *options: str) -> Path:
    done = CliRunner().invoke(systemd, ["--write", str(folder), "--program", "/bin/true", *options], obj={})
    assert done.exit_code == 0, done.output
    return folder / "systemd" / "system"


def test_systemd_finds_nothing_wrong_with_any_unit(tmp_path: Path) -> None:
    folder = write(tmp_path)
    program = need_program("systemd-analyze")
    for name in SYSTEM:
        # %i of a template is made up by the tool
        done = subprocess.run(
            [program, "verify", "--man=no", f"./{name}"], cwd=folder, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), name


@pytest.mark.parametrize("name", SERVICES)
def test_the_services_may_do_little_more_than_their_work(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path)
    # 10 is unsafe, and what systemd itself calls OK ends at 4.9; ours need the network, and stand at 1.7
    done = subprocess.run(
        [need_program("systemd-analyze"), "security", "--offline=true", "--threshold=20", "--no-pager", f"./{name}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_a_daemon_tells_when_it_is_ready_and_is_watched(name: str) -> None:
    text = rendered(name, program=Path("/usr/bin/fedbus"))
    command = re.search("^ExecStart=/usr/bin/fedbus (.*)$", text, re.M)
    assert command is not None
    words = command[1].split()
    assert words[0] in main.COMMANDS
    if name != "fedbus-check.service":
        for line in ("Type=notify", "NotifyAccess=main", "WatchdogSec=60", "Restart=on-failure", "KillMode=mixed"):
            assert f"\n{line}\n" in text
    assert "@" not in re.sub("@(system-service|privileged|resources|chown)|hub@", "", text)


def test_sysusers_and_tmpfiles_take_theirs(tmp_path: Path) -> None:
    write(tmp_path, "--user", "bus")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    for program, name in (("systemd-sysusers", "sysusers.d"), ("systemd-tmpfiles", "tmpfiles.d")):
        done = subprocess.run(
            [
                need_program(program),
                f"--root={root}",
                *(["--create"] if program.endswith("files") else []),
                tmp_path / name / "fedbus.conf",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        # who is not root cannot give the folders away, and says so; a line that is not understood is told otherwise
        assert "Unknown" not in done.stderr and "syntax" not in done.stderr.lower(), done.stderr
        assert not re.search(r"fedbus\.conf:\d+:", done.stderr), done.stderr
    assert "bus:x:" in (root / "etc" / "passwd").read_text()
    assert (root / "var/lib/fedbus").is_dir() and (root / "etc/fedbus.d/keys").is_dir()


def test_units_fit_the_place_that_they_are_written_for(bus_folder: Path, tmp_path: Path) -> None:
    text = rendered("fedbus-hub.service", program=Path("/home/x y/bin/fed$bus%"), config=Path("/etc/my bus.d"))
    assert '\nExecStart="/home/x y/bin/fed$$bus%%" hub\n' in text
    assert '\nEnvironment="FEDBUS_CONFIG=/etc/my bus.d"\n' in text
    assert "\nProtectHome=read-only\n" in text  # else it could not be started from there
    assert "\nProtectHome=yes\n" in rendered("fedbus-hub.service", program=Path("/usr/bin/fedbus"))
    # a state folder of its own must be writable
    done = CliRunner().invoke(systemd, ["fedbus-relay.service"], obj={"config": str(bus_folder)})
    assert f"\nReadWritePaths=-{bus_folder}/state\n" in done.output
    assert f"\nEnvironment=FEDBUS_CONFIG={bus_folder}\n" in done.output


def test_writing_again_changes_nothing_and_wrong_words_are_refused(tmp_path: Path) -> None:
    def call(*options: str) -> tuple[int, str]:
        done = CliRunner().invoke(systemd, options, obj={})
        return done.exit_code, done.output

    folder = write(tmp_path)
    (folder / "fedbus-hub.service").write_text("old")
    code, out = call("--write", str(tmp_path), "--program", "/bin/true")
    assert code == 0 and out.count(": as it was") == len(UNITS) - 1
    assert "ExecStart=/bin/true hub" in (folder / "fedbus-hub.service").read_text()
    assert not list(folder.glob(".*"))
    for options in (
        ["nothing.service"],
        ["--user", "a b"],
        ["--user", "x\nExecStart=/bin/sh"],
        ["--program", "fedbus"],
    ):
        assert call(*options)[0] == 2
    assert call("--program", "/x\nExecStart=/bin/sh")[0] == 2
    code, out = call()
    assert code == 0 and all(name in out for name in UNITS)


@pytest.mark.badinput("B42")
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.isprintable))
def test_no_path_becomes_another_setting(text: str) -> None:
    ours = rendered("fedbus-hub.service", program=Path("/usr/bin/fedbus"))
    theirs = rendered("fedbus-hub.service", program=Path("/") / text, config=Path("/") / text)
    keys = [re.findall("^([A-Za-z]+)=", one, re.M) for one in (ours, theirs)]
    assert keys[0] == keys[1]
