"""A verifier that trusts the CA of the test vectors, at the time that they are made for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedbus.clock import ManualClock
from fedbus.model.topic import Naming
from fedbus.trust.keyring import Keyring, KeyringOptions
from fedbus.trust.policy import Policy
from fedbus.trust.verifier import Verifier
from tests.vectors import make


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    """The CA certificates, in a file that nobody else may change, however the sources were checked out."""
    path = tmp_path / "ca.crt"
    path.write_bytes((make.HERE / "ca.crt").read_bytes())
    path.chmod(0o644)
    return path


@pytest.fixture
def verifier(ca: Path) -> Iterator[Verifier]:
    clock = ManualClock(make.NOW)
    keyring = Keyring.load(KeyringOptions(ca=ca, crl=None), clock=clock)
    yield Verifier(keyring, Policy(Naming("org.example", "dev")), clock=clock)
