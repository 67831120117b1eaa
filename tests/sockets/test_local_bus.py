"""`fedbus.testing.LocalBus`: a whole bus in one process, for authors of consumers."""

from __future__ import annotations

import pytest

from fedbus import ConfigError, Consumer, Drop, Halt, Loss, Message, Retry, SchemaError, TrustError, consumer
from fedbus.testing import LocalBus


class Keep(Consumer):
    """Keeps numbers, and fails as it is told to."""

    name = "keep"
    topics = ("test.thing",)

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.told: list[Loss] = []
        self.broken = True

    def consume(self, message: Message) -> None:
        what = message.body.get("do")
        if what == "drop":
            raise Drop("not wanted")
        if what == "halt":
            raise Halt(3, "enough")
        if what == "fail" and self.broken:
            raise ValueError("broken")
        if what == "wait":
            raise Retry(after=60.0, reason="not yet")
        self.seen.append(message.body["n"])

    def lost(self, loss: Loss) -> None:
        self.told.append(loss)


@pytest.fixture
def bus():
    with LocalBus() as opened:
        yield opened


def test_what_is_published_reaches_the_consumer_and_what_it_fails_is_a_dead_letter(bus):
    keep = Keep()
    bus.publish("thing.change", {"n": 0})  # before it ran; it begins now
    bus.run(keep)
    for number, what in enumerate(("", "drop", "fail", ""), 1):
        bus.publish("thing.change", {"n": number, "do": what})
    bus.publish("other.change", {"n": 9})
    bus.wait_consumed()
    assert keep.seen == [1, 4]
    (letter,) = bus.dead_letters()
    assert (letter.consumer, letter.body, letter.attempts) == ("keep", {"n": 3, "do": "fail"}, 4)
    assert "ValueError: broken" in letter.reason and "in consume" in letter.traceback
    assert letter.traceback.count("Traceback") == 1, "earlier attempts are no cause of the last one"
    keep.broken = False
    bus.requeue(letter)
    bus.wait_for(lambda: keep.seen == [1, 4, 3], what="the requeued letter")
    bus.wait_for(lambda: not bus.dead_letters("keep"), what="the letter's end")
    assert bus.stop() == 0


def test_consumers_begin_where_they_say_and_go_on_where_they_were(bus):
    @consumer("test.thing", since="beginning")
    def collect(message: Message) -> None:
        seen.append(message.body["n"])

    seen: list[int] = []
    bus.publish("thing.change", {"n": 1})
    bus.run(collect)
    bus.wait_consumed()
    bus.stop()
    bus.publish("thing.change", {"n": 2})
    bus.run(collect)
    bus.wait_consumed()
    assert seen == [1, 2]


def test_a_lost_journal_is_told_to_the_consumer(bus):
    keep = Keep()
    bus.run(keep)
    bus.publish("thing.change", {"n": 1})
    bus.wait_consumed()
    bus.lose_journal()
    bus.publish("thing.change", {"n": 2})
    bus.wait_consumed()
    assert keep.seen == [1, 2]
    assert [loss.cause for loss in bus.losses] == ["epoch"] and keep.told == bus.losses


def test_waiting_says_who_hangs_where_and_halting_can_be_waited_for(bus):
    bus.run(Keep())
    bus.publish("thing.change", {"n": 1, "do": "wait"})
    with pytest.raises(AssertionError, match=r"consumer keep is done with test.host01#1 org.example.dev.test.thing"):
        bus.wait_consumed(0.3)
    bus.stop()
    with pytest.raises(RuntimeError, match=r"call run\(consumer\) first"):
        bus.wait_consumed()


def test_halt_ends_the_hub_with_its_exit_code(bus):
    bus.run(Keep())
    bus.publish("thing.change", {"n": 1, "do": "halt"})
    assert bus.wait_ended() == 3


def test_a_message_is_what_consumers_get(bus):
    message = bus.message("thing.change", {"n": 1})
    assert (message.signer, message.body, message.sequence) == ("test.host01", {"n": 1}, 1)
    bus.publish("other.change", {"n": 2})
    assert [one.body["n"] for one in bus.messages()] == [1, 2]
    assert [one.body["n"] for one in bus.messages("test.other")] == [2]


def test_configuration_and_folder_can_be_chosen(tmp_path):
    config = {"schemas": {"topics": {"koji.tag": {"type": "object", "required": ["tag"]}}}}
    with LocalBus(tmp_path / "bus", endpoints=("koji.build01", "bodhi.web01"), config=config) as bus:
        with pytest.raises(SchemaError):
            bus.publish("tag.add", {})
        with pytest.raises(TrustError):
            bus.publish("org.example.dev.koji.tag.add", {"tag": "x"}, endpoint="bodhi.web01")
        assert bus.publish("tag.add", {"tag": "x"}, endpoint="bodhi.web01").sequence == 1
        with pytest.raises(ConfigError):
            bus.run(Keep(), Keep())
    assert (tmp_path / "bus" / "10-bus.yaml").exists()  # it was not made here, so it stays
    with pytest.raises(ConfigError):
        LocalBus(config={"journl": {}})


def test_its_folder_is_gone_when_it_is_closed():
    with LocalBus() as bus:
        folder = bus.folder
        assert folder.is_dir()
    assert not folder.exists()
