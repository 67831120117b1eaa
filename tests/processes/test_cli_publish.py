"""`fedbus publish`, run as scripts and hooks run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from fedbus.bus import Bus
from tests.processes import own_ports

KOJI = ("--as", "koji.build01", "--wait", "0")
ROOT = "org.example.dev.koji."


def stored(folder: Path, *filters: str) -> list[tuple[str, dict[str, object]]]:
    """What the journals hold, verified: short topics and bodies."""
    found = []
    with Bus.open(folder) as bus, bus.subscribe(*filters, since="beginning") as subscriber:
        while True:
            messages = subscriber.receive(0.05)
            found += [(message.topic.removeprefix(ROOT), message.body) for message in messages]
            if not messages and subscriber.caught_up:
                return found


def test_what_init_makes_is_published_to_and_tailed_with_an_equal_body_and_a_verified_signer(tmp_path, fedbus, spawn):
    folder = tmp_path / "fresh"
    assert spawn("init", folder, "--endpoint", "koji.build01", command=own_ports.command(1)).wait() == 0
    body = {"package": "bash", "n": [1, 2.5, None, True, {"ü": "漢\x1b"}], "big": 2**63 - 1}
    sent = fedbus("publish", "package.build.complete", json.dumps(body), "--json", config=folder)
    assert (sent.returncode, sent.stderr) == (0, "")
    receipt = json.loads(sent.stdout)
    assert set(receipt) == {"topic", "endpoint", "epoch", "sequence", "id", "time"}
    got = fedbus("tail", "--since", "beginning", "--count", "1", "--timeout", "60", "--json", config=folder)
    assert (got.returncode, got.stderr) == (0, "")
    shown = json.loads(got.stdout)
    assert shown["body"] == body
    assert shown["signer"] == shown["endpoint"] == "koji.build01"
    assert shown["wire"] == "native"
    assert {key: shown[key] for key in receipt} == receipt


def test_a_running_tail_shows_what_is_published_while_it_runs(bus_folder, fedbus, spawn):
    tail = spawn("tail", "-v", "--json", "--count", "1", "koji", config=bus_folder)
    tail.wait_for("reading ")
    assert fedbus("publish", "build.start", '{"a": 1}', "--as", "koji.build01").returncode == 0
    assert tail.wait() == 0
    assert tail.records()[0]["body"] == {"a": 1}


def test_lines_are_published_in_order_and_bad_ones_are_named_and_left_out(bus_folder, fedbus):
    lines = [
        '{"n": 1}',
        '{"n": 2, "n": 3}',
        "",
        '{"n": NaN}',
        "[1]",
        '{"n": 6}',
        '{"n": "\\ud800"}',
        "\x1b[2J",
        '{"n": 9}',
    ]
    done = fedbus("publish", "build.start", "--lines", "--json", *KOJI, stdin="\n".join(lines))
    assert done.returncode == 1
    assert [json.loads(line)["sequence"] for line in done.stdout.splitlines()] == [1, 2, 3]
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [f"line {n}" for n in (2, 4, 5, 7, 8)]
    assert "\x1b" not in done.stderr
    assert stored(bus_folder) == [("build.start", {"n": n}) for n in (1, 6, 9)]


def test_many_lines_get_receipts_in_order(bus_folder, fedbus):
    done = fedbus("publish", "build.start", "--lines", "--json", *KOJI, stdin='{"a": "b"}\n' * 5000)
    assert done.returncode == 0
    assert [json.loads(line)["sequence"] for line in done.stdout.splitlines()] == list(range(1, 5001))


def test_lines_with_a_topic_name_it_short_or_in_full(bus_folder, fedbus):
    lines = [
        {"topic": "build.start", "body": {"n": 1}},
        {"topic": "org.example.dev.koji.build.complete", "body": {"n": 2}},
        {"topic": "org.example.dev.bodhi.update.create", "body": {"n": 3}},
        {"topic": "build.start", "body": {}, "more": 1},
        {"topic": "build.start", "body": []},
        {"body": {}},
        {"topic": "Build", "body": {}},
        {"topic": "tag.add", "body": {"n": 8}},
    ]
    done = fedbus("publish", "--with-topic", *KOJI, stdin="\n".join(map(json.dumps, lines)))
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [f"line {n}" for n in (3, 4, 5, 6, 7)]
    assert stored(bus_folder) == [("build.start", {"n": 1}), ("build.complete", {"n": 2}), ("tag.add", {"n": 8})]


def test_a_topic_of_another_service_is_published_where_a_rule_grants_it(bus_folder, fedbus):
    rule = 'policy:\n  - signer: koji.build01\n    topics: ["bodhi.update.#"]\n'
    (bus_folder / "40-rule.yaml").write_text(rule)
    granted = "org.example.dev.bodhi.update.create"
    dry = fedbus("publish", granted, "{}", "--dry-run", *KOJI)
    assert (dry.returncode, dry.stdout) == (0, f"koji.build01 would publish {granted}\n")
    assert json.loads(fedbus("publish", granted, '{"n": 1}', "--json", *KOJI).stdout)["topic"] == granted
    topics = [granted, "org.example.dev.bodhi.tag.add", "org.example.dev.koji.build.start"]
    lines = "\n".join(json.dumps({"topic": topic, "body": {"n": 2}}) for topic in topics)
    done = fedbus("publish", "--lines", "--with-topic", *KOJI, stdin=lines)
    assert (done.returncode, done.stderr.split(":")[0]) == (1, "line 2")
    assert stored(bus_folder) == [(granted, {"n": 1}), (granted, {"n": 2}), ("build.start", {"n": 2})]


def test_a_topic_in_capitals_is_an_error_of_usage_that_names_the_form_that_was_meant(fedbus):
    done = fedbus("publish", "Foo.bar", "{}", *KOJI)
    assert done.returncode == 2
    assert "did you mean 'foo.bar'?" in done.stderr


def test_receipts_come_while_stdin_stays_open(bus_folder, spawn):
    publish = spawn("publish", "a.b", "--lines", "--json", *KOJI, config=bus_folder, stdin=subprocess.PIPE)
    publish.process.stdin.write(b'{"n": 1}\n{"n": 2}\n{"half')
    publish.process.stdin.flush()
    publish.wait_for('"sequence":2')
    publish.process.stdin.write(b'": 3}')
    publish.process.stdin.close()
    assert publish.wait() == 0
    assert stored(bus_folder)[-1] == ("a.b", {"half": 3})


def test_a_line_longer_than_any_message_is_refused_without_being_kept(bus_folder, fedbus):
    done = fedbus("publish", "a.b", "--lines", *KOJI, stdin='{"a": "' + "x" * 3_000_000 + '"}\n{"n": 2}\n')
    assert done.returncode == 1
    assert done.stderr.startswith("line 1: longer than")
    assert stored(bus_folder) == [("a.b", {"n": 2})]


def test_a_body_on_stdin_beyond_the_limit_is_refused_without_a_made_up_length(bus_folder, fedbus):
    done = fedbus("publish", "a.b", "-", *KOJI, stdin='{"a": "' + 3 * 2**20 * "x" + '"}')
    assert (done.returncode, done.stdout) == (1, "")
    assert "longer than 1048576 bytes" in done.stderr
    assert stored(bus_folder) == []


def test_the_body_may_come_from_stdin(bus_folder, fedbus):
    assert fedbus("publish", "a.b", "-", *KOJI, stdin='{"n": 1}\n').returncode == 0
    assert fedbus("publish", "a.b", *KOJI, stdin='{\n "n": 2\n}\n').returncode == 0
    assert stored(bus_folder) == [("a.b", {"n": 1}), ("a.b", {"n": 2})]


def test_the_endpoint_is_found_where_there_is_only_one_choice(bus_folder, fedbus):
    done = fedbus("publish", "a.b", "{}", "--wait", "0")
    assert done.returncode == 2
    assert "bodhi.web01, git.host01, koji.build01" in done.stderr
    done = fedbus("publish", "org.example.dev.bodhi.update.create", "{}", "--wait", "0", "--json")
    assert json.loads(done.stdout)["endpoint"] == "bodhi.web01"
    for name in ("bodhi.web01", "git.host01"):
        (bus_folder / "keys" / f"{name}.key").unlink()
    assert json.loads(fedbus("publish", "a.b", "{}", "--wait", "0", "--json").stdout)["endpoint"] == "koji.build01"
    (bus_folder / "keys" / "koji.build01.key").unlink()
    assert fedbus("publish", "a.b", "{}", "--wait", "0").returncode == 3


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("Bad.Topic", "{}"), 2),
        (("a.b", '{"a": 1, "a": 2}'), 2),
        (("a.b", '{"a": NaN}'), 2),
        (("a.b", "[]"), 2),
        (("a.b", "{}", "--rate", "5"), 2),
        ((), 2),
        (("a.b", "{}", "--lines"), 2),
        (("a.b", "--with-topic"), 2),
        (("a.b", "{}", "--as", "koji.nobody"), 3),
        (("a.b", "{}", "--config", "/nonexistent"), 3),
        (("org.example.dev.bodhi.update.create", "{}"), 4),
        (("org.example.production.koji.build.start", "{}"), 4),
    ],
)
def test_what_cannot_be_published_has_the_exit_code_of_its_cause(fedbus, arguments, code):
    done = fedbus("publish", *arguments, *(() if "--as" in arguments else KOJI))
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr and "Traceback" not in done.stderr


def test_a_key_that_others_can_read_is_a_fault_of_the_configuration(bus_folder, fedbus):
    (bus_folder / "keys" / "koji.build01.key").chmod(0o644)
    done = fedbus("publish", "a.b", "{}", *KOJI)
    assert done.returncode == 3
    assert "koji.build01.key" in done.stderr


def test_a_dry_run_checks_and_publishes_nothing(bus_folder, fedbus):
    done = fedbus("publish", "a.b", '{"n": 1}', "--dry-run", "--json", *KOJI)
    assert json.loads(done.stdout) == {
        "topic": "org.example.dev.koji.a.b",
        "endpoint": "koji.build01",
        "body": {"n": 1},
        "dry_run": True,
    }
    assert fedbus("publish", "a.b", "--lines", "--dry-run", *KOJI, stdin="{}\n{bad}\n").returncode == 1
    assert not (bus_folder / "state" / "journal").exists()


def test_an_endpoint_in_use_is_waited_for_and_then_given_up_with_5(bus_folder, fedbus, spawn):
    with Bus.open(bus_folder) as bus, bus.publisher("koji.build01"):
        done = fedbus("publish", "a.b", "{}", "--timeout", "0.2", *KOJI)
        assert done.returncode == 5
        assert "in use by another process" in done.stderr and "Traceback" not in done.stderr
        waiting = spawn("publish", "a.b", '{"n": 1}', "--timeout", "100", *KOJI, config=bus_folder)
        waiting.wait_for("in use by another process")
    assert waiting.wait() == 0
    assert stored(bus_folder) == [("a.b", {"n": 1})]


def test_an_address_that_can_never_be_bound_here_is_not_waited_for(bus_folder, fedbus):
    text = "endpoints:\n  koji.build01:\n    publish: ipc://run/publish\n    replay: ipc://run/replay\n"
    (bus_folder / "20-endpoints.yaml").write_text(text)
    done = fedbus("publish", "a.b", "{}", "--timeout", "3600", *KOJI)
    assert done.returncode == 5
    assert f"make the folder {bus_folder}/run" in done.stderr
    assert "in use by another process" not in done.stderr


def test_it_leaves_at_once_with_wait_0_and_stays_for_a_subscriber_otherwise(bus_folder, spawn):
    publish = spawn("publish", "a.b", '{"n": 1}', "--as", "koji.build01", "--wait", "120", config=bus_folder)
    publish.wait_for("koji.build01#1")
    # a reader on another host has no journal to look into
    with Bus.open(bus_folder) as bus:
        bus._local_journal = lambda endpoint: None  # type: ignore[method-assign]
        with bus.subscribe("koji", since="beginning") as subscriber:
            assert [message.body for message in subscriber.receive(100)] == [{"n": 1}]
            assert publish.wait() == 0


@pytest.mark.fault("F20")
def test_sigterm_publishes_what_was_read_and_ends_with_143(bus_folder, spawn):
    publish = spawn("publish", "a.b", "--lines", "--json", *KOJI, config=bus_folder, stdin=subprocess.PIPE)
    publish.process.stdin.write(b'{"n": 1}\n')
    publish.process.stdin.flush()
    publish.wait_for('"sequence":1')
    for _ in range(20):
        publish.send(signal.SIGTERM)
    assert publish.wait() == 143
    assert publish.err == ""
    assert stored(bus_folder) == [("a.b", {"n": 1})]


@pytest.mark.fault("F20")
def test_receipts_that_nobody_reads_stop_no_message(bus_folder, spawn):
    publish = spawn(
        *("publish", "a.b", "--lines", "--json", *KOJI),
        config=bus_folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    publish.process.stdout.close()
    publish.process.stdin.write(b'{"n": 1}\n' * 3000)
    publish.process.stdin.close()
    assert publish.wait() == 0
    assert publish.err == ""
    assert len(stored(bus_folder)) == 3000


@pytest.mark.fault("F20")
def test_a_closed_stdin_is_told_and_does_no_harm(bus_folder, spawn):
    publish = spawn("publish", "a.b", "-", *KOJI, config=bus_folder, stdin=None, preexec_fn=lambda: os.close(0))
    assert publish.wait() == 1
    assert "stdin is closed" in publish.err and "Traceback" not in publish.err
    publish = spawn(
        "publish", "a.b", "{}", *KOJI, config=bus_folder, stdin=None, preexec_fn=lambda: os.closerange(0, 3)
    )
    assert publish.wait() == 0
    assert stored(bus_folder) == [("a.b", {})]


def test_lines_keep_to_a_rate(bus_folder, spawn):
    publish = spawn(
        *("publish", "a.b", "--lines", "--json", "--rate", "1", *KOJI), config=bus_folder, stdin=subprocess.PIPE
    )
    publish.process.stdin.write(b"{}\n" * 600)
    publish.process.stdin.close()
    publish.wait_for('"sequence":1')
    publish.send(signal.SIGTERM)
    assert publish.wait() == 143
    assert len(publish.records()) < 300
