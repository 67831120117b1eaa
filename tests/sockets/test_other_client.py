"""A second process that knows only doc/wire.rst verifies what a running publisher sends, and stored parcels later."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedbus import Bus
from fedbus.config.init import create
from tests.vectors import make

CHECK = make.HERE / "check.py"


@pytest.fixture
def checker() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that end with the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate(timeout=30)


@pytest.mark.parametrize("topic", ["", "org.example.dev.koji.build"])
def test_a_client_that_knows_only_the_page_verifies_a_running_publisher(
    tmp_path: Path, checker: list[subprocess.Popen[str]], topic: str
) -> None:
    created = create(tmp_path / "bus", ["koji.build01"])
    publish, _ = created.endpoints["koji.build01"]
    authority = tmp_path / "bus" / "keys" / "ca.crt"
    command = [sys.executable, "-I", str(CHECK), "--ca", str(authority), "--connect", publish, "--timeout", "60"]
    with Bus.open(tmp_path / "bus") as bus, bus.publisher("koji.build01") as koji:
        checker.append(
            subprocess.Popen([*command, "--count", "40", "--topic", topic], stdout=subprocess.PIPE, text=True)
        )
        assert koji.wait_for_subscribers(1, timeout=60)
        for number in range(20):
            koji.enqueue("build.start", {"number": number})
            koji.enqueue("build.stop", {"number": number})
            if topic:
                koji.enqueue("builder.start", {"number": number})
        koji.flush()
        output, _ = checker[0].communicate(timeout=60)
        epoch = koji.epoch
    assert checker[0].returncode == 0, output
    lines = [line for line in output.splitlines() if line.startswith("message ")]
    sequences = sorted(int(line.split()[3]) for line in lines)
    wanted = [one for one in range(1, 61) if one % 3] if topic else list(range(1, 41))
    assert sequences == wanted
    assert {line.split()[2] for line in lines} == {epoch}
    assert "refused" not in output


def test_a_client_that_knows_only_the_page_verifies_what_a_subscriber_kept(tmp_path: Path) -> None:
    create(tmp_path / "bus", ["koji.build01"])
    with Bus.open(tmp_path / "bus") as bus, bus.publisher("koji.build01") as koji:
        for number in range(9):
            koji.enqueue("build.start" if number % 2 else "build.stop", {"number": number})
        koji.flush()
        kept = []
        for message in bus.subscribe("koji", since="beginning"):
            kept.append(message.sealed.hex())
            if len(kept) == 9:
                break
    path = tmp_path / "frames"
    path.write_text("\n".join(kept))
    authority = tmp_path / "bus" / "keys" / "ca.crt"
    done = subprocess.run(
        [sys.executable, "-I", str(CHECK), "--ca", str(authority), "--frames", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [int(line.split()[3]) for line in done.stdout.splitlines()] == list(range(1, 10))
