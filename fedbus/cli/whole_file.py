"""Where a command puts its result: a file that is there whole or not at all, or what is no file, such as a pipe."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fedbus.errors import FedbusError


@contextmanager
def whole_file(path: Path | None, *, mode: int = 0o600) -> Iterator[BinaryIO]:
    """Open *path* to be written: it gets its name and *mode* only when all is in it and synced.

    None and ``-`` are stdout. A pipe, a device and ``/dev/stdout`` are never replaced: they are written to as it comes.

    Raises:
        FedbusError: The folder or the disk refused, or stdout is closed.
    """
    if path is None or str(path) == "-":
        if sys.stdout is None:
            raise FedbusError("stdout is closed, so there is nowhere to write to; open it, or name a file")
        yield sys.stdout.buffer
        sys.stdout.flush()
        return
    with _told(path):
        if _is_no_file(path):
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), "wb") as file:
                yield file
            return
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        fresh = Path(name)
        try:
            with os.fdopen(fd, "wb") as file:
                os.fchmod(fd, mode)
                yield file
                file.flush()
                os.fsync(fd)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)


def _is_no_file(path: Path) -> bool:
    """Say whether *path* is there and must not be replaced by a file."""
    try:
        if path.is_symlink() and path.absolute().parts[1:2] in (("dev",), ("proc",)):
            return path.exists()  # one of the standard streams, which may lead to a file that others write to as well
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Name *path* in errors of its writing; a reader that went away is for others to tell."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise FedbusError(f"cannot write {path}: {error.strerror}; check its folder, or choose another file") from error
