"""Topics of fedmsg and ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fedbus.errors import MessageError
from fedbus.fedmsg.topics import Mapping, filters_for, subscriptions
from fedbus.model.topic import Naming, TopicFilter, check_topic

NAMING = Naming("org.fedoraproject", "production")
ROOT = "org.fedoraproject.prod"
MAPPING = Mapping(NAMING, ROOT, "fedmsg")


def chosen(*texts: str) -> list[TopicFilter]:
    return filters_for([TopicFilter.parse(text, NAMING) for text in texts], NAMING, ROOT)


def test_a_filter_is_taken_within_the_prefix_of_fedmsg() -> None:
    (koji,) = chosen("koji.package.#")
    assert koji.matches("org.fedoraproject.prod.koji.package.build")
    assert not koji.matches("org.fedoraproject.production.koji.package.build")


def test_a_filter_that_names_another_prefix_in_full_stands_for_itself() -> None:
    found = chosen("io.pagure.prod.#")
    assert any(one.matches("io.pagure.prod.pagure.issue.new") for one in found)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ((), [b""]),
        (("koji", "bodhi.update"), [b"org.fedoraproject.prod.bodhi.update", b"org.fedoraproject.prod.koji"]),
        (tuple(f"s{number}" for number in range(200)), [b""]),
    ],
)
def test_a_socket_asks_for_what_the_filters_choose(texts: tuple[str, ...], expected: list[bytes]) -> None:
    assert subscriptions(chosen(*texts)) == expected


def test_topics_keep_their_names_below_our_prefix() -> None:
    assert MAPPING.inward("org.fedoraproject.prod.bodhi.update.comment") == (
        "org.fedoraproject.production.bodhi.update.comment"
    )
    assert MAPPING.outward("org.fedoraproject.production.bodhi.update.comment") == (
        "org.fedoraproject.prod.bodhi.update.comment"
    )
    assert MAPPING.inward("io.pagure.prod.pagure.issue.New") == (
        "org.fedoraproject.production.fedmsg.io.pagure.prod.pagure.issue.new"
    )


@given(some.lists(some.from_regex(r"[!\"$-)+\-/-~]{1,12}", fullmatch=True), min_size=1, max_size=12))
def test_every_topic_of_fedmsg_becomes_one_of_ours_or_is_too_long(fields: list[str]) -> None:
    try:
        found = MAPPING.inward(".".join(fields))
    except MessageError:
        return
    check_topic(found)
    assert found.startswith(NAMING.root + ".")
