"""Buses that close with the test."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from buses import quick

from fedbus import Bus


@pytest.fixture
def open_bus(bus_folder: Path) -> Iterator[Callable[..., Bus]]:
    """Open buses of `bus_folder`: `open_bus(publisher={…}, subscriber={…}, journal={…})`."""
    opened: list[Bus] = []

    def start(**parts: dict[str, object]) -> Bus:
        opened.append(Bus(quick(bus_folder, **parts)))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.fixture
def bus(open_bus: Callable[..., Bus]) -> Bus:
    return open_bus()


@pytest.fixture
def fork(tmp_path: Path) -> Callable[[Callable[[], None]], str]:
    """Run a function in a forked child and return "done", or the traceback of what it raised."""

    def run(act: Callable[[], None]) -> str:
        said = tmp_path / "child"
        child = os.fork()
        if child == 0:
            # the child must never return into pytest, nor run what the parent has registered for its exit
            try:
                act()
                said.write_text("done")
            except BaseException:
                said.write_text(traceback.format_exc())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        return said.read_text()

    return run
