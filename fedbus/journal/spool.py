"""Messages that wait on the disk for their publisher, while it cannot be reached.

A folder for each endpoint; in it, for each user who spools, ``UID.messages``, which is appended to, and ``UID.lock``,
which is locked meanwhile. Who sends them renames the file first, to ``UID.EPOCH.HEAD.sending``: EPOCH and HEAD are what
the journal was just then, so whoever has to begin anew knows where to look for what was sent before. doc/relay.rst
tells the whole.

Record, big-endian: four bytes 0xf5 "fsp", u32 length of the payload, u32 CRC-32 (RFC 1952) of the payload, payload. No
UTF-8 text holds 0xf5, nor a length below 2**24 written so, hence a message inside cannot be taken for a record.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fedbus.errors import DeadlineExceeded, JournalError, JournalWriteError, QueueFull
from fedbus.failpoints import ARMED, hit

MAGIC = b"\xf5fsp"
PAYLOAD_BYTES = 2**24 - 1
_HEADER = struct.Struct(">4sII")
_NOTE = struct.Struct(">8sQQI")  # what a lock file holds: mark, inode and sound bytes of the file, CRC-32 of these
_NOTE_MARK = b"FEDBUSL1"
_CHUNK = 2**20
_SENDING = re.compile(r"(\d{1,10})\.([0-9a-f-]{36})\.(\d{20})\.sending")
_MESSAGES = re.compile(r"(\d{1,10})\.messages")
# Damage makes us look for the next record byte by byte. What only looks like one costs a checksum over its length, and
# whoever may write the file could put millions of these in it; so much of that, as a multiple of the file, is enough.
_SEARCH = 4


class Found(NamedTuple):
    """A whole record of a file, and where it stands in it."""

    start: int
    end: int
    payload: bytes


class Waiting(NamedTuple):
    """A file with messages in the folder of an endpoint; *epoch* and *head* where somebody has begun to send it."""

    path: Path
    uid: int  # as its name says; who really owns it is told by :func:`open_file`
    size: int  # bytes, when it was found; it may have been sent and be gone since
    epoch: str = ""
    head: int = 0


# --- records -------------------------------------------------------------------------------------------------------


def frame(payload: bytes) -> bytes:
    """Return the record of *payload*.

    Raises:
        QueueFull: It is longer than any record may be.
    """
    if len(payload) > PAYLOAD_BYTES:
        raise QueueFull(f"a message of {len(payload)} bytes does not fit into a spool, which takes {PAYLOAD_BYTES}")
    return _HEADER.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload


class _Window:
    """Reads an open file piece by piece, from its beginning to *size*."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self._at = 0
        self._data = b""

    def get(self, start: int, length: int) -> bytes:
        """Return *length* bytes from *start*; fewer where the file has become shorter."""
        if start < self._at or start + length > self._at + len(self._data):
            self._at = start
            self._data = os.pread(self._fd, min(max(length, _CHUNK), self._size - start), start)
        return self._data[start - self._at : start - self._at + length]

    def find(self, text: bytes, start: int) -> int:
        """Return where *text* stands at or after *start*, or -1."""
        while start + len(text) <= self._size:
            if len(self.get(start, len(text))) < len(text):
                return -1
            place = self._data.find(text, start - self._at)
            if place >= 0:
                return place + self._at
            start = self._at + len(self._data) - len(text) + 1
        return -1


def records(fd: int, size: int) -> Iterator[Found]:
    """Yield the whole records in the first *size* bytes of a file, damage left out: see where they start and end.

    Raises:
        OSError: The file cannot be read.
    """
    window = _Window(fd, size)
    at = 0
    patience = _SEARCH * size + _CHUNK
    while at + _HEADER.size <= size and patience > 0:
        header = window.get(at, _HEADER.size)
        if len(header) < _HEADER.size:
            return
        mark, length, checksum = _HEADER.unpack(header)
        end = at + _HEADER.size + length
        if mark == MAGIC and length <= PAYLOAD_BYTES and end <= size:
            payload = window.get(at + _HEADER.size, length)
            if len(payload) == length and zlib.crc32(payload) == checksum:
                yield Found(at, end, payload)
                at = end
                continue
            patience -= length
        patience -= 1
        at = window.find(MAGIC, at + 1)
        if at < 0:
            return


# --- the side that spools ------------------------------------------------------------------------------------------


class Spool:
    """Appends to the spool of one endpoint as the user of this process; any thread and any process may.

    Nothing stays open between two calls, so it works across a fork. *most_bytes* bounds what one user may have waiting.
    """

    def __init__(self, directory: Path, *, most_bytes: int) -> None:
        self.directory = directory
        self._most = most_bytes

    def append(self, payloads: Sequence[bytes], *, timeout: float) -> None:
        """Append a record for each of *payloads*, all or none; on return they are on the disk.

        Raises:
            QueueFull: There would be more than ``most_bytes``.
            DeadlineExceeded: Other processes kept the spool locked for *timeout* seconds.
            JournalWriteError: The disk, or a mode, refused. Nothing was kept.
        """
        data = b"".join(map(frame, payloads))
        uid = os.geteuid()
        try:
            self._make_folder()
            with lock(self.directory, uid, timeout=timeout) as held:
                self._append(data, uid, held)
        except DeadlineExceeded:  # a TimeoutError, which is an OSError
            raise
        except OSError as error:
            raise JournalWriteError(
                f"cannot spool {len(payloads)} messages in {self.directory}: {error.strerror or error}; nothing was "
                "kept; free space, mend the folder's mode, or start the relay"
            ) from error

    def _append(self, data: bytes, uid: int, held: int) -> None:
        folder = self.directory.stat()
        # where the folder is not ours, its group reads what we write, and that is how the relay does
        mode = 0o600 if folder.st_uid == uid else 0o640
        path = self.directory / f"{uid}.messages"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
        try:
            state = os.fstat(fd)
            if not stat.S_ISREG(state.st_mode) or state.st_uid != uid or state.st_nlink != 1:
                raise OSError(errno.EPERM, "its file is not ours alone", str(path))
            end = state.st_size
            known = _read_note(held) == (state.st_ino, end) and end > 0
            if not known:
                # somebody was killed in the middle of it: what is torn goes
                end = max((one.end for one in records(fd, end)), default=0)
                os.ftruncate(held, 0)  # a file removed before may have had the same inode
                os.ftruncate(fd, end)
                os.fchmod(fd, mode)
            waiting = end + sum(one.size for one in list_waiting(self.directory) if one.epoch and one.uid == uid)
            if waiting + len(data) > self._most:
                raise QueueFull(
                    f"the spool in {self.directory} holds {waiting} bytes of user {uid}, and may hold {self._most}: "
                    "start the relay, or raise relay.spool_bytes"
                )
            if ARMED:
                hit("spool.write")
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                if ARMED:
                    hit("spool.sync")
                os.fdatasync(fd)
                if not known:
                    _sync_folder(self.directory)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, end)
                raise
            with contextlib.suppress(OSError):  # it only spares the next one a look through the file
                _write_note(held, state.st_ino, end + len(data))
        finally:
            os.close(fd)

    def _make_folder(self) -> None:
        missing = []
        folder = self.directory
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for one in reversed(missing):
            with contextlib.suppress(FileExistsError):
                one.mkdir(mode=0o700)
            _sync_folder(one.parent)


def _read_note(fd: int) -> tuple[int, int]:
    data = os.pread(fd, _NOTE.size, 0)
    if len(data) == _NOTE.size:
        mark, inode, sound, checksum = _NOTE.unpack(data)
        if mark == _NOTE_MARK and zlib.crc32(data[:24]) == checksum:
            return inode, sound
    return 0, 0


def _write_note(fd: int, inode: int, sound: int) -> None:
    note = _NOTE.pack(_NOTE_MARK, inode, sound, 0)[:24]
    os.pwrite(fd, note + zlib.crc32(note).to_bytes(4, "big"), 0)


@contextlib.contextmanager
def lock(directory: Path, uid: int, *, timeout: float) -> Iterator[int]:
    """Hold the lock of the user *uid* in the spool *directory*; yields the descriptor of the lock file.

    Raises:
        DeadlineExceeded: Somebody else held it for *timeout* seconds.
        OSError: The lock file cannot be made or opened.
    """
    path = directory / f"{uid}.lock"
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if uid == os.geteuid():
        mode = 0o600 if directory.stat().st_uid == uid else 0o640
        fd = os.open(path, os.O_RDWR | os.O_CREAT | flags, mode)
        if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
            os.fchmod(fd, mode)  # the umask may have taken a bit away
    else:
        fd = os.open(path, os.O_RDONLY | flags)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if timeout <= 0 or not _queue_for(fd, timeout):
                raise DeadlineExceeded(
                    f"the spool in {directory} was locked by another process for {timeout:g} s; try again"
                ) from None
        yield fd
    finally:
        os.close(fd)


def _queue_for(fd: int, timeout: float) -> bool:
    """Wait for the lock of *fd* in the queue of the kernel; False where its turn has not come in *timeout* seconds.

    flock() itself knows no deadline; and who only asks again and again is overtaken by others without end where
    hundreds of processes spool at once. So a thread waits, with a descriptor of its own: should it wait in vain, the
    lock that it gets some time later goes with that.
    """
    own = os.dup(fd)
    faults: list[OSError] = []

    def wait() -> None:
        try:
            fcntl.flock(own, fcntl.LOCK_EX)
        except OSError as error:
            faults.append(error)
        finally:
            os.close(own)

    waiting = threading.Thread(target=wait, name="fedbus-spool-lock", daemon=True)
    try:
        waiting.start()
    except RuntimeError as error:  # no thread to be had
        os.close(own)
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
    waiting.join(timeout)
    if faults:
        raise faults[0]
    return not waiting.is_alive()


def _sync_folder(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- the side that sends -------------------------------------------------------------------------------------------


def list_waiting(directory: Path) -> list[Waiting]:
    """Return the files that wait in *directory*, each user's in their order; none where there is no such folder.

    Raises:
        JournalError: The folder cannot be read.
    """
    found: list[tuple[int, bool, int, Waiting]] = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                path = Path(entry.path)
                with contextlib.suppress(FileNotFoundError):
                    if match := _SENDING.fullmatch(entry.name):
                        state, uid = entry.stat(follow_symlinks=False), int(match[1])
                        one = Waiting(path, uid, state.st_size, match[2], int(match[3]))
                        found.append((uid, False, state.st_mtime_ns, one))
                    elif match := _MESSAGES.fullmatch(entry.name):
                        state, uid = entry.stat(follow_symlinks=False), int(match[1])
                        found.append((uid, True, 0, Waiting(path, uid, state.st_size)))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise JournalError(
            f"cannot look into the spool {directory}: {error.strerror}; check its owner and mode"
        ) from error
    return [waiting for *_, waiting in sorted(found, key=lambda one: one[:3])]


def take(waiting: Waiting, *, epoch: str, head: int) -> Waiting | None:
    """Claim a file for sending; None where somebody appends to it just now, or it is gone.

    *epoch* and *head* say where the journal is that its messages go to.

    Raises:
        JournalError: It cannot be renamed.
    """
    if waiting.epoch:
        return waiting
    directory = waiting.path.parent
    sending = directory / f"{waiting.uid}.{epoch}.{head:020d}.sending"
    try:
        with lock(directory, waiting.uid, timeout=0.0):
            waiting.path.rename(sending)
            _sync_folder(directory)
    except (DeadlineExceeded, FileNotFoundError):
        return None
    except OSError as error:
        raise JournalError(
            f"cannot send what is spooled in {waiting.path}: {error.strerror}; check the owner and mode of the folder"
        ) from error
    if ARMED:
        hit("spool.taken")
    return waiting._replace(path=sending, epoch=epoch, head=head)


def open_file(waiting: Waiting) -> tuple[int, int, int]:
    """Open a file for reading; return its descriptor, its size, and the user who owns it, on whose word it counts.

    Raises:
        JournalError: It cannot be read, or is something else than a file.
    """
    try:
        fd = os.open(waiting.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode) or state.st_nlink > 1:
            os.close(fd)
            raise OSError(errno.EPERM, "it is no file of its own")
    except OSError as error:
        raise JournalError(
            f"cannot read what is spooled in {waiting.path}: {error.strerror}; check its owner and mode"
        ) from error
    return fd, state.st_size, state.st_uid


def remove(waiting: Waiting) -> None:
    """Remove a file whose messages are all in the journal.

    Raises:
        JournalError: It cannot be removed; to send it again does no harm.
    """
    if ARMED:
        hit("spool.remove")
    try:
        waiting.path.unlink(missing_ok=True)
        _sync_folder(waiting.path.parent)
    except OSError as error:
        raise JournalError(
            f"cannot remove {waiting.path}, whose messages were sent: {error.strerror}; check the folder's owner"
        ) from error
