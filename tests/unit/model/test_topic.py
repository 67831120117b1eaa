"""Topics and filters, against an oracle that tries every way to match."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.errors import MessageError, Reason, TrustError
from fedbus.model.topic import (
    TOPIC_BYTES,
    Naming,
    TopicFilter,
    check_topic,
    common_prefix,
    service_of_endpoint,
)

NAMING = Naming("org.example", "dev")

fields = st.sampled_from(["a", "b", "ab", "a-", "_", "0"])
topics = st.lists(fields, min_size=1, max_size=6).map(".".join)
patterns = st.lists(fields | st.sampled_from(["*", "#"]), max_size=6).map(".".join)


def prefix_matches(pattern: list[str], topic: list[str]) -> bool:
    """What a filter chooses, by the words of the design: a prefix by whole fields, `*` one field, `#` any number."""
    if not pattern:
        return True
    head, rest = pattern[0], pattern[1:]
    if head == "#":
        return any(prefix_matches(rest, topic[skip:]) for skip in range(len(topic) + 1))
    return bool(topic) and head in ("*", topic[0]) and prefix_matches(rest, topic[1:])


@given(patterns, topics)
def test_a_filter_chooses_what_a_naive_reading_of_it_chooses(pattern: str, topic: str) -> None:
    expected = prefix_matches(pattern.split(".") if pattern else [], topic.split("."))
    assert TopicFilter(pattern).matches(topic) is expected


@given(topics, topics)
def test_a_filter_without_wildcards_is_a_prefix_by_whole_fields(prefix: str, topic: str) -> None:
    fields = prefix.split(".")
    assert TopicFilter(prefix).matches(topic) is (topic.split(".")[: len(fields)] == fields)


def test_a_filter_never_ends_within_a_field() -> None:
    koji = TopicFilter.parse("koji", NAMING)
    assert koji.matches("org.example.dev.koji.build.start")
    assert koji.matches("org.example.dev.koji")
    assert not koji.matches("org.example.dev.kojira.build.start")
    assert not koji.matches("org.example.dev.koj")


@given(patterns, topics)
def test_all_that_a_filter_chooses_begins_with_its_literal_fields(pattern: str, topic: str) -> None:
    one = TopicFilter(pattern)
    assert not set(one.literal) & {"*", "#"}
    if one.matches(topic):
        assert tuple(topic.split(".")[: len(one.literal)]) == one.literal


@given(st.lists(patterns, max_size=4), topics)
def test_a_common_prefix_covers_all_that_any_of_the_filters_chooses(texts: list[str], topic: str) -> None:
    filters = [TopicFilter(text) for text in texts]
    prefix = common_prefix(filters)
    for one in filters:
        assert one.literal[: len(prefix)] == prefix
        if one.matches(topic):
            assert tuple(topic.split(".")[: len(prefix)]) == prefix
    if filters:
        assert any(one.literal == prefix for one in filters) or len({one.literal[len(prefix)] for one in filters}) > 1
    else:
        assert prefix == ()


@pytest.mark.badinput("B16")
def test_a_filter_made_to_be_slow_is_matched_in_bounded_steps() -> None:
    # every way to spread the fields over the wildcards would be tried: more than 10^30 of them
    pattern = TopicFilter(".".join(["#", "a"] * 60 + ["b"]))
    assert not pattern.matches(".".join("a" * 128))


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("koji.package.#", "org.example.dev.koji.package.#"),
        ("koji.package.", "org.example.dev.koji.package"),
        ("koji", "org.example.dev.koji"),
        ("#", "org.example.dev.#"),
        ("", "org.example.dev"),
        ("*", "org.example.dev.*"),
        ("org", "org.example.dev.org"),
        ("org.examples", "org.example.dev.org.examples"),
        ("org.example", "org.example"),
        ("org.example.stg.koji", "org.example.stg.koji"),
        ("*.package.#", "org.example.dev.*.package.#"),
        ("*.*", "org.example.dev.*.*"),
        ("#.complete", "org.example.dev.#.complete"),
        ("*.example.dev", "org.example.dev.*.example.dev"),
    ],
)
def test_a_filter_without_the_prefix_is_taken_within_it(text: str, full: str) -> None:
    assert TopicFilter.parse(text, NAMING).text == full


def test_a_filter_that_begins_with_one_field_left_open_chooses_any_service() -> None:
    any_service = TopicFilter.parse("*.package.#", NAMING)
    assert any_service.matches("org.example.dev.koji.package.build.complete")
    assert any_service.matches("org.example.dev.bodhi.package.add")
    assert not any_service.matches("org.example.dev.koji.build.package.add")
    assert not any_service.matches("org.example.stg.koji.package.add")


@pytest.mark.badinput("B3")
@pytest.mark.parametrize(
    "text", ["a..b", ".a", "a.**", "a.*b", "A", "a b", "a\n", "a\0", "ä", "a.(b)", "a/b", "a" * 256, "..", "*.."]
)
def test_what_is_no_filter_is_refused(text: str) -> None:
    with pytest.raises(MessageError) as caught:
        TopicFilter(text)
    assert caught.value.reason is Reason.TOPIC


@pytest.mark.badinput("B3")
@pytest.mark.parametrize(
    "text",
    ["", ".", "a.", ".a", "a..b", "a.*", "#", "A.b", "a b", "a\tb", "a\n", "\x1b[2J", "a\0b", "é", "\u0430", "a" * 256],
)
def test_what_is_no_topic_cannot_be_published(text: str) -> None:
    with pytest.raises(MessageError) as caught:
        check_topic(text)
    assert caught.value.reason is Reason.TOPIC


@pytest.mark.badinput("B13")
@pytest.mark.parametrize("value", [5, None, b"koji", ["koji.package"], ("koji", "bodhi")])
def test_what_is_no_text_is_neither_a_topic_nor_a_filter(value: Any) -> None:
    for read in (check_topic, TopicFilter.parse, lambda text: TopicFilter.parse(text, NAMING)):
        with pytest.raises(MessageError, match="is a text, not") as caught:
            read(value)
        assert caught.value.reason is Reason.TOPIC


def test_a_topic_in_capitals_is_refused_with_the_form_that_was_meant() -> None:
    with pytest.raises(MessageError, match=r"'Foo\.bar' is not a topic.*did you mean 'foo\.bar'\?"):
        NAMING.expand("koji", "Foo.bar")
    with pytest.raises(MessageError) as caught:
        NAMING.expand("koji", "Foo bar")
    assert "did you mean" not in str(caught.value)


@pytest.mark.badinput("B3")
@given(st.text(max_size=30))
def test_any_text_is_a_topic_or_raises_message_error_and_nothing_else(text: str) -> None:
    try:
        check_topic(text)
    except MessageError:
        return
    assert text.isascii() and text.lower() == text and all(text.split("."))


@given(st.text(max_size=30))
def test_any_text_is_a_filter_or_raises_message_error_and_nothing_else(text: str) -> None:
    for naming in (None, NAMING):
        try:
            TopicFilter.parse(text, naming).matches("org.example.dev.koji.a.b")
        except MessageError:
            pass


def test_the_longest_topic_is_taken() -> None:
    check_topic("a" * TOPIC_BYTES)
    check_topic("a." * 127 + "b")


def test_a_short_topic_is_expanded_and_checked() -> None:
    assert NAMING.expand("koji", "package.build.complete") == "org.example.dev.koji.package.build.complete"
    for short in ("", "a..b", "A", "x" * 250):
        with pytest.raises(MessageError):
            NAMING.expand("koji", short)


@pytest.mark.badinput("B33")
def test_a_full_topic_of_another_environment_is_refused_and_not_put_into_ours() -> None:
    for short in ("org.example.stg.koji.package.build.start", "org.example.production.koji.a.b"):
        with pytest.raises(TrustError, match=r"this bus carries org\.example\.dev\.\* only") as refused:
            NAMING.expand("koji", short)
        assert refused.value.reason is Reason.ENVIRONMENT
    assert NAMING.expand("koji", "org.example.staging.a") == "org.example.dev.koji.org.example.staging.a"


@pytest.mark.badinput("B33")
def test_the_service_of_a_topic_is_known_only_within_prefix_and_environment() -> None:
    assert NAMING.service_of("org.example.dev.koji.a.b") == "koji"
    assert NAMING.service_of("org.example.dev.koji") == "koji"
    for topic in ("org.example.dev", "org.example.stg.koji.a", "org.example.device.koji", "com.example.dev.koji.a"):
        assert NAMING.service_of(topic) is None


def test_the_service_of_an_endpoint_is_its_first_field() -> None:
    assert service_of_endpoint("koji.build01") == "koji"
    assert service_of_endpoint("koji") == "koji"


def test_filters_are_equal_when_their_text_is() -> None:
    assert TopicFilter("a.*") == TopicFilter("a.*")
    assert len({TopicFilter("a"), TopicFilter("a"), TopicFilter("b")}) == 2
    assert TopicFilter("a") != "a"
