"""Who gets to the relay: its socket in the file system, the folders of the spools, and whom it lets hand in what."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import logging
import os
import pwd
import socket
import stat
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from fedbus.errors import BindError, ConfigError
from fedbus.transport.options import RelayOptions, RelayRule

log = logging.getLogger(__name__)

_BACKLOG = 1024
_CREDENTIALS = struct.Struct("3i")  # struct ucred of socket(7)
_SO_PEERGROUPS = 59  # <asm-generic/socket.h>; Python has no name for it
_GROUP_BYTES = 4 * 65536  # NGROUPS_MAX groups


class Peer(NamedTuple):
    """Who is at the other end, as the kernel says."""

    uid: int
    groups: frozenset[int]
    pid: int

    def __str__(self) -> str:
        return f"user {self.uid}"


def peer_of(connection: socket.socket) -> Peer:
    """Ask the kernel who is at the other end of *connection*."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(data)
    groups = {gid}
    try:
        more = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUP_BYTES)
        groups.update(struct.unpack(f"{len(more) // 4}I", more))
    except OSError:
        pass  # a kernel before 4.13
    return Peer(uid, frozenset(groups), pid)


class Doorman:
    """Whom the relay lets hand in messages for which endpoint: its own user, root, and whom a rule grants it."""

    def __init__(self, rules: Iterable[RelayRule]) -> None:
        """Look the names of users and groups up; those that this host does not know grant nothing."""
        self._rules: list[tuple[list[list[str]], set[int], set[int]]] = []
        for rule in rules:
            users = {number for name in rule.users if (number := _number(name, _user_id, "user")) is not None}
            groups = {number for name in rule.groups if (number := _number(name, _group_id, "group")) is not None}
            self._rules.append(([one.split(".") for one in rule.endpoints], users, groups))

    def allows(self, endpoint: str, uid: int, groups: frozenset[int]) -> bool:
        """Say whether the user *uid*, being in *groups*, may hand in messages for *endpoint*."""
        if uid in (0, os.geteuid()):
            return True
        fields = endpoint.split(".")
        return any(
            (uid in users or not groups.isdisjoint(members)) and any(_matches(pattern, fields) for pattern in patterns)
            for patterns, users, members in self._rules
        )

    def allows_user(self, endpoint: str, uid: int) -> bool:
        """Say so of one who is not connected, with the groups that this host gives him."""
        try:
            user = pwd.getpwuid(uid)
            groups = frozenset(os.getgrouplist(user.pw_name, user.pw_gid))
        except (KeyError, OSError):
            groups = frozenset()
        return self.allows(endpoint, uid, groups)


def _matches(pattern: list[str], fields: list[str]) -> bool:
    return len(pattern) == len(fields) and all(want in ("*", have) for want, have in zip(pattern, fields, strict=True))


def _user_id(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _group_id(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def _number(name: str | int, look_up: Callable[[str], int], what: str) -> int | None:
    if isinstance(name, int):
        return name
    try:
        return look_up(name)
    except KeyError:
        log.warning("relay.allow: this host has no %s %r, so the rule grants nobody of that name anything", what, name)
        return None


# --- the socket in the file system ---------------------------------------------------------------------------------


class Door:
    """The socket, where clients find it; one relay at a time has it."""

    def __init__(self, options: RelayOptions) -> None:
        """Listen.

        Raises:
            BindError: Another relay has it, or the folder refuses.
            ConfigError: There is no such group.
        """
        self.path = path = options.socket
        self.group = self._group(options)
        self._lock = -1
        try:
            mode = int(options.mode, 8)
            path.parent.mkdir(mode=0o700 | (0o011 & mode >> 1), parents=True, exist_ok=True)
            self._lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
                raise FileExistsError(errno.EEXIST, "something that is no socket has its name")
            # it gets its name when it has its mode, so nobody connects before
            fresh = path.with_name(path.name + ".new")
            fresh.unlink(missing_ok=True)
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.setblocking(False)
            self.socket.bind(str(fresh))
            fresh.chmod(mode)
            if self.group >= 0:
                os.chown(fresh, -1, self.group)
            self.socket.listen(_BACKLOG)
            fresh.replace(path)
            self._inode = path.stat().st_ino
        except OSError as error:
            if self._lock >= 0:
                os.close(self._lock)
            why = f"{error.strerror or error}; mend its folder"
            if isinstance(error, BlockingIOError):
                why = "another relay has it; stop the other one"
            raise BindError(
                f"cannot listen at {path}: {why}, or name another path with relay.socket",
                endpoint="relay",
                address=str(path),
            ) from error

    @staticmethod
    def _group(options: RelayOptions) -> int:
        if options.group is None:
            return -1
        try:
            return options.group if isinstance(options.group, int) else _group_id(options.group)
        except KeyError:
            raise ConfigError(f"relay.group: this host has no group {options.group!r}") from None

    def close(self) -> None:
        """Go away: who connects now finds nobody."""
        if self._lock < 0:
            return
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        self.socket.close()
        os.close(self._lock)
        self._lock = -1


def prepare_folder(folder: Path, options: RelayOptions, group: int) -> None:
    """Make the folder for an endpoint's spool, writable for those whom the mode of the socket lets in.

    Others' files in it cannot be removed (sticky), and belong to its group, as which the relay reads them (setgid).

    Raises:
        OSError: It cannot be made.
    """
    mode = 0o700
    if int(options.mode, 8) & 0o020:
        mode |= 0o3070
    if int(options.mode, 8) & 0o002:
        mode |= 0o3007
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        return  # somebody else has set it up
    if group >= 0:
        os.chown(folder, -1, group)
    folder.chmod(mode)
    if mode != 0o700:
        # they have to get there
        folder.parent.chmod(stat.S_IMODE(folder.parent.stat().st_mode) | (0o011 & mode))
