"""The consumer that keeps the history, with a real store and no hub."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from fedbus_consumers.history import History

from fedbus import ConfigError, Fenced, Halt, HistoryQuery, Retry, open_history
from fedbus.history import partition
from fedbus.hub.options import ConsumerSettings
from fedbus.hub.registry import load_configured
from tests.unit.history.press import Press


@pytest.fixture
def press(tmp_path: Path) -> Press:
    return Press(tmp_path / "keys")


@pytest.fixture
def consumer(tmp_path: Path):
    made = History()
    made.state = tmp_path / "state"
    made.start()
    yield made
    made.stop()


def stored(tmp_path: Path) -> list[int]:
    with open_history(str(tmp_path / "state" / "history")) as store:
        return sorted(one.message().body["n"] for one in store.find(HistoryQuery()))


def test_without_settings_it_stores_in_the_state_of_the_bus_and_each_message_once(tmp_path, consumer, press):
    messages = press.batch([{"n": number} for number in range(9)], wall=1_750_000_000.0)
    consumer.consume_batch(messages[:6])
    consumer.consume(messages[0])
    consumer.consume_batch(messages[3:])
    assert stored(tmp_path) == list(range(9))


@pytest.mark.fault("F18")
def test_a_store_that_is_busy_makes_it_wait_and_no_message_fails_for_it(tmp_path, consumer, press, monkeypatch):
    monkeypatch.setattr(partition, "BUSY_SECONDS", 0.05)
    messages = press.batch([{"n": 1}, {"n": 2}], wall=1_750_000_000.0)
    consumer.consume_batch(messages[:1])
    other = sqlite3.connect(tmp_path / "state" / "history" / "history.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    consumer.stop()
    pauses = []
    for _ in range(3):
        with pytest.raises(Retry) as retry:
            consumer.consume_batch(messages)
        pauses.append(retry.value.after)
    assert pauses[0] < pauses[1] < pauses[2]
    other.execute("ROLLBACK")
    other.close()
    consumer.consume_batch(messages)
    assert stored(tmp_path) == [1, 2]


@pytest.mark.fault("F18")
def test_a_damaged_store_makes_it_wait_until_somebody_has_mended_it(tmp_path, consumer, press):
    messages = press.batch([{"n": 1}], wall=1_750_000_000.0)
    consumer.consume_batch(messages)
    consumer.stop()
    (path,) = (tmp_path / "state" / "history").glob("20*.db")
    path.write_bytes(b"garbage" * 5000)
    with pytest.raises(Retry, match="rebuild"):
        consumer.consume_batch(messages)
    with open_history(str(tmp_path / "state" / "history"), writable=True) as store:
        list(store.set_aside(path.name))
    consumer.consume_batch(messages)
    assert stored(tmp_path) == [1]


def test_a_hub_that_was_overtaken_is_halted(tmp_path, consumer, press):
    messages = press.batch([{"n": 1}], wall=1_750_000_000.0)
    with open_history(str(tmp_path / "state" / "history"), writable=True) as store:
        store.write(messages, token=7)
    with pytest.raises(Halt) as halt:
        consumer.consume_batch(messages)
    assert halt.value.exit_code == 1
    assert isinstance(halt.value.__cause__, Fenced)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"store": "relative/folder"}, "settings.store"),
        ({"store": "mysql://db"}, "settings.store"),
        ({"period": "week"}, "settings.period"),
        ({"keep": "for long"}, "duration"),
        ({"path": "/x"}, "path"),
    ],
)
def test_settings_that_mean_nothing_are_refused_with_their_place(settings, fault):
    wanted = ConsumerSettings(name="history", use="fedbus_consumers.history", settings=settings, origin="50.yaml:3")
    with pytest.raises(ConfigError, match=fault):
        load_configured(wanted, folder=None, since=None, origins={})


def test_settings_may_name_a_folder_or_a_server():
    for place in ("/srv/history", "~/history", "postgresql://fedbus@db1/history", "postgres://db1/x"):
        wanted = ConsumerSettings(
            name="history", use="fedbus_consumers.history", settings={"store": place, "keep": "400d", "period": "day"}
        )
        assert load_configured(wanted, folder=None, since=None, origins={}).since == "beginning"
