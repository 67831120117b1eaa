"""Who may say what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.errors import ConfigError, Reason, TrustError
from fedbus.model.topic import Naming, TopicFilter
from fedbus.trust.policy import Policy, Rule

NAMING = Naming()
ROOT = "org.example.dev"

fields = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,6}", fullmatch=True)
services = st.sampled_from(["koji", "kojira", "bodhi", "koj"]) | fields
signers = st.builds("{}.{}".format, services, fields)
topics = st.builds(lambda service, rest: ".".join([ROOT, service, *rest]), services, st.lists(fields, max_size=4))


@given(signers, topics)
def test_without_rules_a_signer_may_say_the_topics_of_its_own_service_and_nothing_else(signer, topic):
    own = topic.split(".")[3] == signer.split(".")[0]
    assert Policy(NAMING).permits(signer, topic) is own


@given(signers, st.text() | st.from_regex(r"org\.example\.[a-z]{0,5}(\.[a-z*#]{0,6}){0,3}", fullmatch=True))
def test_what_is_no_topic_within_prefix_and_environment_is_denied_whatever_the_rules(signer, topic):
    policy = Policy(NAMING, [Rule("*.*", ("#",))])
    if policy.permits(signer, topic):
        assert topic.startswith(ROOT + ".")
        assert TopicFilter(topic).literal == tuple(topic.split("."))


@given(signers, topics, st.lists(st.tuples(signers, topics), max_size=4))
def test_a_rule_grants_its_topics_to_its_signer_and_changes_nothing_for_others(signer, topic, rules):
    policy = Policy(NAMING, [Rule(name, (granted,)) for name, granted in rules])
    granted = any(name == signer and TopicFilter.parse(text, NAMING).matches(topic) for name, text in rules)
    assert policy.permits(signer, topic) is (granted or Policy(NAMING).permits(signer, topic))
    assert policy.permits(signer, topic) is policy.permits(signer, topic), "the cache tells the same"


@pytest.mark.badinput("B27")
@pytest.mark.parametrize(
    ("signer", "topic"),
    [
        ("koji.build01", "kojira.repo.init"),
        ("koji.build01", "koji2.build.start"),
        ("kojira.host01", "koji.build.start"),
        ("bodhi.web01", "koji.build.start"),
    ],
)
def test_the_topic_of_another_service_is_denied_with_a_reason(signer, topic):
    with pytest.raises(TrustError) as caught:
        Policy(NAMING).check(signer, f"{ROOT}.{topic}")
    assert caught.value.reason is Reason.POLICY
    assert signer in str(caught.value)
    assert topic in str(caught.value)


@pytest.mark.badinput("B27")
@pytest.mark.parametrize(
    "topic",
    ["", "org.example.dev", "org.example.stg.koji.x", "org.example.production.koji.x", "net.example.dev.koji.x",
     "org.exampleX.dev.koji.x", "xorg.example.dev.koji.x", "org.example.development.koji.x"],
)  # fmt: skip
def test_another_prefix_or_environment_is_denied_for_that_reason(topic):
    with pytest.raises(TrustError) as caught:
        Policy(NAMING, [Rule("koji.build01", ("#",))]).check("koji.build01", topic)
    assert caught.value.reason is Reason.ENVIRONMENT


def test_a_star_stands_for_one_whole_field_of_the_signer():
    policy = Policy(NAMING, [Rule("koji.*", ("bodhi.update.#",), origin="30-policy.yaml:4")])
    assert policy.permits("koji.build01", f"{ROOT}.bodhi.update.push")
    assert not policy.permits("koji.build01", f"{ROOT}.bodhi.comment.add")
    assert not policy.permits("koji.build01.eu", f"{ROOT}.bodhi.update.push")
    assert not policy.permits("koji", f"{ROOT}.bodhi.update.push")
    assert not policy.permits("kojira.build01", f"{ROOT}.bodhi.update.push")


def test_all_rules_that_cannot_be_read_are_reported_together_with_their_place():
    rules = [
        Rule("koji.b*", ("x",), origin="p.yaml:1"),
        Rule("koji.build01", ("A.B", "fine"), origin="p.yaml:2"),
        Rule("", (), origin="p.yaml:3"),
    ]
    with pytest.raises(ConfigError) as caught:
        Policy(NAMING, rules)
    assert [problem.split(": ")[0] for problem in caught.value.problems] == ["p.yaml:1", "p.yaml:2", "p.yaml:3"]


def test_a_flood_of_topics_does_not_grow_memory():
    policy = Policy(NAMING)
    for number in range(20_000):
        policy.permits("koji.build01", f"{ROOT}.koji.{number}")
    assert len(policy._decisions) <= 2 * 8192
