"""`fedbus tail` while the configuration changes under it."""

from __future__ import annotations

import os
import pty
import signal

import pytest

from fedbus.bus import Bus

BAD = "  bad.host: {publish: 'tcp://127.0.0.1:1', replay: nonsense, unknown: 1}\n"


@pytest.fixture
def endpoints(bus_folder):
    """The endpoints file: `whole`, `without` bodhi.web01 (as it is now), and `change(text)` to put another in place."""

    class File:
        path = bus_folder / "20-endpoints.yaml"
        whole = path.read_text()
        without = whole.replace(whole[whole.index("  bodhi.web01") : whole.index("  git.host01")], "")

        def change(self, text: str) -> None:
            replacement = self.path.with_suffix(".new")
            replacement.write_text(text)
            replacement.chmod(0o600)
            replacement.replace(self.path)

    file = File()
    file.change(file.without)
    return file


@pytest.mark.fault("F11")
@pytest.mark.parametrize("how", ["poll", "SIGHUP"])
def test_a_new_endpoint_is_read_and_a_bad_file_is_refused_whole_while_it_runs(bus_folder, spawn, endpoints, how):
    tail = spawn("tail", "-v", "--json", config=bus_folder)
    tail.wait_for("reading ")

    def change(text: str) -> None:
        endpoints.change(text)
        if how == "SIGHUP":
            tail.send(signal.SIGHUP)

    with Bus.open(bus_folder) as bus, bus.publisher("koji.build01") as koji:
        koji.publish("build.start", {"n": 1})
        tail.wait_for('"n":1')
        change(endpoints.whole + BAD)
        tail.wait_for("the old one stays in force")
        assert "unknown key 'endpoints.bad.host.unknown'" in tail.err
        koji.publish("build.start", {"n": 2})
        tail.wait_for('"n":2')
        change(endpoints.whole)
        tail.wait_for("endpoints: added bodhi.web01")
        with Bus.open(bus_folder) as other, other.publisher("bodhi.web01") as bodhi:
            bodhi.publish("update.create", {"n": 3})
            tail.wait_for('"n":3')
        change(endpoints.without)
        tail.wait_for("endpoints: removed bodhi.web01")
        koji.publish("build.start", {"n": 4})
        tail.wait_for('"n":4')
    tail.send(signal.SIGTERM)
    assert tail.wait() == 128 + signal.SIGTERM
    assert [one["body"]["n"] for one in tail.records()] == [1, 2, 3, 4]
    # it looks by itself, too, and may have done so just before the signal came
    assert tail.err.count("the old one stays in force") in ((1,) if how == "poll" else (1, 2))
    assert "Traceback" not in tail.err


@pytest.mark.fault("F11")
def test_a_new_endpoint_that_is_down_is_read_from_its_journal_on_this_host(bus_folder, spawn, endpoints):
    tail = spawn("tail", "-v", "--since", "1h", "--json", config=bus_folder)
    tail.wait_for("reading ")
    endpoints.change(endpoints.whole)
    tail.wait_for("endpoints: added bodhi.web01")
    with Bus.open(bus_folder) as bus, bus.publisher("bodhi.web01") as bodhi:
        bodhi.publish("update.create", {"n": 1})
    tail.wait_for('"n":1')


@pytest.mark.fault("F11")
def test_with_endpoints_named_a_new_one_is_not_read(bus_folder, spawn, endpoints):
    tail = spawn("tail", "-v", "--json", "--endpoint", "koji.build01", config=bus_folder)
    tail.wait_for("reading ")
    endpoints.change(endpoints.whole)
    tail.wait_for("endpoints: the same")
    with Bus.open(bus_folder) as bus, bus.publisher("bodhi.web01") as bodhi, bus.publisher("koji.build01") as koji:
        bodhi.publish("update.create", {"n": 1})
        koji.publish("build.start", {"n": 2})
        tail.wait_for('"n":2')
        tail.send(signal.SIGTERM)
        tail.wait()
    assert [one["body"]["n"] for one in tail.records()] == [2]


@pytest.mark.fault("F20")
def test_the_end_of_its_terminal_ends_it(bus_folder, spawn):
    ours, theirs = pty.openpty()
    tail = spawn("tail", "-v", config=bus_folder, stdout=theirs)
    os.close(theirs)
    tail.wait_for("reading ")
    os.close(ours)
    assert tail.wait() == 128 + signal.SIGHUP
    assert "Traceback" not in tail.err
