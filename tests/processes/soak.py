"""The soak: a bus under load whose processes are killed, frozen, starved and cut off at random; the ledger judges.

``python -m tests.processes.soak --seconds 3600`` is what `make soak` runs; ``--kills 1000`` kills so many processes as
fast as they come back. The seed is printed first, and again in the report. doc/testing.rst says how to read that.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.processes.world import STARTING_SECONDS, Worker, World

KOJI, BODHI, GIT, HOOK = "koji.build01", "bodhi.web01", "git.host01", "hook.host01"
SHARES = {KOJI: 0.45, BODHI: 0.25, GIT: 0.2}  # of the messages, from publishers of their own
CLIENTS = {"client-a": 0.05, "client-b": 0.05}  # of the messages, by way of the relay of HOOK
SCRIPTS = 1.0  # messages a second that a `fedbus publish` each hands in
FAR = (KOJI, BODHI)  # read through the proxy
WITNESSES = (GIT, "witness")  # are frozen and starved, and never killed: their memory is watched for the whole time
SETTINGS = """
journal: {segment_bytes: 4MiB, retain_bytes: 0}
subscriber: {commit_interval: 500ms, silence: 2s}
hub: {commit_interval: 500ms}
"""
# what a new life may be armed with: a disk that fails now and then, writes that are cut, death at a bad moment
ARMS = {
    "publisher": (
        "journal.write.torn=error:ENOSPC%0.005",
        "journal.write.torn=short:11%0.02",
        "journal.sync.before=error:EIO%0.005",
        "journal.replace.before=error:EIO@1",
        "journal.write.torn=kill%0.003",
        "journal.sync.after=kill%0.003",
        "journal.recover=kill%0.5",
        "publisher.journaled=kill%0.003",
        "publisher.sent=kill%0.003",
        "replay.answer=kill%0.05",
    ),
    "relay": (
        "relay.journaled=kill%0.02",
        "journal.write.torn=error:ENOSPC%0.01",
        "journal.sync.after=kill%0.01",
        "spool.taken=kill%0.5",
        "spool.remove=kill%0.5",
        "replay.answer=kill%0.05",
    ),
    "client": ("spool.write=error:ENOSPC%0.1", "spool.sync=kill%0.1", "spool.write=kill%0.1"),
    "reader": (
        "cursor.commit.before=error:ENOSPC%0.3",
        "cursor.commit.inside=kill%0.1",
        "cursor.commit.after=kill%0.1",
    ),
}
CLOSING_SECONDS = 600.0  # for all that was acknowledged to arrive, once everything is well again
SAMPLE_SECONDS = 2.0
TELL_SECONDS = 60.0
WARM_PART = 1 / 3  # of a life, in which its queues and caches may still grow to their bounds
JUDGED_SECONDS = 600.0  # a shorter life is only reported: its slope says how full a queue was
# That a life may grow after that, or a tenth of what it has: whenever more readers are frozen or cut off than ever
# before, the queues for them take some MiB, which the allocator keeps.
FLAT_BYTES = 16 * 2**20
FLAT_DESCRIPTORS = 8


@dataclass(frozen=True)
class Options:
    """What is to be run."""

    seconds: float = 3600.0
    rate: float = 2000.0  # messages a second, of all publishers together
    seed: int = 0  # 0: any
    kills: int = 0  # instead of seconds
    longest: float = 60.0  # seconds for which something is frozen, cut off or starved, at most
    every: float = 2.0  # seconds between two faults, on average
    folder: Path | None = None


@dataclass
class Samples:
    """Memory and descriptors of one life."""

    times: list[float] = field(default_factory=list)
    bytes: list[float] = field(default_factory=list)
    descriptors: list[float] = field(default_factory=list)

    def add(self, at: float, size: int, descriptors: int) -> None:
        self.times.append(at)
        self.bytes.append(size)
        self.descriptors.append(descriptors)


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """The least-squares slope of *values* a second."""
    count = len(times)
    if count < 3:
        return 0.0
    middle, mean = sum(times) / count, sum(values) / count
    spread = sum((at - middle) ** 2 for at in times)
    return sum((at - middle) * (value - mean) for at, value in zip(times, values, strict=True)) / spread


class Soak:
    """One run."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.seed = options.seed or random.SystemRandom().randrange(1, 2**31)
        self.chance = random.Random(self.seed)
        self.folder = options.folder or Path(tempfile.mkdtemp(prefix="fedbus-soak-"))
        self.world = World(self.folder, [*SHARES, HOOK], settings=SETTINGS, far=FAR, relayed=[HOOK])
        self.done: Counter[str] = Counter()
        self.busy: set[str] = set()  # workers and links that something is being done to
        self.plans: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.samples: dict[str, Samples] = {}
        self.slopes: list[dict[str, Any]] = []
        self.most_behind = 0
        self.tell_at = time.monotonic() + TELL_SECONDS
        self.roles: dict[str, str] = {}
        rest = self.folder / "rest"
        for endpoint, share in SHARES.items():
            self.world.publisher(endpoint, options.rate * share)
            self.roles[endpoint] = "publisher"
        self.world.relay()
        self.roles["relay"] = "relay"
        for name, share in CLIENTS.items():
            self.world.client(name, HOOK, options.rate * share)
            self.roles[name] = "client"
        self.world.scripts("scripts", HOOK, SCRIPTS)
        self.roles["scripts"] = "client"
        for name, divisor in (("reader", 1), ("marked", 3), ("witness", 1)):
            self.world.subscriber(name, divisor)
            self.roles[name] = "reader"
        self.world.hub()
        self.roles["hub"] = "reader"
        for worker in self.world.workers.values():
            worker.environment = {**worker.environment, "SOAK_REST": str(rest)}
        self.rest = rest

    # --- plans

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        """Have *what* done in so many seconds."""
        heapq.heappush(self.plans, (time.monotonic() + seconds, next(self.numbers), what))

    def until(self, deadline: float) -> None:
        """Do what is planned, and look after everything, until the monotonic time *deadline*."""
        next_look = 0.0
        while (now := time.monotonic()) < deadline:
            while self.plans and self.plans[0][0] <= now:
                heapq.heappop(self.plans)[2]()
                now = time.monotonic()
            if now >= next_look:
                next_look = now + SAMPLE_SECONDS
                self.look()
            at = min(deadline, next_look, self.plans[0][0] if self.plans else deadline)
            select.select([], [], [], max(0.0, min(0.2, at - time.monotonic())))
            self.bury()

    def bury(self) -> None:
        """Start again who has died at a failpoint; nobody else dies."""
        for name, worker in self.world.workers.items():
            if name not in self.busy and worker.process is not None and worker.process.poll() is not None:
                code = worker.process.returncode
                assert worker.excused(code), f"{name} ended by itself with {code}:\n{worker.tail()}"
                how = "died at a failpoint" if code < 0 else "did not start for a failpoint"
                self.done[f"{how}: {self.roles[name]}"] += 1
                self.life_ended(worker)
                worker.start()

    def look(self) -> None:
        """Sample memory, and see that the ledger is content."""
        now = time.monotonic()
        for name, worker in self.world.workers.items():
            found = worker.memory() if worker.process is not None and worker.process.poll() is None else None
            if found is not None:
                self.samples.setdefault(name, Samples()).add(now - worker.born_at, *found)
                with (self.folder / "samples.jsonl").open("a") as file:
                    file.write(json.dumps([round(now, 1), name, worker.life, *found]) + "\n")
        answer = self.world.ledger.ask()
        if now >= self.tell_at:
            self.tell_at = now + TELL_SECONDS
            done = ", ".join(f"{what} {count}" for what, count in sorted(self.done.items()))
            print(f"{answer['acked']} acknowledged, missing {answer['missing']}; {done}", file=sys.stderr, flush=True)
        self.most_behind = max(self.most_behind, *answer["missing"].values(), 0)
        assert not answer["fault_count"], self.world.explain(answer)

    def life_ended(self, worker: Worker) -> None:
        """Judge the memory of a life that was long enough."""
        samples = self.samples.pop(worker.name, None)
        if samples is None or len(samples.times) < 60:
            return
        warm = int(len(samples.times) * WARM_PART)
        times = samples.times[warm:]
        hour = 3600.0
        self.slopes.append(
            {
                "name": worker.name,
                "seconds": round(samples.times[-1]),
                "rss_mib": round(samples.bytes[-1] / 2**20, 1),
                "rss_mib_an_hour": round(slope(times, samples.bytes[warm:]) * hour / 2**20, 2),
                "descriptors": int(samples.descriptors[-1]),
                "descriptors_an_hour": round(slope(times, samples.descriptors[warm:]) * hour, 1),
            }
        )

    # --- faults

    def free(self, *names: str) -> list[str]:
        """Those of *names* to which nothing is being done."""
        return [name for name in names if name not in self.busy]

    def restart(self, worker: Worker) -> None:
        """Begin the next life of a worker that is dead, now and then armed."""
        armed = self.chance.choice(ARMS[self.roles[worker.name]]) if self.chance.random() < 0.3 else ""
        worker.start(f"{armed};seed={self.chance.randrange(2**31)}" if armed else "")
        self.busy.discard(worker.name)

    def kill(self, name: str) -> None:
        """SIGKILL, and back to life after a while."""
        worker = self.world.workers[name]
        self.busy.add(name)
        worker.kill()
        self.done[f"killed: {self.roles[name]}"] += 1
        self.life_ended(worker)
        pause = 0.0 if self.options.kills else self.chance.choice((0.0, 0.2, 3.0))
        self.later(pause, lambda: self.restart(worker))

    def end(self, name: str) -> None:
        """SIGTERM, which has to end it with 0, and back to life."""
        worker = self.world.workers[name]
        self.busy.add(name)
        worker.end()
        self.done[f"ended: {self.roles[name]}"] += 1
        self.life_ended(worker)
        self.restart(worker)

    def freeze(self, name: str, seconds: float) -> None:
        """SIGSTOP for so long."""
        worker = self.world.workers[name]
        self.busy.add(name)
        worker.send(signal.SIGSTOP)
        self.done[f"frozen: {self.roles[name]}"] += 1

        def thaw() -> None:
            worker.send(signal.SIGCONT)
            self.busy.discard(name)

        self.later(seconds, thaw)

    def starve(self, name: str, seconds: float) -> None:
        """Refuse all writes to files for so long."""
        worker = self.world.workers[name]
        self.busy.add(name)
        # what is still starting may say that it cannot, and end, as the service manager of a host expects
        starting = time.monotonic() - worker.born_at < STARTING_SECONDS
        worker.limit_files(True)
        self.done[f"disk full: {self.roles[name]}"] += 1

        def feed() -> None:
            worker.limit_files(False)
            if starting and worker.process is not None and worker.process.poll() == 1:
                self.done[f"did not start on a full disk: {self.roles[name]}"] += 1
                self.samples.pop(worker.name, None)
                self.restart(worker)
            self.busy.discard(name)

        self.later(seconds, feed)

    def cut(self, endpoint: str, mode: str, seconds: float) -> None:
        """Misuse the link to *endpoint*, for so long where that makes sense."""
        link = f"link {endpoint}"
        assert self.world.proxy is not None
        proxy = self.world.proxy
        proxy.set(endpoint, mode)
        self.done[f"link: {mode}"] += 1
        if mode in ("cut", "stall"):
            self.busy.add(link)

            def mend() -> None:
                proxy.set(endpoint, "pass")
                self.busy.discard(link)

            self.later(seconds, mend)

    def fault(self) -> None:
        """Do something at random to somebody to whom nothing is being done."""
        chance, workers = self.chance, self.free(*self.roles)
        seconds = min(self.options.longest, chance.expovariate(5.0 / self.options.longest))
        mortal = [name for name in workers if name not in WITNESSES]
        links = [endpoint for endpoint in FAR if f"link {endpoint}" not in self.busy]
        what = chance.choices(("kill", "end", "freeze", "starve", "link"), (4, 1, 2, 2, 3))[0]
        if what in ("kill", "end") and mortal:
            getattr(self, what)(chance.choice(mortal))
        elif what in ("freeze", "starve") and workers:
            getattr(self, what)(chance.choice(workers), seconds)
        elif what == "link" and links:
            self.cut(chance.choice(links), chance.choice(("cut", "stall", "reset", "garbage")), seconds)

    # --- the run

    def run(self) -> dict[str, Any]:
        """Run, and return the report; AssertionError when something is wrong."""
        began = time.monotonic()
        print(f"seed {self.seed}, in {self.folder}", flush=True)
        for worker in self.world.workers.values():
            worker.start()
        self.world.wait_for(
            lambda now: len(now["streams"]) == len(SHARES) + 1 and len(now["consumers"]) == 4, "all have begun"
        )
        if self.options.kills:
            self.run_kills()
        else:
            self.run_faults()
        self.recover()
        answer = self.finish()
        if self.options.folder is None:
            shutil.rmtree(self.folder, ignore_errors=True)
        return self.report(answer, time.monotonic() - began)

    def run_faults(self) -> None:
        """One fault of each kind for the longest time, one after the other; then any, until the time is over."""
        options = self.options
        deadline = time.monotonic() + options.seconds
        if options.seconds >= 20 * options.longest:
            longest = options.longest
            for one in (
                lambda: self.freeze(KOJI, longest),
                lambda: self.freeze("reader", longest),
                lambda: self.cut(KOJI, "cut", longest),
                lambda: self.starve(KOJI, longest),
            ):
                one()
                self.until(time.monotonic() + longest + 5.0)
        # on a slow machine there are few faults in that time, and one of them has to be a kill
        while time.monotonic() < deadline or not self.kills:
            self.fault()
            pause = time.monotonic() + self.chance.expovariate(1.0 / options.every)
            self.until(min(deadline, pause) if self.kills else pause)

    def run_kills(self) -> None:
        """Kill each worker again and again, after a random part of its life; starting it takes most of that."""
        mortal = list(self.roles)
        due = {name: time.monotonic() + self.chance.uniform(0.0, 4.0) for name in mortal}
        while sum(count for what, count in self.done.items() if what.startswith("killed")) < self.options.kills:
            name = min(due, key=lambda one: due[one])
            self.until(due[name])
            if name not in self.busy:
                self.kill(name)
            # from before it has read its configuration to well into its work
            due[name] = time.monotonic() + self.chance.choice(
                (self.chance.uniform(0.0, 1.0), self.chance.uniform(1.0, 10.0))
            )
            if self.chance.random() < 0.05:
                self.cut(self.chance.choice(FAR), "reset", 0.0)

    def recover(self) -> None:
        """Let all that was begun come to its end, at once."""
        while self.plans:
            heapq.heappop(self.plans)[2]()
        self.bury()

    def finish(self) -> dict[str, Any]:
        """Have publishers rest and everything arrive; then end all processes, and return the ledger's judgement."""
        self.rest.touch()
        deadline = time.monotonic() + CLOSING_SECONDS
        before = -1
        while True:
            self.until(time.monotonic() + 0.5)
            answer = self.world.ledger.ask()
            seen = answer["acked"] + sum(one["got"] for one in answer["consumers"].values())
            if not answer["missing"] and seen == before:
                break
            before = seen
            assert time.monotonic() < deadline, f"acknowledged and not delivered: {self.world.explain(answer)}"
        for worker in self.world.workers.values():
            worker.end()
            self.life_ended(worker)
        answer = self.world.ledger.ask()
        assert not answer["fault_count"], self.world.explain(answer)
        assert not answer["missing"], self.world.explain(answer)
        for one in self.slopes:
            hours = (1 - WARM_PART) * one["seconds"] / 3600.0
            if one["seconds"] >= JUDGED_SECONDS:
                allowed = max(FLAT_BYTES / 2**20, one["rss_mib"] / 10)
                assert one["rss_mib_an_hour"] * hours <= allowed, f"memory grows: {one}"
                assert one["descriptors_an_hour"] * hours <= FLAT_DESCRIPTORS, f"descriptors grow: {one}"
        return answer

    def report(self, answer: dict[str, Any], seconds: float) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "seconds": round(seconds, 1),
            "rate": self.options.rate,
            "acknowledged": answer["acked"],
            "spooled": answer["spooled"],
            "refused": answer["refused"],
            "unknown": answer["maybe"],
            "kills": self.kills,
            "faults_done": dict(sorted(self.done.items())),
            "consumers": {
                name: {what: one[what] for what in ("lives", "got", "repeats")}
                for name, one in answer["consumers"].items()
            },
            "most_behind": self.most_behind,
            "lost": answer["lost"],
            "missing": answer["missing"],
            "wrong": answer["fault_count"],
            "memory": self.slopes,
        }

    @property
    def kills(self) -> int:
        """How many processes were killed, or died at a failpoint."""
        return sum(count for what, count in self.done.items() if what.startswith(("killed", "died")))

    def close(self) -> None:
        """End all processes, whatever has happened."""
        self.world.close()


def run(options: Options) -> dict[str, Any]:
    """Run a soak and return its report.

    Raises:
        AssertionError: Something was lost, repeated or reordered, a process ended by itself, or memory grows.
    """
    soak = Soak(options)
    try:
        return soak.run()
    except BaseException:
        print(f"failed with seed {soak.seed}; see {soak.folder}", file=sys.stderr, flush=True)
        raise
    finally:
        soak.close()


def main() -> None:
    """Run what the command line says, and print the report as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--rate", type=float, default=2000.0, help="messages a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=0, help="kill so many processes instead")
    parser.add_argument("--folder", type=Path, help="kept; otherwise a temporary one, kept only after a failure")
    given = parser.parse_args()
    longest = min(60.0, given.seconds / 8)
    if given.folder is not None:
        given.folder.mkdir(parents=True)
    try:
        report = run(
            Options(
                seconds=given.seconds,
                rate=given.rate,
                seed=given.seed,
                kills=given.kills,
                longest=longest,
                folder=given.folder,
            )
        )
    except AssertionError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
