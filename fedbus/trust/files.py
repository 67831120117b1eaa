"""Reading and writing the files of trust: nobody else may read a private key, nobody else may write what we trust."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fedbus.errors import KeysError

# Far above any CA file or revocation list that belongs on a message bus (64 MiB hold about a million revocations).
MAX_FILE_BYTES = 64 * 2**20

Mark = tuple[int, int, int, int] | None  # inode, size, mtime and ctime in ns; None: there is no such file


def file_mark(path: Path) -> Mark:
    """What changes when the file at *path* is replaced or written; None while there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _read(path: Path, what: str, forbidden: int, advice: str) -> bytes:
    """The content of *path*, after its mode and owner were checked on the opened file itself.

    Checking the descriptor and not the name leaves no moment in which the file could be exchanged.
    """
    try:
        # O_NONBLOCK: a FIFO in place of the file must not hold us up; it has no effect on a regular file.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise KeysError(f"cannot read {what} {path}: there is no such file; make it, or correct its path") from None
    except OSError as error:
        hint = "it is a symbolic link; name the file itself" if path.is_symlink() else str(error.strerror)
        raise KeysError(f"cannot read {what} {path}: {hint}") from error
    try:
        found = os.fstat(descriptor)
        mode = stat.S_IMODE(found.st_mode)
        if not stat.S_ISREG(found.st_mode):
            raise KeysError(f"cannot read {what} {path}: it is not a regular file; name the file itself")
        if found.st_uid not in (0, os.geteuid()):
            raise KeysError(
                f"refusing {what} {path} (mode {mode:04o}): it belongs to user {found.st_uid}, not to root or to "
                f"user {os.geteuid()} who runs this; chown it"
            )
        if mode & forbidden:
            raise KeysError(f"refusing {what} {path}: its mode is {mode:04o}, so {advice}")
        if found.st_size > MAX_FILE_BYTES:
            raise KeysError(f"refusing {what} {path}: {found.st_size} bytes are more than {MAX_FILE_BYTES}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise KeysError(f"cannot read {what} {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def read_private(path: Path, what: str = "private key") -> bytes:
    """The content of a file that only its owner may read.

    Raises:
        KeysError: Missing, not a regular file, of a foreign owner, or open to the group or to others.
    """
    return _read(
        path, what, 0o077, f"others than its owner can use it; chmod 600 {path}, and replace the key if it was exposed"
    )


def read_public(path: Path, what: str) -> bytes:
    """The content of a file that all may read but only its owner may write.

    Raises:
        KeysError: Missing, not a regular file, of a foreign owner, or writable by the group or by others, as may be
            its folder.
    """
    data = _read(path, what, 0o022, f"others than its owner can change whom we trust; chmod 644 {path}")
    folder = path.parent
    found = folder.stat()
    # In a folder with the sticky bit, such as /tmp, only the owner of a file may replace it.
    if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
        raise KeysError(
            f"refusing {what} {path}: the mode of its folder {folder} is {stat.S_IMODE(found.st_mode):04o}, so others "
            f"can replace the file; chmod go-w {folder}"
        )
    return data


def write_atomic(path: Path, data: bytes, *, mode: int) -> None:
    """Put *data* at *path* with *mode*: a reader sees the old file or the new one, even after a crash.

    Raises:
        KeysError: The folder or the disk refused; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, mode)  # a strict umask or a left-over file must not decide
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise KeysError(f"cannot write {path}: {error.strerror}; check the folder's owner and free space") from error
