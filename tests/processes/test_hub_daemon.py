"""The real daemon: killed, told to end, told to read its configuration again."""

from __future__ import annotations

import json
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedbus import Bus, Publisher
from fedbus.config.init import free_ports
from tests.conftest import Running
from tests.support import wait_until

KOJI, BODHI = "koji.build01", "bodhi.web01"
ROOT = Path(__file__).resolve().parents[2]

# appends to a file what it gets, so that what was done before a kill stays known
RECORD = """
import os, time, fedbus

class Record(fedbus.Consumer):
    topics = ("#",)
    def start(self):
        self.file = open({path!r}, "a", buffering=1)
        print("started", flush=True)
    def consume(self, message):
        {before}
        self.file.write(f"{{message.endpoint}} {{message.sequence}} {{message.body['i']}}\\n")
    def stop(self):
        print("stopped", flush=True)
"""

MANY = """
import os, fedbus

class Many(fedbus.Consumer):
    topics = ("#",)
    since = "beginning"
    def start(self):
        self.file = open({path!r}, "a", buffering=1)
    def note(self, messages):
        # PERHAPS
        # in one write, so that lines of several workers do not mix
        os.write(self.file.fileno(), b"".join(b"%s %d %d\\n" % (m.endpoint.encode(), m.sequence, m.body["i"])
                                             for m in messages))

class Single(Many):
    def consume(self, message):
        self.note([message])

class Batched(Many):
    def consume_batch(self, messages):
        self.note(messages)
"""


@pytest.fixture
def koji(bus_folder: Path) -> Iterator[Publisher]:
    with Bus.open(bus_folder) as bus, bus.publisher(KOJI) as publisher:
        yield publisher


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    def write(before: str = "pass", name: str = "record") -> tuple[Path, Path]:
        file, out = tmp_path / f"{name}.py", tmp_path / f"{name}.txt"
        file.write_text(RECORD.format(path=str(out), before=before))
        return file, out

    return write


def publish(publisher: Publisher, first: int, last: int) -> None:
    for number in range(first, last + 1):
        publisher.enqueue("package.build.start", {"i": number})
    publisher.flush()


def numbers(out: Path, endpoint: str = KOJI) -> list[int]:
    if not out.exists():
        return []
    rows = [line.split() for line in out.read_text().split("\n")[:-1]]
    return [int(row[2]) for row in rows if row[0] == endpoint]


@pytest.mark.fault("F1")
def test_a_hub_killed_again_and_again_redelivers_what_was_not_committed_and_loses_nothing(
    bus_folder, spawn, koji, record
):
    file, out = record()
    sent = 0
    for _ in range(4):
        hub: Running = spawn("hub", "--consumer", file, config=bus_folder)
        hub.wait_for("ready")
        done = len(set(numbers(out)))
        for _ in range(20):
            publish(koji, sent + 1, sent + 100)
            sent += 100
        wait_until(lambda done=done: len(set(numbers(out))) > done + 300)
        hub.send(signal.SIGKILL)
        hub.wait()
    publish(koji, sent + 1, sent + 10)
    sent += 10
    hub = spawn("hub", "--consumer", file, config=bus_folder)
    wait_until(lambda: len(set(numbers(out))) == sent, 120, "every message")
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0
    got = numbers(out)
    assert sorted(set(got)) == list(range(1, sent + 1))
    # within one life of the hub the order holds; a new life begins somewhere before
    back = [place for place in range(1, len(got)) if got[place] != got[place - 1] + 1]
    assert len(back) <= 4
    assert all(got[place] <= got[place - 1] for place in back)


@pytest.mark.fault("F1")
@pytest.mark.fault("F8")
@pytest.mark.parametrize("options", ["workers: 4, ordered_by: none", "batch: {messages: 30, seconds: 10ms}"])
def test_several_workers_and_batches_lose_nothing_when_the_hub_is_killed_again_and_again(
    bus_folder, spawn, koji, tmp_path, options
):
    folder, out = bus_folder / "consumers", tmp_path / "out.txt"
    folder.mkdir(mode=0o700)
    (folder / "many.py").write_text(MANY.format(path=str(out)))
    (folder / "many.py").chmod(0o600)
    use = "many.py:Batched" if "batch" in options else "many.py:Single"
    (bus_folder / "50-hub.yaml").write_text(
        f"hub: {{folder: consumers, commit_interval: 50ms}}\nconsumers: {{many: {{use: '{use}', {options}}}}}\n"
    )
    (bus_folder / "50-hub.yaml").chmod(0o600)
    sent = 0
    for _ in range(4):
        hub: Running = spawn("hub", config=bus_folder)
        done = len(set(numbers(out)))
        publish(koji, sent + 1, sent + 1000)
        sent += 1000
        wait_until(lambda done=done: len(set(numbers(out))) > done + 300, 60)
        hub.send(signal.SIGKILL)
        hub.wait()
    hub = spawn("hub", config=bus_folder)
    hub.wait_for("ready")
    wait_until(lambda: len(set(numbers(out))) == sent, 120, "every message")
    with Bus.open(bus_folder) as bus:
        wait_until(lambda: (place := bus.cursors.load("hub.many").get(KOJI)) and place.sequence == sent)
        assert bus.dead.list() == []
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0
    assert set(numbers(out)) == set(range(1, sent + 1))


@pytest.mark.fault("F8")
def test_a_batch_that_takes_the_hub_down_with_it_is_given_one_by_one_and_only_the_bad_message_dies(
    bus_folder, spawn, koji, tmp_path
):
    folder, out = bus_folder / "consumers", tmp_path / "out.txt"
    folder.mkdir(mode=0o700)
    source = MANY.format(path=str(out)).replace(
        "# PERHAPS", "any(m.body['i'] == 7 for m in messages) and os.kill(os.getpid(), 9)"
    )
    (folder / "many.py").write_text(source)
    (folder / "many.py").chmod(0o600)
    (bus_folder / "50-hub.yaml").write_text(
        "hub: {folder: consumers}\nconsumers:\n"
        "  many: {use: 'many.py:Batched', attempts: 2, batch: {messages: 20, seconds: 5s}}\n"
    )
    (bus_folder / "50-hub.yaml").chmod(0o600)
    publish(koji, 1, 20)
    for _ in range(3):  # with all twenty, then twice with the bad one alone
        hub: Running = spawn("hub", config=bus_folder)
        assert hub.wait() == -signal.SIGKILL
    hub = spawn("hub", config=bus_folder)
    hub.wait_for("ready")
    wait_until(lambda: set(numbers(out)) == set(range(1, 21)) - {7}, 60, "the messages beside it")
    with Bus.open(bus_folder) as bus:
        (letter,) = wait_until(bus.dead.list)
        assert (letter.key.sequence, letter.attempts) == (7, 2)
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0


@pytest.mark.fault("F8")
def test_a_message_that_takes_the_hub_down_with_it_does_so_a_known_number_of_times(bus_folder, spawn, koji, record):
    file, out = record(before="message.body['i'] == 3 and os.kill(os.getpid(), 9)")
    file.write_text(file.read_text().replace('topics = ("#",)', 'topics = ("#",)\n    since = "beginning"'))
    publish(koji, 1, 5)
    for _ in range(4):
        hub: Running = spawn("hub", "--consumer", file, config=bus_folder)
        assert hub.wait() == -signal.SIGKILL
    hub = spawn("hub", "--consumer", file, config=bus_folder)
    wait_until(lambda: set(numbers(out)) == {1, 2, 4, 5}, 60, "the messages behind it")
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0
    with Bus.open(bus_folder) as bus:
        (letter,) = bus.dead.list()
        assert (letter.consumer, letter.key.sequence, letter.attempts) == ("record", 3, 4)
        assert "while the consumer had it" in letter.reason


@pytest.mark.fault("F8")
def test_the_first_message_of_a_journal_made_anew_takes_the_hub_down_a_known_number_of_times_too(
    bus_folder, spawn, tmp_path
):
    """The cursor still stands in the old one then, and does not say that the message is done."""
    folder, out = bus_folder / "consumers", tmp_path / "out.txt"
    folder.mkdir(mode=0o700)
    source = MANY.format(path=str(out)).replace("# PERHAPS", "messages[0].body['i'] == 7 and os.kill(os.getpid(), 9)")
    (folder / "many.py").write_text(source)
    (folder / "many.py").chmod(0o600)
    (bus_folder / "50-hub.yaml").write_text(
        "hub: {folder: consumers}\nconsumers: {many: {use: 'many.py:Single', attempts: 2}}\n"
    )
    (bus_folder / "50-hub.yaml").chmod(0o600)
    with Bus.open(bus_folder) as bus, bus.publisher(KOJI) as old:
        publish(old, 1, 2)
        hub: Running = spawn("hub", config=bus_folder)
        wait_until(lambda: numbers(out) == [1, 2], 60, "what is in the old journal")
        hub.send(signal.SIGTERM)
        assert hub.wait() == 0
    (bus_folder / "state/journal" / KOJI).rename(tmp_path / "away")
    with Bus.open(bus_folder) as bus, bus.publisher(KOJI) as new:
        publish(new, 7, 8)
        for _ in range(2):
            hub = spawn("hub", config=bus_folder)
            assert hub.wait() == -signal.SIGKILL
        hub = spawn("hub", config=bus_folder)
        wait_until(lambda: numbers(out) == [1, 2, 8], 60, "the message behind it")
        (letter,) = bus.dead.list()
        assert (letter.consumer, letter.key.sequence, letter.attempts) == ("many", 1, 2)
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0


@pytest.mark.fault("F20")
def test_a_hub_whose_intake_hangs_ends_at_the_deadline_and_goes_on_where_it_was(
    bus_folder, spawn, koji, record, tmp_path
):
    (bus_folder / "50-hub.yaml").write_text("hub: {drain_timeout: 500ms}\n")
    (bus_folder / "50-hub.yaml").chmod(0o600)
    file, out = record()
    until = tmp_path / "go-on"
    armed = {"FEDBUS_FAILPOINTS": f"hub.intake=stall:{until}@2"}
    hub: Running = spawn("hub", "--consumer", file, config=bus_folder, environment=armed)
    hub.wait_for("ready")
    publish(koji, 1, 1)
    wait_until(lambda: numbers(out) == [1], 60, "the first message")
    publish(koji, 2, 2)
    wait_until(lambda: until.with_name(until.name + ".reached").exists(), 60, "the intake to hang")
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0
    assert "the intake has not ended within 0.5 s" in hub.err
    with Bus.open(bus_folder) as bus:
        assert bus.cursors.load("hub.record")[KOJI].sequence == 1
    hub = spawn("hub", "--consumer", file, config=bus_folder)
    wait_until(lambda: numbers(out) == [1, 2], 60, "the second message")
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0


@pytest.mark.fault("F8")
@pytest.mark.parametrize(
    ("armed", "first", "second"),
    [("dead.tried=kill", 1, 3), ("dead.buried.inside=kill", 4, 1), ("dead.buried.after=kill", 4, 0)],
)
def test_a_kill_on_the_way_to_a_dead_letter_leaves_one_letter_and_repeats_at_most_one_call(
    bus_folder, spawn, koji, record, armed, first, second
):
    file, _ = record(before="print('called', flush=True) or 1 / 0")
    file.write_text(file.read_text().replace('topics = ("#",)', 'topics = ("#",)\n    since = "beginning"'))
    (bus_folder / "50-hub.yaml").write_text("hub: {retry_pause: 10ms}\n")
    (bus_folder / "50-hub.yaml").chmod(0o600)
    publish(koji, 1, 1)
    hub: Running = spawn("hub", "--consumer", file, config=bus_folder, environment={"FEDBUS_FAILPOINTS": armed})
    assert hub.wait() == -signal.SIGKILL
    assert hub.out.count("called") == first
    hub = spawn("hub", "--consumer", file, config=bus_folder)
    with Bus.open(bus_folder) as bus:
        wait_until(lambda: bus.cursors.load("hub.record").get(KOJI), what="the cursor behind it")
        assert len(bus.dead.list()) == 1
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0
    assert hub.out.count("called") == second


@pytest.mark.fault("F20")
def test_term_in_a_burst_lets_the_message_in_hand_finish_and_ends_with_0(bus_folder, spawn, koji, record, tmp_path):
    file, out = record(before="time.sleep(0.05)")
    hub: Running = spawn("hub", "--consumer", file, config=bus_folder)
    hub.wait_for("ready")
    publish(koji, 1, 2000)
    wait_until(lambda: numbers(out))
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0
    assert "has not finished" not in hub.err, "drain_timeout was over"
    got = numbers(out)
    assert got == list(range(1, len(got) + 1))
    assert len(got) < 2000
    assert "stopped" in hub.out
    assert "Traceback" not in hub.err
    with Bus.open(bus_folder) as bus:
        assert bus.cursors.load("hub.record")[KOJI].sequence == len(got)
    hub = spawn("hub", "--consumer", file, config=bus_folder)
    wait_until(lambda: len(numbers(out)) > len(got))
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0
    got = numbers(out)
    assert got == list(range(1, len(got) + 1)), "nothing twice after a clean stop"


@pytest.mark.fault("F20")
def test_a_consumer_that_hangs_is_left_behind_at_the_deadline(bus_folder, spawn, koji, record):
    (bus_folder / "50-hub.yaml").write_text("hub: {drain_timeout: 500ms}\n")
    (bus_folder / "50-hub.yaml").chmod(0o600)
    hanging, _ = record(before="print('hanging', flush=True); time.sleep(3600)", name="hanging")
    well, out = record(name="well")
    hanging.write_text(hanging.read_text().replace("class Record", "class Hanging"))
    hub: Running = spawn("hub", "--consumer", hanging, "--consumer", well, config=bus_folder)
    hub.wait_for("ready")
    publish(koji, 1, 100)
    hub.wait_for("hanging")
    wait_until(lambda: len(numbers(out)) == 100)
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0
    assert "consumer hanging has not finished koji.build01/" in hub.err
    with Bus.open(bus_folder) as bus:
        assert bus.cursors.load("hub.record")[KOJI].sequence == 100
        place = bus.cursors.load("hub.hanging").get(KOJI)
        assert place is None or place.sequence == 0


@pytest.mark.fault("F20")
def test_a_second_term_ends_it_at_once(bus_folder, spawn, koji, record):
    (bus_folder / "50-hub.yaml").write_text("hub: {drain_timeout: 1h}\n")
    (bus_folder / "50-hub.yaml").chmod(0o600)
    file, _ = record(before="print('hanging', flush=True); time.sleep(3600)")
    hub: Running = spawn("hub", "--consumer", file, config=bus_folder)
    hub.wait_for("ready")
    publish(koji, 1, 1)
    hub.wait_for("hanging")
    hub.send(signal.SIGTERM)

    # signals within a second of the first count as the same wish
    def again() -> bool:
        if hub.code is None:
            hub.send(signal.SIGTERM)
        return hub.code is not None

    wait_until(again, what="the end of the hub")
    assert hub.code == 128 + signal.SIGTERM
    assert "Traceback" not in hub.err


@pytest.mark.fault("F20")
def test_a_storm_of_hup_and_closed_standard_streams_do_not_stop_it(bus_folder, spawn, koji, record):
    file, out = record()
    file.write_text(file.read_text().replace('print("started", flush=True)', "pass"))
    hub: Running = spawn("hub", "--consumer", file, config=bus_folder)
    hub.wait_for("ready")
    for number in range(1, 101):
        publish(koji, number, number)
        hub.send(signal.SIGHUP)
    wait_until(lambda: len(numbers(out)) == 100)
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0
    assert numbers(out) == list(range(1, 101))
    assert "Traceback" not in hub.err


@pytest.mark.fault("F20")
def test_it_goes_on_when_nobody_reads_its_log_any_more(bus_folder, spawn, koji, record, tmp_path):
    file, out = record()
    file.write_text(file.read_text().replace('topics = ("#",)', 'topics = ("#",)\n    since = "beginning"'))
    ended = tmp_path / "reader-ended"
    program = f"'{sys.executable}' -m fedbus.cli hub --consumer '{file}'"
    reader = f"head -n 1 >/dev/null; touch '{ended}'"
    hub: Running = spawn("-c", f"exec {program} <&- 2> >({reader})", command=("bash",), config=bus_folder)
    wait_until(ended.exists, 60)  # it has said that it is ready, and whoever reads has gone
    for number in range(1, 11):
        (bus_folder / "90-wrong.yaml").write_text(f"wrong{number}: 1\n")
        (bus_folder / "90-wrong.yaml").chmod(0o600)
        hub.send(signal.SIGHUP)
        (koji.enqueue("package.build.start", {"i": number}), koji.flush())
    wait_until(lambda: numbers(out) == list(range(1, 11)))
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0


@pytest.mark.fault("F20")
def test_it_runs_with_standard_streams_closed(bus_folder, spawn, koji, record):
    file, out = record()
    # nobody can be told when it is ready
    file.write_text(file.read_text().replace('topics = ("#",)', 'topics = ("#",)\n    since = "beginning"'))
    hub: Running = spawn(
        "-c",
        f"exec '{sys.executable}' -m fedbus.cli hub --consumer '{file}' <&- >&- 2>&-",
        command=("sh",),
        config=bus_folder,
    )
    wait_until(out.exists)
    publish(koji, 1, 5)
    wait_until(lambda: numbers(out) == [1, 2, 3, 4, 5])
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0


@pytest.mark.fault("F11")
@pytest.mark.parametrize("how", ["SIGHUP", "by itself"])
def test_a_changed_list_of_endpoints_is_taken_up_and_a_bad_one_refused_as_a_whole(bus_folder, spawn, koji, record, how):
    endpoints = bus_folder / "20-endpoints.yaml"
    whole = endpoints.read_text()
    without_bodhi = whole.replace(whole[whole.index("  bodhi.web01") : whole.index("  git.host01")], "")
    assert "bodhi" not in without_bodhi
    endpoints.write_text(without_bodhi)
    file, out = record()
    port = free_ports(1)[0]
    hub: Running = spawn("hub", "--consumer", file, "--http", f"127.0.0.1:{port}", config=bus_folder)
    hub.wait_for("ready")

    def change(text: str) -> None:
        replacement = endpoints.with_suffix(".new")
        replacement.write_text(text)
        replacement.chmod(0o600)
        replacement.replace(endpoints)
        if how == "SIGHUP":
            hub.send(signal.SIGHUP)

    publish(koji, 1, 3)
    wait_until(lambda: numbers(out) == [1, 2, 3])
    change(whole + "  bad.host: {publish: 'tcp://127.0.0.1:1', replay: nonsense, unknown: 1}\n")
    hub.wait_for("the old one stays in force")
    assert "unknown key 'endpoints.bad.host.unknown'" in hub.err
    wait_until(lambda: any("configuration refused" in one for one in ready(port)), what="/ready to say so")
    publish(koji, 4, 5)
    wait_until(lambda: numbers(out) == [1, 2, 3, 4, 5])
    change(whole)
    hub.wait_for("endpoints: added bodhi.web01")
    with Bus.open(bus_folder) as bus, bus.publisher(BODHI) as bodhi:
        for number in range(1, 4):
            bodhi.publish("update.create", {"i": number})
        wait_until(lambda: numbers(out, BODHI) == [1, 2, 3])
        wait_until(lambda: ready(port) == [], what="readiness")
    publish(koji, 6, 6)
    wait_until(lambda: numbers(out) == [1, 2, 3, 4, 5, 6])
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0


def ready(port: int) -> list[str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=60) as answer:
            content = json.load(answer)
    except urllib.error.HTTPError as error:
        content = json.load(error)
    except (urllib.error.URLError, OSError):
        return ["no answer"]
    return list(content["reasons"])


@pytest.mark.badinput("B48")
def test_consumers_that_cannot_be_loaded_leave_a_hub_that_runs_and_says_why(bus_folder, spawn, koji, record, tmp_path):
    folder = bus_folder / "consumers"
    folder.mkdir(mode=0o700)
    (folder / "broken.py").write_text("import nothing_of_that_name\n")
    (folder / "broken.py").chmod(0o600)
    (tmp_path / "outside.py").write_text("raise SystemExit('loaded')\n")
    (folder / "linked.py").symlink_to(tmp_path / "outside.py")
    (bus_folder / "50-hub.yaml").write_text(
        "hub: {folder: consumers}\nconsumers:\n"
        "  broken: {use: broken.py}\n"
        "  outside: {use: ../../outside.py}\n"
        "  linked: {use: linked.py}\n"
        "  record: {use: broken.py}\n"
        "  apart: {use: broken.py, isolation: process}\n"
    )
    (bus_folder / "50-hub.yaml").chmod(0o600)
    file, out = record()
    port = free_ports(1)[0]
    hub: Running = spawn("hub", "--consumer", file, "--http", f"127.0.0.1:{port}", config=bus_folder)
    hub.wait_for("ready")
    publish(koji, 1, 3)
    wait_until(lambda: numbers(out) == [1, 2, 3])
    broken, outside, linked, twice, apart = wait_until(lambda: [one for one in ready(port) if "not loaded" in one])
    assert "50-hub.yaml:3: consumer 'broken'" in broken and "ModuleNotFoundError" in broken
    assert "50-hub.yaml:4: consumer 'outside'" in outside and "is outside" in outside
    assert "50-hub.yaml:5: consumer 'linked'" in linked and "is outside" in linked
    assert "50-hub.yaml:6: consumer 'record' is also in a file" in twice
    assert "50-hub.yaml:7: consumer 'apart'" in apart and "ModuleNotFoundError" in apart
    assert hub.err.count("consumer not loaded") == 5
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0


def test_consumers_of_the_configuration_run_with_their_settings_and_halt_gives_the_exit_code(bus_folder, spawn, koji):
    folder = bus_folder / "consumers"
    folder.mkdir(mode=0o700)
    (folder / "stopper.py").write_text(
        "import fedbus\n"
        "class Stopper(fedbus.Consumer):\n"
        "    def __init__(self, code): self.code = code\n"
        "    def consume(self, message): raise fedbus.Halt(exit_code=self.code)\n"
    )
    (folder / "stopper.py").chmod(0o600)
    (bus_folder / "50-hub.yaml").write_text(
        "hub: {folder: consumers}\nconsumers:\n"
        "  stopper: {use: 'stopper:Stopper', topics: [koji.package], settings: {code: 42}}\n"
    )
    (bus_folder / "50-hub.yaml").chmod(0o600)
    hub: Running = spawn("hub", config=bus_folder)
    hub.wait_for("ready")
    publish(koji, 1, 1)
    assert hub.wait() == 42
    assert "halts the hub with exit code 42" in hub.err


def test_the_example_of_the_documentation_announces_builds(bus_folder, spawn, koji):
    hub: Running = spawn("hub", "--consumer", ROOT / "doc/examples/announce.py", config=bus_folder)
    hub.wait_for("ready consumers=announce-builds")
    koji.publish("package.build.complete", {"package": "bash"})
    koji.publish("package.build.complete", {})
    hub.wait_for("'bash' is built")
    hub.wait_for("it names no package")
    hub.send(signal.SIGINT)
    assert hub.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--consumer", "nowhere.py"], 3, "cannot read nowhere.py"),
        ([], 3, "there is no consumer to run"),
        (["--only", "irc"], 3, "there is no such consumer"),
        (["--since", "yesterdayish"], 2, "is not a place to begin"),
        (["--http", "here"], 2, "write HOST:PORT"),
        (["--seconds", "-1"], 2, "is not in the range"),
    ],
)
def test_what_cannot_run_ends_with_its_exit_code_and_says_why(fedbus, arguments, code, said):
    done = fedbus("hub", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_of_one_consumer_that_cannot_be_loaded_ends_with_the_exit_code_of_the_configuration(bus_folder, fedbus):
    (bus_folder / "50-hub.yaml").write_text(
        "consumers:\n  irc: {use: 'fedbus_consumers.irc', settings: {networks: 7}}\n"
    )
    (bus_folder / "50-hub.yaml").chmod(0o600)
    done = fedbus("hub", "--only", "irc", "--seconds", "0")
    assert (done.returncode, done.stdout) == (3, "")
    assert "--only: nothing that it names can be loaded: " in done.stderr
    assert "50-hub.yaml:2: consumers.irc.settings.networks: 7 is not of type 'object'" in done.stderr


def test_a_taken_port_is_an_error_of_connection(fedbus):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = fedbus("hub", "--consumer", ROOT / "doc/examples/announce.py", "--http", address)
    assert done.returncode == 5
    assert f"cannot bind {address}" in done.stderr


def test_it_stops_by_itself_after_so_many_seconds(fedbus):
    done = fedbus("hub", "--consumer", ROOT / "doc/examples/announce.py", "--seconds", "2.5", "--log-format", "json")
    assert done.returncode == 0
    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in told)
    (ready_line,) = [line for line in told if line.get("event") == "ready"]
    assert ready_line["message"].startswith("ready consumers=announce-builds endpoints=3")
    assert ready_line["consumers"] == ["announce-builds"]
    assert ready_line["endpoints"] == 3
