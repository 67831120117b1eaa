"""Helpers that more than one test module needs."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from fedbus.errors import WireError
from fedbus.model.limits import Limits
from fedbus.model.message import Message
from fedbus.wire import envelope
from fedbus.wire.parcel import Parcel

T = TypeVar("T")


def need_program(name: str, *folders: str) -> str:
    """Return the path of the program *name*, looked for in *folders* too; without it skip the test, or fail in CI."""
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *folders]))
    if path is None:
        reason = f"{name} is not installed here; tests/system-packages installs it for root"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def wait_until(condition: Callable[[], T], timeout: float = 60.0, what: str = "the condition") -> T:
    """Return the first true value of *condition*, asked every few milliseconds; fail when *timeout* seconds passed."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout} s")
        time.sleep(0.005)


@contextlib.contextmanager
def open_folder(prefix: str) -> Iterator[Path]:
    """A new folder for a server that runs as somebody else, or that listens there; it goes with all that is in it.

    Not below pytest's own: these are for its user alone, and the path of a Unix socket may have 107 bytes.
    """
    parent = "/tmp" if os.access("/tmp", os.W_OK) else None  # what TMPDIR says may be long, or private
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def open_parcel(parcel: Parcel, signer: str, limits: Limits) -> tuple[list[Message], list[WireError]]:
    """Return all messages of a verified *parcel*, and what was wrong with those that were refused."""
    refused: list[WireError] = []
    return list(envelope.open_parcel(parcel, signer, limits, refused.append)), refused
