"""The history in SQLite: how many messages a second one process writes, and how soon the last of a topic are found.

`python -m bench.history` builds a store of ten million messages (some minutes, some gigabytes below `.bench`, removed
afterwards unless --keep says otherwise) and asks it; --quick builds a hundred thousand.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from bench.body import event
from bench.harness import WORK, Session
from bench.role import Line, usage

ENDPOINTS, TOPICS = 8, 20
BATCH = 4000  # what the consumer is given at once
PARCEL = 64
START = 1_790_000_000.0  # wall time of the first message; the others follow, so many each second
RATE = 400.0


def measure(session: Session) -> None:
    """Record history/write, what else that store can do, and history/write-1k."""
    for name, kind, count in (
        ("history/write", "usual", session.pick(1_000_000, 100_000)),
        ("history/write-1k", "large", session.pick(200_000, 30_000)),
    ):
        folder = session.folder / f"history-{kind}-{session.round}"
        settings = {"folder": str(folder), "kind": kind, "count": count}
        with session.worker("bench.history", "fill", settings) as each:
            report = each.expect("report", timeout=900.0)
        session.record(name, report["rate"], "msg/s")
        if kind == "usual":
            session.record("history/bytes", report["bytes"], "B/msg")
            with session.worker("bench.history", "ask", settings) as each:
                found = each.expect("report", timeout=300.0)
            session.record("history/last-100", found["last-100"], "ms")
            session.record("history/words", found["words"], "ms")
        shutil.rmtree(folder, ignore_errors=True)


class Source:
    """Signed messages of several endpoints and topics, as a hub would hand them on; nothing of it is timed."""

    def __init__(self, folder: Path) -> None:
        from fedbus.transport.batch import Sealer, Topic
        from fedbus.trust.authority import Authority
        from fedbus.trust.signer import Signer

        authority = Authority.create(folder, common_name="bench")
        self._sealers = []
        for number in range(ENDPOINTS):
            name, epoch = f"koji.build{number:02d}", f"0192f0c0-0000-7000-8000-{number:012d}"
            issued = authority.issue(name)
            sealer = Sealer(
                endpoint=name,
                epoch=epoch,
                head=0,
                heads={},
                signer=Signer.load(name, issued.certificate_path, issued.key_path),
                parcel_bytes=2**18,
                parcel_messages=PARCEL,
            )
            topics = [
                Topic.make(f"org.example.dev.koji.package.event{place}.complete", name, epoch)
                for place in range(TOPICS)
            ]
            self._sealers.append((name, sealer, topics))
        self._sent = 0

    def batch(self, count: int, kind: str) -> list[Any]:
        """Return the next *count* messages of one endpoint, of which each quarter has a topic."""
        from fedbus.model.limits import Limits
        from fedbus.transport.batch import Pending
        from fedbus.wire import parcel as parcels
        from fedbus.wire.envelope import open_parcel

        name, sealer, topics = self._sealers[self._sent // count % ENDPOINTS]
        first = self._sent
        self._sent += count
        pending = []
        for number in range(first, first + count):
            topic = topics[(first // count + 4 * (number - first) // count) % TOPICS]
            body = event(number) if kind == "large" else _usual(number)
            pending.append(Pending(topic, orjson.dumps(body), b""))
        found = []
        for _, _, frame in sealer.seal(pending, START + first / RATE).parcels:
            parcel = parcels.decode(frame, parcel_bytes=len(frame))
            found += open_parcel(parcel, name, Limits(), _refuse)
        return found


def _usual(number: int) -> dict[str, Any]:
    """A body of 360 bytes: the median of the messages that Fedora has recorded, which are one in four below 150."""
    package, owner = f"package-{number % 3000}", f"user{number % 400}"
    return {
        "build": {"id": number, "state": "complete", "arch": ["x86_64", "aarch64"], "draft": False},
        "package": package,
        "owner": owner,
        "nvr": f"{package}-1.{number % 90}-2.fc42",
        "tag": "f42-updates-candidate",
        "url": f"https://builds.example.org/{package}/{number}",
        "host": f"buildvm-{number % 40:02d}.example.org",
        "summary": f"{owner}'s build of {package} is complete after {number % 600} seconds",
    }


def _refuse(error: Exception) -> None:
    raise error


def batches(source: Source, count: int, kind: str) -> Iterator[list[Any]]:
    """Yield *count* messages, as many at a time as the consumer gets."""
    for done in range(0, count, BATCH):
        yield source.batch(min(BATCH, count - done), kind)


def fill(_line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """Write "count" messages into the store in "folder"; the time of making them does not count."""
    from fedbus import Texts, open_history

    folder, count = Path(settings["folder"]), settings["count"]
    source = Source(folder / "keys")
    texts = Texts()
    taken, busy, written, shown = 0, 0, 0, time.monotonic()
    with open_history(str(folder / "store"), writable=True) as store:
        for batch in batches(source, count, settings["kind"]):
            gc.collect(0)
            begin, used = time.perf_counter_ns(), time.process_time_ns()
            written += store.write(batch, texts=texts).new
            taken += time.perf_counter_ns() - begin
            busy += time.process_time_ns() - used
            if settings.get("tell") and time.monotonic() - shown > 15.0:
                shown = time.monotonic()
                print(f"{written:,} written, {written * 1e9 / taken:,.0f} a second", file=sys.stderr, flush=True)
        begin = time.perf_counter_ns()
    taken += time.perf_counter_ns() - begin
    if written != count:
        raise RuntimeError(f"{written} of {count} messages were new")
    size = sum(path.stat().st_size for path in (folder / "store").iterdir())
    return {**usage(), "rate": count * 1e9 / taken, "busy_rate": count * 1e9 / busy, "bytes": size / count}


def ask(_line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """Ask the store: the median of each question, in milliseconds, from its opening to the last message decoded."""
    from fedbus import HistoryQuery, TopicFilter, open_history

    def topic(place: int) -> tuple[TopicFilter, ...]:
        return (TopicFilter(f"org.example.dev.koji.package.event{place}.complete"),)

    questions: dict[str, Callable[[int], HistoryQuery]] = {
        "last-100": lambda turn: HistoryQuery(filters=topic(turn % TOPICS), newest=True, limit=100),
        "last-100-of-all-topics": lambda turn: HistoryQuery(
            filters=(TopicFilter("org.example.dev.koji.package"),), newest=True, limit=100
        ),
        "words": lambda turn: HistoryQuery(packages=(f"package-{turn}",), newest=True, limit=100),
        "text": lambda turn: HistoryQuery(text=f"user{turn} complete", newest=True, limit=100),
    }
    found: dict[str, Any] = {}
    place = str(Path(settings["folder"]) / "store")
    for name, make in questions.items():
        times = []
        for turn in range(40):
            begin = time.perf_counter_ns()
            with open_history(place) as store:
                messages = [stored.message() for stored in store.find(make(turn))]
            times.append((time.perf_counter_ns() - begin) / 1e6)
            if len(messages) < min(100, settings["count"] // 3000 if name == "words" else 100):
                raise RuntimeError(f"{name}: {len(messages)} messages were found")
        found[name] = statistics.median(times)
        found[f"{name}-first"] = times[0]
        found[f"{name}-slowest"] = max(times)
    with open_history(place) as store:
        for name, query in (
            ("count", HistoryQuery(filters=topic(3))),
            (
                "count-a-day",
                HistoryQuery(since_ms=int(START * 1000) + 1_234_567, until_ms=int(START * 1000) + 90_000_000),
            ),
        ):
            begin = time.perf_counter_ns()
            found[f"{name}-result"] = store.count(query)
            found[name] = (time.perf_counter_ns() - begin) / 1e6
        begin = time.perf_counter_ns()
        store.statistics(HistoryQuery())
        found["statistics"] = (time.perf_counter_ns() - begin) / 1e6
    return {**usage(), **found}


def main(arguments: list[str]) -> int:
    """Build a large store and ask it."""
    parser = argparse.ArgumentParser(prog="python -m bench.history", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a hundred thousand messages")
    parser.add_argument("--messages", type=int, default=0, metavar="N", help="so many (default: ten million)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="build it there, and leave it; ask it if it is there")
    options = parser.parse_args(arguments)
    count = options.messages or (100_000 if options.quick else 10_000_000)
    folder = options.keep or WORK / "history"
    WORK.mkdir(exist_ok=True)
    settings = {"folder": str(folder), "kind": "usual", "count": count, "tell": True}
    line: Any = None
    try:
        if not (folder / "store").exists():
            if shutil.disk_usage(WORK).free < 2000 * count:
                print(f"too little room below {WORK}", file=sys.stderr)
                return 1
            folder.mkdir(parents=True)
            report = fill(line, settings)
            print(
                f"written: {report['rate']:,.0f} messages a second, {report['busy_rate']:,.0f} a second of CPU time, "
                f"{report['bytes']:.0f} bytes each"
            )
        for name, value in ask(line, settings).items():
            print(f"{name}: {value:,.2f}" if isinstance(value, float) else f"{name}: {value:,}")
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
