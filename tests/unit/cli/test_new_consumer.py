"""The command `fedbus new-consumer`: what it writes works as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from fedbus.cli.new_consumer import new_consumer
from fedbus.hub.options import ConsumerSettings
from fedbus.hub.registry import find

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(new_consumer, [str(one) for one in arguments])


def test_what_is_written_passes_its_own_test_and_is_loaded_with_its_settings(tmp_path):
    folder = tmp_path / "mine"
    before = os.umask(0o002)
    try:
        result = run("count-builds", "--topic", "koji.package", "--topic", "git", "--directory", folder, "--json")
    finally:
        os.umask(before)
    folder.chmod(0o755)
    files = [str(folder / name) for name in ("count_builds.py", "test_count_builds.py", "count_builds.yaml")]
    assert json.loads(result.stdout) == {"name": "count-builds", "files": files}
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_count_builds.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert tested.returncode == 0, tested.stdout
    assert "2 passed" in tested.stdout
    entry = yaml.safe_load((folder / "count_builds.yaml").read_text())["consumers"]["count-builds"]
    wanted = ConsumerSettings(name="count-builds", origin="a.yaml:1", **entry)
    found = find({"count-builds": wanted}, folder=folder)
    assert found.problems == []
    (enabled,) = found.consumers
    assert (enabled.name, enabled.topics) == ("count-builds", ("koji.package", "git"))
    (by_hand,) = find({}, files=[files[0]]).consumers
    assert by_hand.name == "count-builds"


def test_what_is_written_is_clean(tmp_path):
    for arguments in (["one"], ["one-two", "--topic", "koji"], ["a3", "--topic", "koji", "--topic", "git.*.push"]):
        assert run(*arguments, "--directory", tmp_path).exit_code == 0
    for tool in (["ruff", "check"], ["ruff", "format", "--check"]):
        checked = subprocess.run(
            [sys.executable, "-m", *tool, "--isolated", "--select", "E,F,I,UP", "--line-length", "120", "."]
            if tool[-1] == "check"
            else [sys.executable, "-m", *tool, "--isolated", "--line-length", "120", "."],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert checked.returncode == 0, checked.stdout


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "test_one.py").write_text("mine")
    result = run("one", "--directory", tmp_path)
    assert result.exit_code == 1
    assert "test_one.py is there already" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["test_one.py"]


@pytest.mark.parametrize("name", ["class", "7up", "Upper", "../x", "a b", "", 'x"', "x" * 65])
def test_a_name_that_cannot_be_one_is_a_usage_error(tmp_path, name):
    assert run(name, "--directory", tmp_path).exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["json", "email", "fedbus"])
def test_a_name_that_python_has_for_something_else_is_not_taken(tmp_path, name):
    result = run(name, "--directory", tmp_path)
    assert result.exit_code == 2
    assert f"'{name}' is the name of a module that there is already" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("topic", ['koji"', "Koji", "a..b", "x\ny"])
def test_a_filter_that_is_none_is_a_usage_error(tmp_path, topic):
    assert run("one", "--topic", topic, "--directory", tmp_path).exit_code == 2
    assert list(tmp_path.iterdir()) == []
