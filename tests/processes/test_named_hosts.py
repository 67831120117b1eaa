"""Endpoints whose hosts are known by name: unknown at first, moved, or asked for in vain."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import need_program

SCRIPT = Path(__file__).with_name("named_hosts.py")


@pytest.fixture
def unshare() -> list[str]:
    """What starts a program in namespaces of its own."""
    command = [need_program("unshare"), "--user", "--map-root-user", "--mount", "--net"]
    tried = subprocess.run([*command, "true"], capture_output=True, timeout=60, check=False)
    if tried.returncode:
        pytest.skip(f"no namespaces for this user: {tried.stderr.decode().strip()}")
    return command


@pytest.mark.fault("F11")
@pytest.mark.parametrize("scenario", ["unknown_at_first", "moved", "nobody_answers"])
def test_a_host_is_looked_up_again_and_never_at_the_expense_of_others(bus_folder, tmp_path, unshare, scenario):
    place = tmp_path / "place"
    place.mkdir()
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [*unshare, sys.executable, str(SCRIPT), scenario, str(bus_folder), str(place)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": root},
        check=False,
    )
    assert done.stdout.endswith("done\n"), done.stderr
