"""What is built is whole: sources and wheel, installed into an empty environment, do what the checkout does."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedbus
from fedbus.cli import completion
from fedbus.cli.units import UNITS
from tests.support import need_program

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300.0
# what a checkout holds beside its files
MADE = (
    ".git",
    ".venv",
    ".ci",
    ".bench",
    "build",
    "dist",
    "_build",
    "*.egg-info",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
)
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, 'build_' + sys.argv[1])(sys.argv[2]))"


def package_folders() -> Iterator[str]:
    """The packages of the checkout, by the names that they are imported by."""
    for place, name in ((ROOT / "fedbus", "fedbus"), (ROOT / "consumers", "fedbus_consumers")):
        for path in place.rglob("*.py"):
            yield ".".join([name, *path.parent.relative_to(place).parts])


def test_each_folder_with_code_is_a_package_that_is_listed() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config["options"]["packages"].split()
    assert listed == sorted(set(listed))
    assert set(listed) == set(package_folders())


def test_the_version_is_the_same_everywhere() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["metadata"]["version"] == fedbus.__version__


def test_what_completes_commands_is_shipped_as_the_commands_say() -> None:
    place = ROOT / "fedbus" / "data" / "completion"
    shipped = {str(path.relative_to(place)): path.read_text("utf-8") for path in place.rglob("*") if path.is_file()}
    assert shipped == completion.files(), "`make man` writes them anew"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the checkout in which building leaves nothing behind."""
    return Path(shutil.copytree(ROOT, tmp_path / "tree", ignore=shutil.ignore_patterns(*MADE)))


def build(what: str, tree: Path, place: Path) -> Path:
    """Build `sdist` or `wheel`, with the backend that pyproject.toml names, and return the file."""
    done = run([sys.executable, "-c", BUILD, what, str(place)], tree)
    return place / done.splitlines()[-1]


def run(arguments: list[str | Path], folder: Path, environment: dict[str, str] | None = None, code: int = 0) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FEDBUS", "_FEDBUS", "PYTHON"))}
    done = subprocess.run(
        list(map(str, arguments)),
        cwd=folder,
        env={**kept, "LC_ALL": "C.UTF-8", "HOME": str(folder), **(environment or {})},
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == code, f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_a_wheel_made_of_the_source_distribution_is_the_same_and_that_holds_all(tree: Path, tmp_path: Path) -> None:
    sources = build("sdist", tree, tmp_path)
    with tarfile.open(sources) as archive:
        archive.extractall(tmp_path, filter="data")
    inner = tmp_path / sources.name.removesuffix(".tar.gz")
    for name in ("LICENSE", "CHANGELOG.rst", "README.rst", "Makefile", "doc/wire.rst", "etc/fedbus.d/10-bus.yaml"):
        assert (inner / name).is_file(), name
    # whoever packages this runs the tests from here
    for folder in ("tests", "bench", "consumers", "fedbus", "etc", "doc"):
        missing = {str(path.relative_to(tree)) for path in (tree / folder).rglob("*") if path.is_file()} - {
            str(path.relative_to(inner)) for path in (inner / folder).rglob("*")
        }
        assert not missing
    first, second = build("wheel", tree, tmp_path / "a"), build("wheel", inner, tmp_path / "b")
    with zipfile.ZipFile(first) as one, zipfile.ZipFile(second) as other:
        names = set(one.namelist())
        assert names == set(other.namelist())
        for name in names:
            if not name.endswith("/RECORD"):
                assert one.read(name) == other.read(name), name
    assert {f"fedbus/data/systemd/{name}" for name in UNITS} <= names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "bench/", "consumers/")) for name in names)
    assert {name for name in names if name.endswith("/py.typed")} == {"fedbus/py.typed", "fedbus_consumers/py.typed"}


def test_installed_into_an_empty_environment_it_works(tree: Path, tmp_path: Path) -> None:
    wheel = build("wheel", tree, tmp_path)
    shutil.rmtree(tree)
    place = tmp_path / "environment"
    run([sys.executable, "-m", "venv", "--without-pip", place], tmp_path)
    python, programs = place / "bin" / "python", place / "bin"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet"]
    run([*pip, "--disable-pip-version-check", wheel], tmp_path)
    # what it depends on is there where the tests run; fedbus is not taken from there, whose .pth files do not count
    own = next(place.glob("lib/python*/site-packages"))
    used = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (own / "dependencies.pth").write_text("\n".join(sorted(used)))
    config = tmp_path / "bus"
    environment = {"PATH": f"{programs}{os.pathsep}/usr/bin{os.pathsep}/bin", "FEDBUS_CONFIG": str(config)}

    def call(*arguments: str | Path) -> str:
        return run(list(arguments), tmp_path, environment)

    found = call(
        python, "-c", "import fedbus, fedbus_consumers as c; from fedbus import Bus; print(fedbus.__file__, c.__file__)"
    )
    assert all(Path(one).is_relative_to(own) for one in found.split())
    assert call(programs / "fedbus", "--version") == f"fedbus, version {fedbus.__version__}\n"
    for path in programs.glob("fedbus*"):
        assert "Usage: " in call(path, "--help")
    call("fedbus", "init", config, "--endpoint", "koji.build01")
    call("fedbus", "publish", "package.build.complete", '{"package": "bash"}', "--wait", "0")
    line = call("fedbus", "tail", "--since", "beginning", "--no-follow", "--json")
    assert json.loads(line)["body"] == {"package": "bash"}
    assert f"ExecStart={programs}/fedbus hub\n" in call("fedbus", "systemd", "fedbus-hub.service")
    assert ".TH FEDBUS\\-HUB 1" in call("fedbus", "man", "hub")
    # beside the commands, where man and shells look
    assert call(need_program("man"), "-w", "fedbus-hub").strip() == str(place / "share/man/man1/fedbus-hub.1")
    completed = call(
        need_program("bash"),
        "-c",
        f". '{place}/share/bash-completion/completions/fedbus-tail'; "
        "COMP_WORDS=(fedbus-tail --idle); COMP_CWORD=1; _fedbus_tail_completion fedbus-tail; echo ${COMPREPLY[@]}",
    )
    assert completed == "--idle-exit\n"
    assert (place / "share/doc/fedbus/fedbus.d/10-bus.yaml").is_file()
