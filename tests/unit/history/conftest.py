"""Histories of both kinds, for tests that hold for each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.history.postgres_server import Server, server
from tests.unit.history.press import Press
from tests.unit.history.stores import Open, opener

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """One server for all tests that leave it as it was; each takes a schema of its own."""
    with server() as one:
        one.start()
        yield one


@pytest.fixture(scope="module")
def press(tmp_path_factory: pytest.TempPathFactory) -> Press:
    return Press(tmp_path_factory.mktemp("keys") / "keys")


@pytest.fixture(params=["sqlite", "postgres"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """What `store` in the settings of a new history would be."""
    return fresh(kind, tmp_path, request)


@pytest.fixture
def open_store(place: str, press: Press) -> Open:
    """Open the same new history as often as wanted."""
    return opener(place, press.clock)


def fresh(kind: str, folder: Path, request: pytest.FixtureRequest) -> str:
    if kind == "sqlite":
        return str(folder / f"history{next(_NUMBERS)}")
    import psycopg

    one: Server = request.getfixturevalue("postgres")
    schema = f"test{next(_NUMBERS)}"
    with psycopg.connect(one.url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    return f"{one.url}&options=-csearch_path%3D{schema}"
