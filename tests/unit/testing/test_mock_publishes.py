"""`mock_publishes`: what code publishes is checked against what was expected, and nothing is sent."""

from __future__ import annotations

import contextlib
from unittest.mock import ANY

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedbus
from fedbus import Bus
from fedbus.errors import ConfigError, MessageError, PublisherClosed, SchemaError, TrustError
from fedbus.testing import LocalBus, Published, containing, mock_publishes, record_publishes
from fedbus.testing.matching import difference

ROOT = "org.example.dev"
DONE = ("package.build.complete", {"package": "bash", "n": 1})


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch):
    monkeypatch.delenv("FEDBUS_CONFIG", raising=False)


def build(package: str = "bash", *, wait: bool = True) -> None:
    """Code under test."""
    with fedbus.Bus.open() as bus, bus.publisher("koji.build01") as koji:
        koji.publish("package.build.start", {"package": package}, wait=wait)
        receipt = koji.enqueue("package.build.complete", {"package": package, "n": 1}).result()
        assert (receipt.topic, receipt.sequence) == (f"{ROOT}.koji.package.build.complete", 2)


@pytest.mark.parametrize(
    "start",
    [
        "package.build.start",
        "koji.package.build.start",
        f"{ROOT}.koji.package.build.start",
        ("package.build.start", {"package": "bash"}),
        ("koji.package.build.start", ANY),
        ("package.build.start", containing(package=ANY)),
        {"topic": "package.build.start", "body": {"package": "bash"}, "endpoint": "koji.build01"},
        {"body": containing({"package": "bash"})},
        lambda message: message.body["package"] == "bash",
        lambda message: None,
    ],
)
def test_what_is_expected_can_be_said_in_many_ways(start):
    with mock_publishes(start, DONE) as sent:
        build()
    assert [(one.topic, one.body) for one in sent] == [
        (f"{ROOT}.koji.package.build.start", {"package": "bash"}),
        (f"{ROOT}.koji.package.build.complete", {"package": "bash", "n": 1}),
    ]


@pytest.mark.parametrize(
    ("expected", "told"),
    [
        ((), ["0 messages were expected, 2 published", "not expected: org.example.dev.koji.package.build.start {"]),
        ((DONE,), ["1. is not what was expected", "topic: expected 'package.build.complete'", "not expected: "]),
        (
            ("package.build.start", ("package.build.complete", {"package": "zsh", "n": 1})),
            ["1. as expected", "2. is not what", '-   "package": "zsh"', '+   "package": "bash"'],
        ),
        (("package.build.start", DONE, "tag.add"), ["3. missing: tag.add"]),
        (("package.build.start", {"endpoint": "bodhi.web01"}), ["endpoint: expected 'bodhi.web01'"]),
        ((lambda message: False, DONE), ["<lambda> returned False"]),
        (("package.build.start", ("package.build.complete", containing(owner="x"))), ["it has no 'owner'"]),
    ],
)
def test_a_mismatch_is_told_so_that_one_can_see_it(expected, told):
    with pytest.raises(AssertionError) as raised, mock_publishes(*expected):
        build()
    for words in told:
        assert words in str(raised.value)


def test_a_callable_may_assert_and_its_words_are_told():
    def right(message: Published) -> None:
        assert message.body["package"] == "zsh", "it has to be zsh"

    with pytest.raises(AssertionError, match="right: it has to be zsh"), mock_publishes(right, DONE):
        build()


def test_the_order_counts_unless_it_is_not_to():
    with mock_publishes(DONE, "package.build.start", ordered=False):
        build()
    with pytest.raises(AssertionError), mock_publishes(DONE, "package.build.start"):
        build()
    twice = ("package.build.start", "package.build.start")
    with pytest.raises(AssertionError, match=r"2\. missing: package"), mock_publishes(*twice, ordered=False):
        build()


@given(st.permutations(range(5)), st.data())
def test_without_order_no_item_takes_a_message_that_another_needs(order, data):
    messages = [Published(f"{ROOT}.a.b.c", {"n": number}, "a.h", "b.c", ROOT) for number in range(5)]
    # each item fits its own message and some others
    more = data.draw(st.lists(st.sets(st.integers(0, 4)), min_size=5, max_size=5))
    expected = [
        lambda one, own=own, also=also: one.body["n"] in {own, *also} for own, also in zip(order, more, strict=True)
    ]
    assert difference(expected, messages, ordered=False) == ""
    assert "not expected" in difference(expected[1:], messages, ordered=False)


def test_an_error_of_the_code_under_test_comes_out_as_it_is():
    with pytest.raises(ZeroDivisionError), mock_publishes("never.published"):
        _ = 1 / 0


@pytest.mark.parametrize("item", [5, ("a", "b", "c"), {"tpic": "a"}, {}, (1, {}), None])
def test_what_cannot_be_expected_is_told_before_anything_runs(item):
    with pytest.raises(TypeError, match="expected message 2 is "), mock_publishes("a.b", item):
        raise AssertionError("never reached")


def test_topics_and_bodies_are_refused_as_when_publishing():
    with mock_publishes(), fedbus.Bus.open() as bus:
        koji = bus.publisher("koji.build01")
        for topic, body in (("a..b", {}), ("a.b", {"x": float("nan")}), ("a.b", {"x": object()}), ("a.b", [1])):
            with pytest.raises(MessageError):
                koji.publish(topic, body)
        koji.close()
        with pytest.raises(PublisherClosed):
            koji.publish("a.b", {})


def test_bodies_have_to_fit_the_schemas_that_are_given():
    schemas = {"koji.package.build": {"type": "object", "required": ["owner"]}}
    with pytest.raises(SchemaError, match="owner"), mock_publishes(DONE, schemas=schemas):
        build()
    swallowed = pytest.raises(AssertionError, match=r"does not fit its schema:\n.*owner")
    with swallowed, record_publishes(schemas=schemas), contextlib.suppress(SchemaError):
        build()
    with mock_publishes("package.build.start", "package.build.complete", schemas={"koji.tag": {"required": ["x"]}}):
        build()


def test_a_configuration_that_is_named_is_used_with_its_policy_and_schemas(tmp_path, monkeypatch):
    with LocalBus(tmp_path / "bus", endpoints=("koji.build01",), prefix="org.other") as bus:
        monkeypatch.setenv("FEDBUS_CONFIG", str(bus.folder))
    with record_publishes() as sent, Bus.open() as opened:
        with pytest.raises(ConfigError):
            opened.publisher("bodhi.web01")
        koji = opened.publisher("koji.build01")
        with pytest.raises(TrustError):
            koji.publish("org.other.dev.bodhi.update.comment", {})
        koji.publish("tag.add", {})
    assert [one.topic for one in sent] == ["org.other.dev.koji.tag.add"]


def test_publishers_that_were_open_before_record_too_and_publish_again_behind_it():
    with LocalBus(endpoints=("koji.build01",)) as bus:
        koji = bus.publisher()
        with mock_publishes(("tag.add", {"n": 1})):
            koji.publish("tag.add", {"n": 1})
        assert koji.head == 0
        koji.publish("tag.add", {"n": 2})
        assert [message.body for message in bus.messages()] == [{"n": 2}]


def test_what_was_published_is_not_changed_by_what_the_code_does_later():
    with record_publishes() as sent, fedbus.Bus.open() as bus:
        body = {"tags": ("a", "b")}
        bus.publisher("koji.build01").publish("tag.add", body)
        body["tags"] = ()
    assert sent[0].body == {"tags": ["a", "b"]}
