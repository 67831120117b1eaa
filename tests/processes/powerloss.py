"""What a disk holds after a loss of power: a model that is fed with the system calls of a real process.

strace records what the process asks of the kernel. Only this is promised to be kept: of a file what was synced, of a
folder the names that were there when it was synced. Everything else may have reached the disk, or not, or in part, in
any order. :func:`images` makes such disks for every moment at which the power may fail.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CALLS = (
    "openat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,"
    "write,writev,pwrite64,pwritev,ftruncate,fsync,fdatasync,close"
)
_CALL = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+)(?:<([^>]*)>)?")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_FD = re.compile(r"^(\d+)<([^>]*)>")
_SECTOR = 512


def text(escaped: str) -> bytes:
    """Undo the ``\\xhh`` of strace."""
    return bytes.fromhex(escaped.replace("\\x", ""))


@dataclass(eq=False)
class File:
    """A file: its bytes as they are, as they were at its last sync, and what was written in between."""

    data: bytearray = field(default_factory=bytearray)
    kept: bytes = b""
    writes: list[tuple[int, bytes] | int] = field(default_factory=list)  # (place, bytes), or the length it was cut to

    def write(self, at: int, data: bytes) -> None:
        if at > len(self.data):
            self.data += bytes(at - len(self.data))
        self.data[at : at + len(data)] = data
        self.writes.append((at, data))

    def cut(self, length: int) -> None:
        self.data[length:] = bytes(max(0, length - len(self.data)))
        self.writes.append(length)

    def sync(self) -> None:
        self.kept = bytes(self.data)
        self.writes.clear()

    def after(self, chance: random.Random, how: str) -> bytes:
        """What may be found of it after the power has failed: *how* is least, most or any."""
        if how == "least":
            return self.kept
        if how == "most":
            return bytes(self.data)
        found = File(bytearray(self.kept))
        for one in self.writes:
            if chance.random() < 0.4:
                continue  # it never reached the disk
            if isinstance(one, int):
                found.cut(one)
                continue
            at, data = one
            for start in range(0, len(data), _SECTOR):
                # a write is torn at the sectors of the disk; one that was only allocated reads as zeros
                fate = chance.random()
                piece = data[start : start + _SECTOR]
                if fate < 0.8:
                    found.write(at + start, piece)
                elif fate < 0.9:
                    found.write(at + start, bytes(len(piece)))
        return bytes(found.data)


@dataclass
class Folder:
    """Names, as they are and as they were when the folder was last synced; None stands for a folder."""

    names: dict[str, File | None] = field(default_factory=dict)
    kept: dict[str, File | None] = field(default_factory=dict)


class Disk:
    """All below one folder, as the recorded calls change it."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.folders: dict[str, Folder] = {self.root: Folder()}
        self.open: dict[int, tuple[File | None, str, bool]] = {}  # descriptor -> file, path, appends
        self.places: dict[int, int] = {}

    def _split(self, path: str) -> tuple[Folder, str]:
        folder, _, name = path.rpartition("/")
        return self.folders[folder], name

    def apply(self, call: str, arguments: str, result: int, opened: str) -> str | None:
        """Do what a successful call did; return what it said on stdout, if it did."""
        descriptor = _FD.match(arguments)
        texts = [text(one) for one in _TEXT.findall(arguments)]
        if call == "openat":
            self._openat(text(opened).decode(), arguments, result)
        elif call in ("mkdir", "mkdirat"):
            path = texts[0].decode()
            if path.startswith(self.root + "/"):
                folder, name = self._split(path)
                folder.names[name] = None
                self.folders[path] = Folder()
        elif call.startswith("rename"):
            old, new = (one.decode() for one in texts)
            if old.startswith(self.root + "/"):
                before, name = self._split(old)
                after, other = self._split(new)
                after.names[other] = before.names.pop(name)
        elif call.startswith("unlink"):
            path = texts[0].decode()
            if path.startswith(self.root + "/"):
                folder, name = self._split(path)
                folder.names.pop(name, None)
        elif descriptor is not None:
            return self._with_descriptor(call, int(descriptor[1]), arguments, texts, result)
        return None

    def _openat(self, path: str, arguments: str, descriptor: int) -> None:
        self.open.pop(descriptor, None)
        if path != self.root and not path.startswith(self.root + "/"):
            return
        if path in self.folders:
            self.open[descriptor] = (None, path, False)
            return
        folder, name = self._split(path)
        file = folder.names.setdefault(name, File())
        assert file is not None
        if "O_TRUNC" in arguments and file.data:
            file.cut(0)
        self.open[descriptor] = (file, path, "O_APPEND" in arguments)
        self.places[descriptor] = 0

    def _with_descriptor(
        self, call: str, descriptor: int, arguments: str, texts: list[bytes], result: int
    ) -> str | None:
        if call == "close":
            self.open.pop(descriptor, None)
            return None
        data = b"".join(texts)[: max(0, result)]
        if descriptor == 1 and call == "write":
            return data.decode()
        if descriptor not in self.open:
            return None
        file, path, appends = self.open[descriptor]
        if call in ("fsync", "fdatasync"):
            if file is None:
                folder = self.folders[path]
                folder.kept = dict(folder.names)
            else:
                file.sync()
            return None
        assert file is not None
        if call in ("write", "writev"):
            at = len(file.data) if appends else self.places[descriptor]
            file.write(at, data)
            self.places[descriptor] = at + len(data)
        elif call == "pwrite64":
            file.write(int(arguments.rpartition(",")[2]), data)
        elif call == "ftruncate":
            file.cut(int(arguments.rpartition(",")[2]))
        return None

    def write_image(self, to: Path, chance: random.Random, how: str) -> None:
        """Write to *to* what may be on the disk if the power fails now."""
        for path, folder in sorted(self.folders.items()):
            here = to / path[len(self.root) + 1 :]
            names = dict(folder.kept)
            if how == "most":
                names = dict(folder.names)
            elif how == "any":
                for name in sorted(folder.kept.keys() | folder.names.keys()):
                    # each name is as it was or as it is; a rename is one change of a folder, and is never half done
                    source = folder.names if chance.random() < 0.5 else folder.kept
                    if name in source:
                        names[name] = source[name]
                    else:
                        names.pop(name, None)
            if path == self.root:
                here.mkdir(mode=0o700)
            if not here.is_dir():
                continue  # its own name was not kept
            for name, file in names.items():
                if file is None:
                    (here / name).mkdir(mode=0o700)
                else:
                    (here / name).write_bytes(file.after(chance, how))
                    (here / name).chmod(0o600)


def record(strace: str, program: str, root: Path, *arguments: str) -> list[tuple[str, str, int, str]]:
    """Run *program* (Python, with *root* as its first argument), and return its successful calls on files."""
    trace = root.with_suffix(".trace")
    root.mkdir(mode=0o700)
    done = subprocess.run(
        [
            *(strace, "-y", "-xx", "-s", "1000000", "-o", str(trace), "-e", f"trace={CALLS}"),
            *(sys.executable, "-c", program, str(root), *arguments),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    calls = []
    for line in trace.read_text().splitlines():
        match = _CALL.match(line)
        if match is not None and int(match[3]) >= 0:
            calls.append((match[1], match[2], int(match[3]), match[4] or ""))
    return calls


def said(calls: Sequence[tuple[str, str, int, str]]) -> list[str]:
    """The lines that the process wrote to stdout."""
    return [line for call in calls if call[0] == "write" and call[1].startswith("1<") for line in _lines(call[1])]


def _lines(arguments: str) -> list[str]:
    return b"".join(text(one) for one in _TEXT.findall(arguments)).decode().splitlines()


def images(
    calls: Sequence[tuple[str, str, int, str]], root: Path, folder: Path, chance: random.Random, *, every: float = 1.0
) -> Iterator[tuple[Path, list[str]]]:
    """Yield disks as the power may leave them, each with the lines that the process had written to stdout by then.

    A disk for a part *every* of all moments between two calls; the folder is removed when the next one is asked for.
    """
    disk = Disk(root)
    told: list[str] = []
    number = 0
    for call in calls:
        before = len(told)
        line = disk.apply(*call)
        if line is not None:
            told += line.splitlines()
        changes = call[0] not in ("close", "openat", "write") or len(told) != before or _touches(call[1], disk)
        if not changes or chance.random() >= every:
            continue
        number += 1
        image = folder / str(number)
        disk.write_image(image, chance, chance.choice(("least", "most", "any", "any")))
        yield image, list(told)
        shutil.rmtree(image)


def _touches(arguments: str, disk: Disk) -> bool:
    descriptor = _FD.match(arguments)
    return descriptor is not None and int(descriptor[1]) in disk.open
