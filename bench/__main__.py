"""`python -m bench [--quick] [--only NAME…]`: measures, prints a table, writes bench/results.json."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bench.harness import WORK, BenchError, Session, Skip, context
from bench.rows import Goal, make_rows, table

RESULTS = Path(__file__).resolve().parent / "results.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A module with measure(session), and the rows that come from it (or what their names begin with)."""

    module: str
    rows: tuple[str, ...]
    quick_runs: int = 2

    def chosen(self, only: Sequence[str]) -> bool:
        """Whether any of the names (of rows, or their beginnings) in *only* is of this job; an empty one is all."""
        return not only or any(row.startswith(name) or name.startswith(row + "/") for row in self.rows for name in only)


# Neighbours are compared with each other, so the yardstick stands between what is divided by it.
JOBS = (
    Job(module="bench.fedmsg", rows=("peer/fedmsg", "peer/fedmsg-as-shipped", "peer/fedmsg-hub", "cpu/fedmsg")),
    Job(module="bench.fedmsg_check", rows=("check/fedbus", "check/fedmsg"), quick_runs=1),
    Job(module="bench.rabbitmq", rows=("peer/rabbitmq", "cpu/rabbitmq"), quick_runs=1),
    Job(module="bench.nats_jetstream", rows=("peer/nats-jetstream", "cpu/nats-jetstream")),
    Job(module="bench.fedbus", rows=("e2e/fedbus", "e2e/fedbus-8-topics", "memory", "cpu/fedbus")),
    Job(module="bench.consumers", rows=("hub", "cpu/hub-one", "cpu/hub-ten"), quick_runs=1),
    Job(module="bench.raw", rows=("e2e/raw", "cpu/raw")),
    Job(module="bench.replay", rows=("replay",)),
    Job(module="bench.relay", rows=("relay",), quick_runs=1),
    Job(module="bench.history", rows=("history",), quick_runs=1),
    Job(module="bench.disk", rows=("disk",), quick_runs=1),
    Job(module="bench.latency", rows=("latency",), quick_runs=1),
    Job(module="bench.scale", rows=("scale",), quick_runs=1),
)

LOADS = ("5k", "10k", "20k")
GOALS = (
    Goal(name="e2e/fedbus", ratio_to="e2e/raw", at_least=0.8),
    Goal(name="e2e/fedbus", ratio_to="peer/nats-jetstream", at_least=3.0),
    Goal(name="e2e/fedbus", ratio_to="peer/rabbitmq", at_least=10.0),
    Goal(name="e2e/fedbus", ratio_to="peer/fedmsg", at_least=15.0),
    Goal(name="e2e/fedbus-8-topics", ratio_to="e2e/raw"),
    Goal(name="check/fedbus", ratio_to="check/fedmsg", at_least=4.0),
    Goal(name="peer/nats-jetstream", ratio_to="e2e/raw"),
    Goal(name="peer/rabbitmq", ratio_to="e2e/raw"),
    Goal(name="peer/fedmsg", ratio_to="e2e/raw"),
    Goal(name="peer/fedmsg-as-shipped", ratio_to="e2e/raw"),
    Goal(name="hub/one", ratio_to="e2e/fedbus"),
    Goal(name="hub/one", ratio_to="peer/fedmsg-hub", at_least=40.0),
    Goal(name="hub/ten", ratio_to="hub/one"),
    Goal(name="peer/fedmsg-hub", ratio_to="e2e/raw"),
    Goal(name="hub/good-beside-bad/p99", ratio_to="hub/good/p99", at_most=2.0),
    Goal(name="replay/fedbus", ratio_to="e2e/raw", at_least=1.2),
    Goal(name="replay/fedbus/growth", at_most=16.0),
    Goal(name="relay/publish", ratio_to="relay/direct-publish"),
    Goal(name="relay/process", at_most=150.0),
    Goal(name="relay/process", ratio_to="relay/direct-process"),
    Goal(name="history/write", at_least=30_000.0),
    Goal(name="history/last-100", at_most=20.0),
    Goal(name="latency/fedbus/p50", ratio_to="latency/raw/p50", at_most=3.0),
    Goal(name="latency/fedbus/p99", ratio_to="latency/raw/p99", at_most=4.0),
    Goal(name="latency/fedbus-synced/p50", ratio_to="latency/raw+fdatasync/p50", at_most=1.7),
    Goal(name="latency/fedbus-synced/p50", ratio_to="latency/raw/p50"),
    Goal(name="latency/fedbus-synced/p99", ratio_to="latency/raw/p99"),
    *(
        Goal(name=f"latency/{subject}/{load}/{share}", at_most=limit)
        for subject in ("fedbus", "fedbus-synced")
        for load in LOADS
        for share, limit in (("p50", 1000.0), ("p99", 4000.0))
    ),
    Goal(name="scale/endpoints-500/memory", at_most=150.0),
    Goal(name="scale/endpoints-500/cpu", at_most=5.0),
)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two minutes: few runs, few messages")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="rows, or how their names begin: e2e latency/raw scale"
    )
    parser.add_argument("--runs", type=int, default=0, metavar="N", help="rounds (default: 5, quick 2)")
    parser.add_argument("--no-install", action="store_true", help="skip a missing broker even where root could install")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="default: bench/results.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run the chosen jobs round by round; 0 when every one of them gave its figures."""
    options = parse(arguments)
    jobs = [job for job in JOBS if job.chosen(options.only)]
    if not jobs:
        names = ", ".join(row for job in JOBS for row in job.rows)
        print(f"no row begins with any of {options.only}; there are: {names}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))
    WORK.mkdir(exist_ok=True)
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"run-{os.getpid()}-", dir=WORK))
    started = time.monotonic()
    failed: dict[str, str] = {}
    try:
        with contextlib.ExitStack() as stack:
            session = Session(
                quick=options.quick,
                runs=options.runs or (2 if options.quick else 5),
                folder=folder,
                stack=stack,
                install=not options.no_install,
            )
            facts = context()
            for number in range(session.runs):
                session.round = number
                for job in jobs:
                    name = job.rows[0]
                    if name in session.skipped or name in failed:
                        continue
                    if options.quick and not options.runs and number >= job.quick_runs:
                        continue
                    elapsed = time.monotonic() - started
                    session.say(f"[{elapsed:4.0f} s] round {number + 1} of {session.runs}: {name}")
                    try:
                        importlib.import_module(job.module).measure(session)
                    except Skip as skip:
                        session.skipped[name] = str(skip)
                        session.say(f"    SKIPPED: {skip}")
                    except (BenchError, ImportError) as error:
                        failed[name] = str(error)
                        session.say(f"    FAILED: {error}")
    except KeyboardInterrupt:
        print("stopped; nothing written", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)

    rows = make_rows(session.figures, GOALS)
    options.results.write_text(json.dumps([row.as_json() for row in rows], indent=1) + "\n")
    facts["took"] = f"{time.monotonic() - started:.0f} s, {session.runs} rounds{', quick' if session.quick else ''}"
    print("\n".join(f"{name}: {value}" for name, value in {**facts, **session.notes}.items()))
    print()
    print(table(rows, session.skipped))
    for name, reason in failed.items():
        print(f"FAILED {name}: {reason}")
    return 1 if failed else 0


def _sweep() -> None:
    """Remove the folders of runs whose process was killed."""
    for left in WORK.glob("run-*"):
        pid = left.name.split("-")[1]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(left, ignore_errors=True)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
