"""`fedbus tail`, run as people and scripts run it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import unicodedata
import uuid

import pytest

from fedbus.bus import Bus
from fedbus.transport.publisher import Publisher

PAST = ("tail", "--since", "beginning", "--no-follow")


@pytest.fixture
def koji(bus_folder):
    """The publisher of koji.build01, running."""
    with Bus.open(bus_folder) as bus, bus.publisher("koji.build01") as publisher:
        yield publisher


def publish(publisher: Publisher, count: int) -> None:
    for number in range(publisher.head + 1, publisher.head + count + 1):
        publisher.publish("build.start" if number % 2 else "tag.add", {"n": number})


def numbers(shown: str) -> list[int]:
    return [json.loads(line)["body"]["n"] for line in shown.splitlines()]


def test_the_past_is_shown_in_order_and_then_it_ends(koji, fedbus):
    publish(koji, 500)
    done = fedbus(*PAST, "--json")
    assert done.returncode == 0
    assert numbers(done.stdout) == list(range(1, 501))
    assert "bodhi.web01, git.host01" in done.stderr  # nothing was heard of these


def test_filters_choose_topics_by_whole_fields(koji, fedbus):
    publish(koji, 10)
    assert numbers(fedbus(*PAST, "--json", "koji.tag").stdout) == [2, 4, 6, 8, 10]
    assert numbers(fedbus(*PAST, "--json", "*.*.start").stdout) == [1, 3, 5, 7, 9]
    assert numbers(fedbus(*PAST, "--json", "koji.ta").stdout) == []
    assert numbers(fedbus(*PAST, "--json", "koji.tag", "koji.build").stdout) == list(range(1, 11))
    assert numbers(fedbus(*PAST, "--json", "--endpoint", "bodhi.web01").stdout) == []
    assert numbers(fedbus(*PAST, "--json", "--include", r'"n":[12]\b', "--exclude", "tag").stdout) == [1]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_json_where_the_locale_cannot_write_it(koji, fedbus, encoding):
    body = {"é": "€ 😀 \ud7ff\uffff", "plain": "a\\b"}
    koji.publish("build.start", body)
    done = fedbus(*PAST, "--json", environment={"PYTHONIOENCODING": encoding})
    assert json.loads(done.stdout.encode("utf-8", "surrogateescape").decode(encoding))["body"] == body
    shown = fedbus(*PAST, environment={"PYTHONIOENCODING": encoding})
    assert shown.returncode == 0 and ("€" if encoding == "utf-8" else "\\u20ac") in shown.stdout


def test_count_ends_it_after_so_many_and_the_cursor_goes_on_from_there(koji, fedbus):
    publish(koji, 10)
    first = fedbus("tail", "--since", "beginning", "--cursor", "night", "--count", "3", "--json")
    assert (first.returncode, numbers(first.stdout)) == (0, [1, 2, 3])
    second = fedbus("tail", "--cursor", "night", "--no-follow", "--json")
    assert (second.returncode, numbers(second.stdout)) == (0, list(range(4, 11)))
    publish(koji, 1)
    # it is not idle before it has read what there is
    third = fedbus("tail", "--cursor", "night", "--idle-exit", "0", "--json")
    assert (third.returncode, numbers(third.stdout)) == (0, [11])


def test_idle_exit_ends_it_with_0_and_an_unreached_count_with_6(koji, fedbus):
    publish(koji, 2)
    assert fedbus("tail", "--idle-exit", "0.2").returncode == 0
    done = fedbus("tail", "--since", "beginning", "--count", "3", "--timeout", "2", "--json")
    assert done.returncode == 6
    shown = numbers(done.stdout)  # as far as a busy machine has come by then
    assert shown == [1, 2][: len(shown)]
    assert f"{len(shown)} of 3 messages" in done.stderr


@pytest.mark.parametrize("form", ["short", "wide", "pretty", "json", "{time} {endpoint} {body.n}"])
def test_every_form_shows_every_message(koji, fedbus, form):
    publish(koji, 3)
    done = fedbus(*PAST, "-q", "-o", form)
    assert done.returncode == 0
    assert re.findall(r"\b[123]\b(?=[}\n]|$)", done.stdout, re.MULTILINE) == ["1", "2", "3"]
    assert done.stderr == ""


def test_fields_choose_what_is_shown(koji, fedbus):
    publish(koji, 1)
    done = fedbus(*PAST, "--json", "--fields", "n,topic,none")
    assert json.loads(done.stdout) == {"n": 1, "topic": "org.example.dev.koji.build.start", "none": None}
    assert fedbus(*PAST, "--fields", "sequence").stdout.endswith("koji build.start  sequence=1\n")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--since", "whenever"), 2),
        (("A!",), 2),
        (("-o", "nothing"), 2),
        (("--include", "("), 2),
        (("--count", "0"), 2),
        (("--json", "-o", "wide"), 2),
        (("--fields", ","), 2),
        (("--endpoint", "koji.nobody"), 3),
        (("--config", "/nonexistent"), 3),
    ],
)
def test_what_cannot_be_asked_for_has_the_exit_code_of_its_cause(fedbus, arguments, code):
    done = fedbus("tail", *arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr


def test_a_known_loss_is_a_notice_and_under_strict_it_ends_with_7(koji, fedbus):
    publish(koji, 3)
    place = f"koji.build01/{uuid.uuid4()}/2"  # of a journal that was there before this one
    done = fedbus("tail", "--since", place, "--no-follow", "--json", "--endpoint", "koji.build01")
    assert (done.returncode, numbers(done.stdout)) == (0, [1, 2, 3])
    assert done.stderr.startswith("lost: koji.build01")
    done = fedbus("tail", "--since", place, "--no-follow", "--json", "--endpoint", "koji.build01", "--strict")
    assert done.returncode == 7
    assert "are lost" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.badinput("B37")
@pytest.mark.parametrize("form", ["short", "wide", "pretty", "json", "{body.owner} {body}"])
def test_nothing_that_a_terminal_obeys_comes_out_whatever_a_publisher_says(koji, fedbus, form):
    nasty = (
        "\x1b[2J\x1b]8;;http://x\x07a\x1b]52;c;aGk=\x07\x9b31m\x90q\x9c\u202eabc\u2066\u200b\ufeff\u2028\x7f\x85\r\n\b"
    )
    koji.publish("build.start", {"owner": nasty, nasty: [nasty, {nasty: nasty}]})
    done = fedbus(*PAST, "-o", form, "--color", "never")
    assert done.returncode == 0
    assert r"\x1b" in done.stdout or r"\u001b" in done.stdout
    bad = {one for one in done.stdout.replace("\n", "") if unicodedata.category(one) in ("Cc", "Cf", "Zl", "Zp")}
    assert bad == set()


@pytest.mark.parametrize(
    ("arguments", "environment", "coloured"),
    [
        ((), {}, False),
        (("--color", "always"), {}, True),
        (("--color", "always"), {"NO_COLOR": "1"}, True),
        (("--color", "never"), {}, False),
    ],
)
def test_colours_are_off_where_nobody_looks(koji, fedbus, arguments, environment, coloured):
    publish(koji, 1)
    assert ("\x1b[" in fedbus(*PAST, *arguments, environment=environment).stdout) is coloured


@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_terminal_gets_colours_unless_it_asks_for_none(koji, bus_folder, spawn, no_color):
    publish(koji, 1)
    ours, theirs = pty.openpty()
    try:
        tail = spawn(*PAST, "-q", config=bus_folder, stdout=theirs, environment={"NO_COLOR": no_color})
        assert tail.wait() == 0
        os.close(theirs)
        theirs = -1
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # how Linux says that the other end is closed
            pass
        assert b"koji" in shown
        assert (b"\x1b[" in shown) is not bool(no_color)
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)


@pytest.mark.fault("F20")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_burst_of_signals_ends_it_cleanly_with_its_cursor_kept(koji, bus_folder, fedbus, spawn, number):
    publish(koji, 3)
    tail = spawn("tail", "--since", "beginning", "--cursor", "c", "--json", config=bus_folder)
    tail.wait_for('"n":3')
    for _ in range(20):
        tail.send(number)
    assert tail.wait() == 128 + number
    assert tail.err == ""
    publish(koji, 1)
    done = fedbus("tail", "--cursor", "c", "--no-follow", "--json")
    assert (done.returncode, numbers(done.stdout)) == (0, [4]), done.stderr


@pytest.mark.fault("F20")
def test_a_reader_that_goes_away_ends_it_quietly_and_its_cursor_stays_behind(koji, bus_folder, fedbus, spawn):
    publish(koji, 1)
    tail = spawn("tail", "--since", "beginning", "--cursor", "c", "--json", config=bus_folder, stdout=subprocess.PIPE)
    assert b'"n":1' in tail.process.stdout.readline()
    tail.process.stdout.close()
    publish(koji, 1)
    assert tail.wait() == 0
    assert tail.err == ""
    done = fedbus("tail", "--cursor", "c", "--no-follow", "--json")
    assert done.returncode == 0, done.stderr
    assert numbers(done.stdout)[-1] == 2  # nobody has seen it; the first may come again


@pytest.mark.fault("F20")
def test_closed_standard_streams_do_no_harm(koji, bus_folder, spawn):
    publish(koji, 2)
    tail = spawn(*PAST, "--json", config=bus_folder, stdin=None, preexec_fn=lambda: os.close(0))
    assert tail.wait() == 0
    assert len(tail.records()) == 2
    tail = spawn(*PAST, "--json", config=bus_folder, stdin=None, preexec_fn=lambda: os.closerange(0, 3))
    assert tail.wait() == 0


def test_each_message_is_written_when_it_comes(koji, bus_folder, spawn):
    tail = spawn("tail", "-v", "--json", config=bus_folder)
    tail.wait_for("reading ")
    for number in range(1, 4):
        koji.publish("build.start", {"n": number})
        tail.wait_for(f'"n":{number}')


def test_refused_input_is_a_notice_on_stderr_in_the_form_that_was_asked_for(bus_folder, fedbus, spawn, koji):
    publish(koji, 1)
    # a revoked signer: its messages are refused from now on
    assert fedbus("keys", "revoke", "koji.build01").returncode == 0
    done = fedbus(*PAST, "--json", "--endpoint", "koji.build01", "--log-format", "json", "--timeout", "20")
    assert done.stdout == ""
    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(one) for one in told)
    assert any("revoked" in one["message"] and one["level"] == "warning" for one in told)
