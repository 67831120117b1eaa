"""What encryption costs: ``python -m bench.links`` runs the end-to-end row plain and with CURVE, turn by turn.

Not part of ``make bench``: nothing is compared with a peer here.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
from pathlib import Path

from bench.body import TOPIC
from bench.fedbus import ENDPOINT
from bench.harness import Session
from fedbus.config.init import create

ROUNDS = 5


def measure(session: Session) -> None:
    """Record links/plain and links/curve in messages a second, and the processor time of each."""
    for kind in ("plain", "curve"):
        with session.scratch("bus") as folder:
            create(folder / "fedbus.d", [ENDPOINT], encrypted=kind == "curve")
            settings = {
                "config": str(folder / "fedbus.d"),
                "topics": (TOPIC,),
                "warm": 5_000,
                "count": session.pick(300_000, 100_000),
            }
            outcome = session.pair("bench.fedbus", settings)
        session.record(f"links/{kind}", outcome.rate, "msg/s")
        session.record(f"links/{kind}/cpu", outcome.cpu_us, "us/msg")


def main() -> None:
    """Run all rounds and print the medians of the ratios, encrypted to plain."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        session = Session("--quick" in sys.argv, ROUNDS, Path(folder), stack)
        for session.round in range(ROUNDS):
            measure(session)
    for what in ("", "/cpu"):
        plain, curve = (session.figures[f"links/{kind}{what}"][1] for kind in ("plain", "curve"))
        ratio = statistics.median(curve[one] / plain[one] for one in plain)
        print(f"encrypted to plain{what or '/rate'}: {ratio:.2f}")


if __name__ == "__main__":
    main()
