"""Where results go that commands are told to write to a file: whole files, pipes, devices, stdout."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from fedbus.cli.whole_file import whole_file
from fedbus.errors import FedbusError


def test_a_file_is_there_when_all_is_in_it_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with whole_file(path, mode=0o640) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_what_fails_on_the_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), whole_file(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"old" and [one.name for one in tmp_path.iterdir()] == ["out"]


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()), daemon=True)
    reader.start()
    with whole_file(path) as file:
        file.write(b"through")
    reader.join(60)
    assert found == [b"through"] and stat.S_ISFIFO(path.stat().st_mode)


def test_a_device_is_never_replaced_and_its_refusal_names_it() -> None:
    # a terminal of our own: what a mistake would replace is ours alone
    leader, follower = os.openpty()
    try:
        path = Path(os.ttyname(follower))
        with whole_file(path) as file:
            file.write(b"shown")
        assert stat.S_ISCHR(path.stat().st_mode) and os.read(leader, 100) == b"shown"
    finally:
        os.close(leader)
        os.close(follower)


def test_what_a_standard_stream_leads_to_is_appended_to_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "redirected"
    path.write_bytes(b"before\n")
    before = path.stat().st_ino
    with path.open("ab") as stream, whole_file(Path(f"/proc/self/fd/{stream.fileno()}")) as file:
        file.write(b"after\n")
    assert path.read_bytes() == b"before\nafter\n" and path.stat().st_ino == before


def test_a_dash_is_stdout(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (None, Path("-")):
        with whole_file(path) as file:
            file.write(b"data")
        assert capfdbinary.readouterr().out == b"data"
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(FedbusError, match="stdout is closed"), whole_file(None):
        pass


def test_a_folder_that_is_not_there_is_told_by_the_name_that_was_given(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "out"
    with pytest.raises(FedbusError, match=f"^cannot write {path}: No such file or directory; "), whole_file(path):
        pass
