"""`fedbus relay` and those who hand in, as processes: many at once, killed, told to end, and without a relay."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedbus.bus import Bus
from fedbus.config.init import free_ports
from fedbus.journal import spool
from tests.conftest import COMMAND, Running
from tests.support import wait_until

HOOK = "git.host01"
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0
# Two hundred processes that start beside each other take each other's time, and the relay's.
CROWDED = 600.0


@pytest.fixture
def relayed(bus_folder: Path) -> Path:
    """A configuration folder in which git.host01 is an endpoint of the relay."""
    endpoints = bus_folder / "20-endpoints.yaml"
    text = endpoints.read_text()
    endpoints.write_text(text.replace(f"  {HOOK}:\n", f"  {HOOK}:\n    relay: true\n"))
    return bus_folder


@pytest.fixture
def relay(relayed: Path, spawn: Callable[..., Running]) -> Callable[..., Running]:
    """Start the relay: `relay(*arguments, failpoints="…")`; it is ready on return."""

    def start(*arguments: str, failpoints: str = "", ready: bool = True) -> Running:
        environment = {"FEDBUS_FAILPOINTS": failpoints} if failpoints else None
        running = spawn("relay", *arguments, config=relayed, environment=environment)
        if ready:
            running.wait_for("ready ", CROWDED)
        return running

    return start


def stored(folder: Path) -> list[dict[str, Any]]:
    """What the journal holds, verified."""
    found = []
    with Bus.open(folder) as bus, bus.subscribe(since="beginning", endpoints=[HOOK]) as subscriber:
        while True:
            messages = subscriber.receive(0.05)
            found += [
                {"sequence": one.sequence, "submission": one.attributes.get("submission"), **one.body}
                for one in messages
            ]
            if not messages and subscriber.caught_up:
                return found


def waiting(folder: Path) -> int:
    return sum(one.size for one in spool.list_waiting(folder / "state" / "spool" / HOOK))


class Crowd:
    """Many `fedbus publish` at once, and what each of them said."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, count: int) -> None:
        """Start *count* of them at once, after a first one that has left the compiled modules for all."""
        environment = {
            **os.environ,
            "FEDBUS_CONFIG": str(self._folder),
            "PYTHONPATH": str(ROOT),
            "PYTHONPYCACHEPREFIX": str(self._folder.parent / "compiled"),
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self._start(1, environment)
        wait_until(lambda: self.ended() == 1, PATIENCE, "the end of the first")
        self._start(count - 1, environment)

    def _start(self, count: int, environment: dict[str, str]) -> None:
        first = len(self._processes)
        for number in range(first, first + count):
            body = json.dumps({"n": number})
            command = [*COMMAND, "publish", "ref.change", body, "--as", HOOK, "--json", "--quiet"]
            command += ["--timeout", str(CROWDED)]  # until then the relay is waited for, if there is one
            self._processes[number] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
            )

    def ended(self) -> int:
        return sum(process.poll() is not None for process in self._processes.values())

    def receipts(self) -> dict[int, dict[str, Any]]:
        """Wait for all; each must have got a receipt."""
        found = {}
        for number, process in self._processes.items():
            out, err = process.communicate(timeout=CROWDED)
            assert process.returncode == 0, err.decode()
            found[number] = json.loads(out)
        return found

    def kill(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


@pytest.fixture
def crowd(relayed: Path):
    one = Crowd(relayed)
    yield one
    one.kill()


def check(receipts: dict[int, dict[str, Any]], messages: list[dict[str, Any]]) -> None:
    """Every receipt's message is there, once, with the submission that its publisher was told, and nothing else is."""
    assert Counter(one["n"] for one in messages) == Counter(receipts.keys())
    assert [one["sequence"] for one in messages] == list(range(1, len(messages) + 1))
    for one in messages:
        receipt = receipts[one["n"]]
        assert one["submission"] == receipt["submission"]
        assert receipt.get("spooled") or receipt["sequence"] == one["sequence"]


# --- many at once --------------------------------------------------------------------------------------------------


def test_two_hundred_publishers_at_once_lose_and_repeat_nothing(relayed, relay, crowd) -> None:
    relay()
    crowd.start(200)
    receipts = crowd.receipts()
    assert not any(one.get("spooled") for one in receipts.values())
    check(receipts, stored(relayed))


@pytest.mark.timeout(3 * CROWDED)
@pytest.mark.fault("F2")
def test_two_hundred_publishers_at_once_and_a_relay_that_is_killed_again_and_again(relayed, relay, crowd) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    running = relay()
    crowd.start(200)
    while (done := crowd.ended()) < 180:
        goal = min(180, done + chance.randrange(5, 40))
        wait_until(lambda goal=goal: crowd.ended() >= goal, CROWDED, f"the end of {goal}")
        running.send(signal.SIGKILL)
        running.wait()
        running = relay(ready=chance.random() < 0.5)
    receipts = crowd.receipts()
    running.wait_for("ready ", PATIENCE)
    wait_until(lambda: not waiting(relayed), PATIENCE)
    check(receipts, stored(relayed))


def test_without_a_relay_all_are_spooled_and_the_next_one_publishes_them_once(relayed, relay, crowd) -> None:
    crowd.start(60)
    receipts = crowd.receipts()
    assert all(one["spooled"] for one in receipts.values())
    assert set(receipts[0]) == {"topic", "endpoint", "submission", "time", "spooled"}
    relay()
    wait_until(lambda: not waiting(relayed), PATIENCE)
    check(receipts, stored(relayed))


# --- killed at the wrong moment ------------------------------------------------------------------------------------

# prints "N SPOOLED" for each receipt that it was given; rests after so many, until there is a file
SAY = textwrap.dedent("""
    import os, sys, time
    import fedbus

    config, count = sys.argv[1:3]
    rest, go_on = sys.argv[3:] or ("-1", "")
    with fedbus.Bus.open(config) as bus, bus.publisher("git.host01") as hook:
        for n in range(int(count)):
            while n == int(rest) and not os.path.exists(go_on):
                time.sleep(0.01)
            receipt = hook.publish("ref.change", {"n": n})
            os.write(1, f"{n} {int(receipt.spooled)}\\n".encode())
""")


@pytest.mark.fault("F2")
@pytest.mark.fault("F3")
@pytest.mark.parametrize(
    "failpoint",
    [
        "relay.journaled=kill@3",
        "publisher.journaled=kill@3",
        "publisher.sent=kill@3",
        "journal.write.torn=kill@3",
        "spool.taken=kill",
        "spool.remove=kill",
        "publisher.journaled=kill@2",
    ],
)
def test_a_relay_killed_wherever_publishes_each_message_once_and_in_order(
    relayed, relay, spawn, failpoint: str
) -> None:
    from_spool = failpoint.startswith("spool.") or failpoint.endswith("@2")

    def publish(count: int) -> None:
        publisher = spawn("-c", SAY, relayed, str(count), command=(sys.executable,))
        assert publisher.wait(PATIENCE) == 0, publisher.err

    if from_spool:
        (relayed / "40-publisher.yaml").write_text("publisher: {batch_messages: 7}\n")
        (relayed / "40-publisher.yaml").chmod(0o600)
        publish(30)
    running = relay(failpoints=failpoint, ready=False)
    if not from_spool:
        running.wait_for("ready ")
        publish(30)
    assert running.wait(PATIENCE) == -signal.SIGKILL
    relay()
    wait_until(lambda: not waiting(relayed), PATIENCE)
    assert [one["n"] for one in stored(relayed)] == list(range(30))


@pytest.mark.fault("F3")
@pytest.mark.parametrize("failpoint", ["spool.write=kill", "spool.sync=kill", "spool.sync=kill@2"])
def test_a_publisher_killed_as_it_spools_leaves_a_spool_that_others_go_on_with(
    relayed, relay, fedbus, failpoint: str
) -> None:
    def publish(number: int, failpoints: str = "") -> int:
        environment = {"FEDBUS_FAILPOINTS": failpoints} if failpoints else None
        lines = "\n".join(json.dumps({"n": number + step / 10}) for step in range(2))
        done = fedbus("publish", "ref.change", "--lines", "--as", HOOK, stdin=lines, environment=environment)
        return done.returncode

    assert publish(1) == 0
    assert publish(2, failpoint) == -signal.SIGKILL
    assert publish(3) == 0
    relay()
    wait_until(lambda: not waiting(relayed), PATIENCE)
    found = [one["n"] for one in stored(relayed)]
    # what nobody got a receipt for may be there or not
    assert [one for one in found if not 2 <= one < 3] == [1, 1.1, 3, 3.1]
    assert found == sorted(set(found))


@pytest.mark.fault("F5")
def test_a_disk_that_refuses_the_spool_or_the_journal_is_an_error_with_code_1(relayed, relay, fedbus) -> None:
    def publish(environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return fedbus("publish", "ref.change", "{}", "--as", HOOK, environment=environment)

    for failpoint in ("spool.write=error:ENOSPC", "spool.sync=error:EIO"):
        done = publish({"FEDBUS_FAILPOINTS": failpoint})
        assert done.returncode == 1
        assert "no relay answers" in done.stderr and "nothing was kept" in done.stderr
        assert "Traceback" not in done.stderr
    assert not waiting(relayed)
    relay(failpoints="journal.write.before=error:ENOSPC@1")
    done = publish()
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert publish().returncode == 0
    assert len(stored(relayed)) == 1


# --- the daemon ----------------------------------------------------------------------------------------------------


@pytest.mark.fault("F20")
def test_term_in_a_burst_answers_for_what_was_taken_and_ends_with_0(relayed, relay, spawn, tmp_path) -> None:
    running = relay()
    # the last ones come when the relay has ended, however quick the others were
    go_on = tmp_path / "go-on"
    publisher = spawn("-c", SAY, relayed, "400", "390", go_on, command=(sys.executable,))
    publisher.wait_for("100 0")
    for _ in range(20):
        running.send(signal.SIGTERM)
    assert running.wait(PATIENCE) == 0
    assert "Traceback" not in running.err
    go_on.touch()
    assert publisher.wait(PATIENCE) == 0, publisher.err
    said = [line.split() for line in publisher.out.splitlines()]
    assert [int(number) for number, _ in said] == list(range(400))
    spooled = sum(int(one) for _, one in said)
    assert 0 < spooled < 400
    assert not (relayed / "state" / "relay.sock").exists()
    assert len(stored(relayed)) >= 400 - spooled
    relay()
    wait_until(lambda: not waiting(relayed), PATIENCE)
    assert [one["n"] for one in stored(relayed)] == list(range(400))


@pytest.mark.fault("F20")
def test_a_second_term_ends_it_at_once(relayed, relay, fedbus, tmp_path) -> None:
    (relayed / "40-relay.yaml").write_text("relay: {drain_timeout: 1h}\n")
    (relayed / "40-relay.yaml").chmod(0o600)
    go_on = tmp_path / "go-on"
    running = relay(failpoints=f"journal.write.before=stall:{go_on}@2")
    publish = ("publish", "ref.change", "{}", "--as", HOOK)
    assert fedbus(*publish).returncode == 0
    done = fedbus(*publish, "--json", "--timeout", "1")
    assert json.loads(done.stdout)["spooled"] is True
    assert "spooled" in done.stderr
    running.send(signal.SIGTERM)

    # signals within a second of the first count as the same wish
    def again() -> bool:
        if running.code is None:
            running.send(signal.SIGTERM)
        return running.code is not None

    wait_until(again, PATIENCE, "the end of the relay")
    assert running.code == 128 + signal.SIGTERM
    assert "Traceback" not in running.err
    relay()
    wait_until(lambda: not waiting(relayed), PATIENCE)
    assert len(stored(relayed)) == 2


@pytest.mark.fault("F20")
def test_a_storm_of_hup_and_closed_standard_streams_do_not_stop_it(relayed, spawn) -> None:
    running = spawn(
        "-c",
        f"exec '{sys.executable}' -m fedbus.cli relay <&- >&- 2>&-",
        command=("sh",),
        config=relayed,
    )
    wait_until((relayed / "state" / "relay.sock").exists, PATIENCE)
    publisher = spawn("-c", SAY, relayed, "200", command=(sys.executable,))
    while publisher.code is None:
        running.send(signal.SIGHUP)
        seen = len(publisher.out)
        wait_until(lambda seen=seen: len(publisher.out) > seen or publisher.code is not None, PATIENCE)
    assert publisher.wait(PATIENCE) == 0, publisher.err
    assert all(line.endswith(" 0") for line in publisher.out.splitlines())
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    assert [one["n"] for one in stored(relayed)] == list(range(200))


def pages(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.fault("F11")
def test_endpoints_and_rules_are_taken_up_while_it_runs_and_a_bad_configuration_is_refused(
    relayed, relay, fedbus
) -> None:
    port = free_ports(1)[0]
    running = relay("--http", f"127.0.0.1:{port}")
    assert pages(port, "/live")[0] == 200
    wait_until(lambda: json.loads(pages(port, "/ready")[1]) == {"ready": True, "reasons": []}, PATIENCE, "readiness")
    endpoints = relayed / "20-endpoints.yaml"
    whole = endpoints.read_text()

    def change(text: str) -> None:
        fresh = endpoints.with_suffix(".new")
        fresh.write_text(text)
        fresh.chmod(0o600)
        fresh.replace(endpoints)
        running.send(signal.SIGHUP)

    change(whole + "  bad.host: {publish: nonsense}\n")
    running.wait_for("the old one stays in force")
    wait_until(lambda: pages(port, "/ready")[0] == 503, PATIENCE)
    assert "configuration refused" in pages(port, "/ready")[1]
    change("# a line more\n" + whole.replace("  bodhi.web01:\n", "  bodhi.web01:\n    relay: true\n"))
    running.wait_for("endpoints added: 1, removed: 0, moved: 0")
    running.wait_for("endpoint bodhi.web01 is open")
    for name in ("bodhi.web01", HOOK):
        done = fedbus("publish", "ref.change", "{}", "--as", name, "--json", "--timeout", "60")
        assert "spooled" not in json.loads(done.stdout), done
    assert pages(port, "/metrics")[0] == 200
    for line in (
        'fedbus_relay_accepted_total{endpoint="bodhi.web01"} 1',
        f'fedbus_relay_accepted_total{{endpoint="{HOOK}"}} 1',
        f'fedbus_relay_endpoint_up{{endpoint="{HOOK}"}} 1',
        "fedbus_relay_ready 1",
        f'fedbus_publisher_published_total{{endpoint="{HOOK}"}} 1',
    ):
        wait_until(lambda line=line: line in pages(port, "/metrics")[1].splitlines(), PATIENCE, line)
    change(whole)
    running.wait_for("endpoints added: 0, removed: 1, moved: 0")
    with Bus.open(relayed) as bus, bus.publisher("bodhi.web01") as bodhi:
        assert bodhi.publish("ref.change", {}).sequence == 2
    running.send(signal.SIGTERM)
    assert running.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 3, "no endpoint is marked `relay: true`"),
        (("--endpoint", "koji.nobody"), 3, "there is no endpoint"),
        (("--http", "here"), 2, "write HOST:PORT"),
    ],
)
def test_what_cannot_run_ends_with_its_exit_code_and_says_why(fedbus, arguments, code, said) -> None:
    done = fedbus("relay", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_relay_and_an_endpoint_that_is_held_are_errors_of_connection(relayed, relay, fedbus) -> None:
    running = relay()
    done = fedbus("relay")
    assert done.returncode == 5
    assert "another relay has it" in done.stderr
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    with Bus.open(relayed) as bus, bus.publisher(HOOK, direct=True):
        done = fedbus("relay")
    assert done.returncode == 5
    assert "is open in process" in done.stderr


@pytest.mark.badinput("B47")
def test_settings_of_the_relay_that_do_not_fit_are_all_told_with_their_lines(relayed, fedbus) -> None:
    (relayed / "40-relay.yaml").write_text(
        "relay:\n  mode: '777'\n  socket: " + "x" * 200 + "\n  allow:\n    - endpoints: ['Koji*']\n      users: [git]\n"
        "    - users: [1.5]\n  window: 0\n"
    )
    (relayed / "40-relay.yaml").chmod(0o600)
    done = fedbus("relay")
    assert done.returncode == 3
    for line, text in (
        (2, "relay.mode"),
        (3, "relay.socket"),
        (5, "is no endpoint's name"),
        (7, "users"),
        (8, "window"),
    ):
        assert any(f"40-relay.yaml:{line}: " in one and text in one for one in done.stderr.splitlines()), text


# --- publishing through it -----------------------------------------------------------------------------------------


def test_publish_says_the_same_through_the_relay_as_without_it(relayed, relay, fedbus) -> None:
    relay()
    done = fedbus("publish", "ref.change", '{"n": 1}', "--as", HOOK, "--json", "--dataschema", "x")
    receipt = json.loads(done.stdout)
    assert set(receipt) == {"topic", "endpoint", "epoch", "sequence", "id", "time", "submission"}
    assert (done.returncode, done.stderr) == (0, "")
    assert fedbus("publish", "ref.change", "-", "--as", HOOK, stdin='{"n": 2}\n').stdout.startswith(f"{HOOK}#2 ")
    lines = '{"n": 3}\n{"n": NaN}\n\n{"n": 4}\n'
    done = fedbus("publish", "ref.change", "--lines", "--json", "--as", HOOK, stdin=lines)
    assert done.returncode == 1
    assert [json.loads(line)["sequence"] for line in done.stdout.splitlines()] == [3, 4]
    assert done.stderr.startswith("line 2: ")
    for arguments, code in (
        (("Bad.Topic", "{}"), 2),
        (("ref.change", '{"a": 1, "a": 2}'), 2),
        (("ref.change", "[]"), 2),
        (("ref.change", "-"), 1),
        (("org.example.dev.bodhi.update.create", "{}"), 4),
    ):
        done = fedbus("publish", *arguments, "--as", HOOK, stdin="{bad}")
        assert done.returncode == code, done.stderr
        assert done.stdout == "" and done.stderr and "Traceback" not in done.stderr
    assert [one["n"] for one in stored(relayed)] == [1, 2, 3, 4]


def test_the_endpoint_is_found_without_its_key_where_the_relay_of_this_host_has_it(relayed, relay, fedbus) -> None:
    relay()
    for path in (relayed / "keys").glob("*.key"):
        path.unlink()
    assert json.loads(fedbus("publish", "ref.change", "{}", "--json").stdout)["endpoint"] == HOOK


@pytest.mark.fault("F20")
def test_sigterm_settles_what_was_read_and_ends_with_143(relayed, relay, spawn) -> None:
    relay()
    publish = spawn(
        *("publish", "ref.change", "--lines", "--json", "--as", HOOK), config=relayed, stdin=subprocess.PIPE
    )
    publish.process.stdin.write(b'{"n": 1}\n')
    publish.process.stdin.flush()
    publish.wait_for('"sequence":1')
    for _ in range(20):
        publish.send(signal.SIGTERM)
    assert publish.wait() == 143
    assert publish.err == ""
    assert [one["n"] for one in stored(relayed)] == [1]


# a web server: loads its application once, then forks workers that each publish when they are asked
WEB = textwrap.dedent("""
    import os, signal, sys
    import fedbus

    config, workers, each = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    bus = fedbus.Bus.open(config)
    hook = bus.publisher("git.host01")
    hook.publish("ref.change", {"worker": -1, "n": 0})
    children = []
    for worker in range(workers):
        child = os.fork()
        if child == 0:
            for n in range(each):
                if n % 3:
                    hook.enqueue("ref.change", {"worker": worker, "n": n})
                else:
                    hook.publish("ref.change", {"worker": worker, "n": n})
            sys.exit(0)  # its exit handlers bring in what is on the way
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    hook.publish("ref.change", {"worker": -1, "n": 1})
    bus.close()
    sys.exit(max(codes))
""")


@pytest.mark.parametrize("killed", [False, True], ids=["a relay that stays", "a relay that is killed"])
def test_the_workers_of_a_web_server_publish_as_one_endpoint(relayed, relay, spawn, killed: bool) -> None:
    running = relay()
    server = spawn("-c", WEB, relayed, "6", "100", command=(sys.executable,))

    def journal_bytes() -> int:
        return sum(path.stat().st_size for path in (relayed / "state" / "journal" / HOOK).glob("*.journal"))

    if killed:
        for _ in range(3):
            size = journal_bytes()
            wait_until(lambda size=size: journal_bytes() > size + 10_000 or server.code is not None, PATIENCE)
            running.send(signal.SIGKILL)
            running.wait()
            running = relay()
    assert server.wait(PATIENCE) == 0, server.err
    assert server.err == ""
    wait_until(lambda: not waiting(relayed), PATIENCE)
    found = stored(relayed)
    assert len(found) == 602
    for worker in range(6):
        assert [one["n"] for one in found if one["worker"] == worker] == list(range(100))
