"""kill -9 at every failpoint there is, while messages flow; the ledger decides what became of them.

The bus of this module lives on from test to test: whoever is killed finds what its earlier lives have left.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedbus.failpoints import POINTS
from tests.processes.world import World

KOJI = "koji.build01"
FRESH = "bodhi.web01"  # has no journal yet
LAZY = "git.host01"  # syncs its journal now and then, and keeps little
RATE = 500.0  # messages a second, with which consumers keep up on a slow machine too
SETTINGS = """
journal: {segment_bytes: 24KiB}
subscriber: {commit_interval: 50ms, silence: 50s}
hub: {commit_interval: 50ms}
"""
JOURNALS = {LAZY: "{sync: interval, sync_interval: 20ms, retain_bytes: 256KiB}"}
# who comes by a point: by its name, or by the first word of it
ROLES = {
    "journal.create": [FRESH],
    "journal.rewrite": [LAZY],
    "journal.retain.before": [LAZY],
    "journal.retain.after": [LAZY],
    "journal": [KOJI],
    "publisher": [KOJI],
    "replay": [KOJI],
    "cursor": ["reader", "hub"],
    "hub": ["hub"],
}
# which time it is killed there; else the second
TIMES = {
    "journal.create": [1],
    "journal.write.torn": [1, 40],
    "journal.sync.after": [1, 50],
    "journal.recover": [1],
    "journal.rewrite": [1],
    "publisher.journaled": [1, 20],
    "replay.request": [1],
    "replay.answer": [1],
    "replay.end": [1],
}
# those with a process of their own are killed by the tests of that process
ELSEWHERE = ("relay.", "spool.", "dead.", "history.", "irc.")
# what has to have happened in the life before, or to happen in the same one
BEFORE = {"journal.recover": "journal.write.torn=kill@5"}
BESIDE = {"journal.rewrite": "journal.sync.before=error:EIO@5"}
CASES = [
    pytest.param(point, role, time, id=f"{point}-{role}-{time}")
    for point in POINTS
    if not point.startswith(ELSEWHERE)
    for role in ROLES.get(point) or ROLES[point.split(".", 1)[0]]
    for time in TIMES.get(point, [2])
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("failpoints"), [KOJI, FRESH, LAZY], settings=SETTINGS, journals=JOURNALS)
    try:
        for endpoint in (KOJI, FRESH, LAZY):
            world.publisher(endpoint, RATE)
        os.write(world.ledger.fd, f"lossy {LAZY}\n".encode())
        world.workers[KOJI].start()
        world.subscriber("reader").start()
        world.hub().start()
        yield world
    finally:
        world.close()


@pytest.mark.fault("F1")
@pytest.mark.fault("F2")
@pytest.mark.fault("F3")
@pytest.mark.parametrize(("point", "role", "time"), CASES)
def test_whoever_is_killed_wherever_all_that_was_acknowledged_arrives_once_and_in_order(
    world: World, point: str, role: str, time: int
) -> None:
    worker = world.workers[role]
    if worker.process is not None:
        worker.kill()
    if point in BEFORE:
        worker.start(BEFORE[point])
        world.wait_for_death(worker)
    worker.start(";".join(filter(None, [f"{point}=kill@{time}", BESIDE.get(point, "")])))
    if point.startswith("replay."):
        # somebody has to ask
        world.workers["reader"].kill()
        world.workers["reader"].start()
    world.wait_for_death(worker)
    worker.start()
    world.wait_until_passed_on(role if role in (FRESH, LAZY) else KOJI)
    if role in (FRESH, LAZY):
        worker.kill()
        worker.process = None


@pytest.mark.parametrize("point", [point for point in POINTS if point.startswith(ELSEWHERE)])
def test_the_other_failpoints_are_killed_at_by_other_tests(point: str) -> None:
    texts = [path.read_text("utf-8") for path in Path(__file__).parents[1].glob("*/test_*.py")]
    assert any(f"{point}=kill" in text for text in texts)
