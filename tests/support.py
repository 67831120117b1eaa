"""Helpers that more than one test module needs."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
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


def open_parcel(parcel: Parcel, signer: str, limits: Limits) -> tuple[list[Message], list[WireError]]:
    """Return all messages of a verified *parcel*, and what was wrong with those that were refused."""
    refused: list[WireError] = []
    return list(envelope.open_parcel(parcel, signer, limits, refused.append)), refused
