"""Batches that come twice: copies are dropped, clones are told, and nobody else can make one look like the other."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from fedbus.clock import ManualClock
from fedbus.errors import Reason, TrustError
from fedbus.model.limits import Limits
from fedbus.model.topic import Naming
from fedbus.transport.reader import Ready, StreamReader
from fedbus.transport.state import Since
from fedbus.trust.keyring import Keyring, KeyringOptions
from fedbus.trust.policy import Policy
from fedbus.trust.verifier import Verifier
from fedbus.wire import parcel
from fedbus.wire.replay import End, Start
from tests.vectors import make


@pytest.fixture
def reader(tmp_path: Path) -> StreamReader:
    """A reader of koji.build01 that has joined at the beginning and got one batch, of sequence 1."""
    path = tmp_path / "ca.crt"
    path.write_bytes((make.HERE / "ca.crt").read_bytes())
    path.chmod(0o644)
    clock = ManualClock(make.NOW)
    ready: deque[Ready] = deque()
    found = StreamReader(
        make.KOJI.name,
        prefix="",
        chosen=lambda topic: True,
        since=Since(),
        verifier=Verifier(
            Keyring.load(KeyringOptions(ca=path, crl=None), clock=clock),
            Policy(Naming("org.example", "dev")),
            clock=clock,
        ),
        limits=Limits(),
        pending_bytes=2**20,
        parcel_bytes=2**20,
        ready=ready,
    )
    found.on_start(Start(make.EPOCH, 0), local=True)
    found.on_end(End(0, True))
    found.on_live(decoded(make.single(make.KOJI, sequence=1)), 0.0)
    assert found.accounted == 1
    return found


def decoded(frame: bytes) -> parcel.Parcel:
    return parcel.decode(frame, parcel_bytes=2**20)


def test_a_copy_is_dropped_quietly(reader: StreamReader) -> None:
    reader.on_live(decoded(make.single(make.KOJI, sequence=1)), 0.0)
    assert reader.stats.duplicates == 1
    assert not reader.quarantined


@pytest.mark.badinput("B29")
def test_a_copy_with_the_other_valid_form_of_its_signature_is_no_clone(reader: StreamReader) -> None:
    frame = make.single(make.KOJI, sequence=1)
    r, s = decode_dss_signature(decoded(frame).signature)
    reader.on_live(decoded(make.resign(frame, encode_dss_signature(r, make.P256_ORDER - s))), 0.0)
    assert reader.stats.duplicates == 1
    assert not reader.quarantined


@pytest.mark.badinput("B30")
def test_another_batch_under_the_same_sequence_is_a_clone(reader: StreamReader) -> None:
    with pytest.raises(TrustError) as caught:
        reader.on_live(decoded(make.single(make.KOJI, data=b'{"package":"zsh"}', sequence=1)), 0.0)
    assert caught.value.reason is Reason.CONFLICT
    assert reader.quarantined
