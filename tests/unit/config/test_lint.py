from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.config.lint import VERBS, lint, singular
from fedbus.model.topic import Naming

NAMING = Naming("org.example", "dev")
SERVICES = frozenset({"koji"})


def rules(topics, existing=(), **more):
    return [(one.rule, one.suggestion) for one in lint(topics, existing, naming=NAMING, services=SERVICES, **more)]


@pytest.mark.parametrize(
    "topic",
    [
        "package.build.complete",
        "koji.package.build.start",
        "org.example.stg.bodhi.update.comment",
        "status.change",
        "class.create",
    ],
)
def test_a_good_name_passes(topic):
    assert rules([topic]) == []


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("package.builds.complete", ("plural", "build")),
        ("org.example.dev.koji.repositories.create", ("plural", "repository")),
        ("test-boxes.add", ("plural", "test-box")),
        ("package.build.completed", ("verb", "complete")),
        ("package.build.zzzz", ("verb", "")),
        ("koji.complete", ("short", "")),
        ("complete", ("short", "")),
        ("Package.build", ("malformed", "")),
        ("a..b", ("malformed", "")),
    ],
)
def test_a_name_against_the_rules_is_reported_with_what_to_write(topic, expected):
    assert expected in rules([topic])


def test_a_word_that_is_nearly_one_in_use_is_a_near_duplicate():
    existing = ["org.example.dev.koji.package.build.complete"]
    assert rules(["koji.packages.build.complete"], existing) == [("plural", "package"), ("near-duplicate", "package")]
    assert rules(["koji.pakage.build.complete"], existing) == [("near-duplicate", "package")]
    assert rules(["koji.package.build.complete"], existing) == []
    assert rules(["bodhi.pakage.build.complete"], existing) == []


def test_what_publishing_code_says_is_held_against_the_names_of_all_services():
    existing = ["org.example.dev.koji.package.build.complete", "org.example.dev.bodhi.update.request.cancel"]
    assert rules(["package.build.complete", "update.request.cancel"], existing) == []
    assert rules(["package.biuld.complete"], existing) == [("near-duplicate", "build")]
    assert rules(["update.requset.cancel"], existing) == [("near-duplicate", "request")]
    # a service that is named has words of its own
    assert rules(["koji.update.requset.cancel"], existing) == []


def test_two_of_the_names_given_can_be_near_duplicates_of_each_other():
    assert rules(["compose.attempt.start", "composes_.attempt.start"]) == [("near-duplicate", "compose")]


def test_two_known_verbs_are_never_near_duplicates():
    assert rules(["x.restart", "x.start", "x.unpublish", "x.publish"]) == []


def test_more_verbs_can_be_given():
    assert rules(["commit.cherrypick"]) == [("verb", "")]
    assert rules(["commit.cherrypick"], verbs=VERBS | {"cherrypick"}) == []


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_known_verb_is_a_field_of_a_topic(verb):
    assert rules([f"thing.{verb}"]) == []


@given(st.lists(st.text(max_size=40), max_size=5), st.lists(st.text(alphabet="abs.", max_size=12), max_size=5))
def test_any_text_can_be_checked(topics, existing):
    for finding in lint(topics, existing, naming=NAMING):
        assert finding.text


@given(st.text(alphabet="abeishx-_", max_size=10))
def test_a_singular_is_never_longer_than_its_plural(word):
    assert len(singular(word)) <= len(word)
