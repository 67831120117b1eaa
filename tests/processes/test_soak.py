"""The soak of `make soak`, for less than a minute: faults of all kinds at random, and the ledger decides."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.processes.soak import Options, run

SECONDS = float(os.environ.get("FEDBUS_SOAK_SECONDS", "40"))
SEED = int(os.environ.get("FEDBUS_SOAK_SEED", "0"))


@pytest.mark.fault("F1")
@pytest.mark.fault("F2")
@pytest.mark.fault("F5")
@pytest.mark.fault("F7")
@pytest.mark.fault("F26")
@pytest.mark.timeout(SECONDS + 1800)
def test_what_was_acknowledged_arrives_once_and_in_order_whatever_befalls_whom(tmp_path: Path) -> None:
    report = run(Options(seconds=SECONDS, seed=SEED, longest=SECONDS / 8, every=1.0, folder=tmp_path))
    print(json.dumps(report, indent=1))
    assert report["acknowledged"] > 10 * SECONDS
    assert report["kills"]
    assert (report["lost"], report["wrong"], report["missing"]) == (0, 0, {})
