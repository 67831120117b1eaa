"""What messages say to people: by rules, and where there is none by what their fields are called."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbus import Text, Texts
from fedbus.model.topic import Naming, TopicFilter
from fedbus.texts import words
from fedbus.texts.guess import person_of, title_of
from fedbus.texts.texts import TextError, TextRule, weight
from tests.unit.texts.test_template import BODIES

NAMING = Naming("org.example", "dev")


def message(body: Any, topic: str = "org.example.dev.koji.package.build.complete") -> Any:
    return SimpleNamespace(topic=topic, body=body, endpoint="koji.build01", sequence=7, attributes={})


def rule(topic: str, rank: int = 0, **templates: Any) -> TextRule:
    return TextRule.parse(topic, templates, naming=NAMING, rank=rank)


def texts(*rules: TextRule) -> Texts:
    return Texts(rules, root=NAMING.root)


@pytest.mark.parametrize(
    ("topic", "body", "summary"),
    [
        (
            "koji.package.build.complete",
            {"package": "bash", "version": "5.2", "release": "1.fc42", "owner": "ralph"},
            "koji package build complete: bash-5.2-1.fc42, by ralph",
        ),
        ("git.receive", {"commit": {"summary": "Fix it", "username": "mjw"}}, "git receive: “Fix it”, by mjw"),
        (
            "pagure.issue.new",
            {"issue": {"id": 4, "title": "bug"}, "project": {"name": "foo"}, "agent": "pingou"},
            "pagure issue new: foo#4 bug, by pingou",
        ),
        ("nagios.host.change", {"host": "proxy04", "status": "CRITICAL"}, "nagios host change: proxy04, CRITICAL"),
        ("x.y.z", {}, "x y z"),
        ("x.y.z", {"a": [1, [2, {"b": None}]]}, "x y z"),
    ],
)
def test_an_unknown_message_reads_well(topic: str, body: dict[str, Any], summary: str) -> None:
    assert texts().of(message(body, f"org.example.dev.{topic}")).summary == summary


def test_packages_users_link_and_icon_are_found_in_usual_fields() -> None:
    body = {
        "build": {"nvr": "python-ply-3.9-4.fc42", "url": "https://koji.example.org/1"},
        "user": {"name": "ralph", "avatar_url": "https://img.example.org/r.png"},
        "owner": "kevin",
    }
    assert texts().of(message(body)) == Text(
        title="koji package build complete",
        summary="koji package build complete: python-ply-3.9-4.fc42, by ralph",
        link="https://koji.example.org/1",
        icon="https://img.example.org/r.png",
        agent="ralph",
        packages=("python-ply",),
        users=("ralph", "kevin"),
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Ralph Bean <r@example.org>", "Ralph Bean"),
        ("<r@example.org>", "r"),
        ("http://ralph.id.example.org/", "ralph"),
        ("mbs/mbs.example.org", "mbs"),
        ("r@example.org", "r"),
        ("ralph", "ralph"),
    ],
)
def test_of_a_person_the_name_is_shown(text: str, name: str) -> None:
    assert person_of(text) == name


@pytest.mark.parametrize(
    "link", ["javascript:alert(1)", "http://x y", "https://", "http://a\nb", "data:x", 'http://a"b', "ftp://x", 1, None]
)
@pytest.mark.badinput("B39")
def test_only_an_http_address_without_blanks_and_quotes_is_a_link(link: Any) -> None:
    assert texts().of(message({"url": link, "icon": link})).link == ""
    made = texts(rule("koji", link="{url}", icon="{url}")).of(message({"url": link}))
    assert made.link == made.icon == ""


def test_prefix_and_environment_of_this_bus_and_of_others_are_not_said() -> None:
    assert title_of("org.example.dev.koji.build", "org.example.dev") == "koji build"
    assert title_of("org.other.prod.pagure.pull-request.new", "org.example.dev") == "pagure pull-request new"
    assert title_of("plain") == "plain"


def test_the_closest_rule_counts_for_each_text_by_itself() -> None:
    chosen = texts(
        rule("#", icon="https://img.example.org/all.png"),
        rule("koji", title="Koji", summary="something in Koji"),
        rule("koji.package.build", summary="{package} is built"),
        rule("koji.package.*.complete", title="never"),
        rule("koji.package.build.complete", title="Build"),
        rule("git", title="Git"),
    )
    text = chosen.of(message({"package": "bash", "owner": "ralph"}))
    assert (text.title, text.summary, text.icon) == ("Build", "bash is built", "https://img.example.org/all.png")
    assert text.agent == "ralph"  # guessed: no rule says it


def test_of_rules_for_the_same_topics_the_higher_rank_counts() -> None:
    assert texts(rule("koji", 1, title="one"), rule("koji", 2, title="two")).of(message({})).title == "two"


def test_what_a_rule_makes_empty_is_guessed() -> None:
    text = texts(rule("koji", summary="{nothing}", agent="{builder}")).of(message({"owner": "ralph"}))
    assert text.summary == "koji package build complete: by ralph"
    assert text.agent == "ralph"


def test_packages_and_users_take_each_value_of_a_list() -> None:
    chosen = texts(rule("koji", packages="{builds.nvr:package}", users=["{owner}", "{helpers}"]))
    body = {"builds": [{"nvr": "a-1-1"}, {"nvr": "b-2-1"}], "owner": "ralph", "helpers": ["kevin", "ralph"]}
    assert chosen.of(message(body)).packages == ("a", "b")
    assert chosen.of(message(body)).users == ("ralph", "kevin")


def test_new_rules_count_for_topics_that_were_seen_before() -> None:
    chosen = texts()
    assert chosen.of(message({})).title == "koji package build complete"
    chosen.adopt([rule("koji", title="Koji")])
    assert chosen.of(message({})).title == "Koji"


@pytest.mark.parametrize(
    ("topic", "values", "word"),
    [
        ("koji", {"titel": "x"}, "titel: unknown key"),
        ("koji", {"title": "{"}, "title: character 0"),
        ("koji", {"title": ["x"]}, "must be a template"),
        ("koji", {"packages": []}, "list of up to 8"),
        ("koji", {"title": ""}, "must be a template"),
        ("Koji!", {"title": "x"}, "not a topic filter"),
    ],
)
def test_a_faulty_rule_says_which_key_and_why(topic: str, values: dict[str, Any], word: str) -> None:
    with pytest.raises(TextError, match=word):
        TextRule.parse(topic, values, naming=NAMING)


class _Broken:
    topic = "org.example.dev.x.y"

    @property
    def body(self) -> dict[str, Any]:
        raise RuntimeError("no body")


@pytest.mark.parametrize("broken", [_Broken(), object(), message(None), message([1]), message("x"), message({1: 2})])
def test_whatever_it_is_given_it_never_raises(broken: Any) -> None:
    assert texts(rule("#", title="{a}")).of(broken).title


@settings(max_examples=60)
@given(BODIES, st.text(max_size=30))
def test_any_body_gives_printable_lines_of_bounded_length(body: dict[str, Any], word: str) -> None:
    body = {**body, "comment": {"text": word}, "user": {"name": word}, "package": word, "url": word, "status": word}
    text = texts().of(message(body))
    for one in (text.title, text.summary, text.link, text.icon, text.agent, *text.packages, *text.users):
        assert one.isprintable()
        assert len(one) <= words.LINK
    assert len(text.summary) <= words.LINE
    assert not text.link or text.link.startswith(("http://", "https://"))


NAMES = ("user", "owner", "agent", "package", "nvr", "packages", "name", "version", "release", "comment", "build", "x")
NAMED = st.recursive(
    st.sampled_from(("ralph", "bash-5.2-1.fc42", "bash", "mbs/mbs.example.org", " ", "", "p" * 120 + "-1-1", 7, None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(st.sampled_from(NAMES), NAMED, max_size=6), min_size=1, max_size=3), st.integers(0, 70))
def test_users_and_packages_alone_are_those_of_the_texts(bodies: list[dict[str, Any]], more: int) -> None:
    for body in (*bodies, {**bodies[0], **{f"field{number}": {"user": "zoe"} for number in range(more)}}):
        whole = texts().of(message(body))
        assert texts().names(message(body)) == (whole.users, whole.packages)
        assert "" not in (*whole.users, *whole.packages)
        assert not whole.agent or whole.users[0] == whole.agent


def test_a_build_is_of_its_package_however_its_name_is_written() -> None:
    for nvr, package in (
        ("python3-requests-2.32.3-4.fc42", "python3-requests"),
        (" bash-5.2-1.fc42 ", "bash"),
        ("gtk+-1-2", "gtk+"),
        ("fedora-42", "fedora-42"),
        ("p" * 95 + "-1-2", "p" * 95),
        ("zoë-1-2", "zoë-1-2"),
    ):
        assert texts().names(message({"nvr": nvr})) == ((), (package,))


@given(st.text(), st.integers(1, 100))
def test_any_text_becomes_one_line_that_shows(text: str, room: int) -> None:
    line = words.line(text, room)
    assert line.isprintable()
    assert len(line) <= room
    assert line == line.strip()


def test_a_stack_of_combining_marks_is_cut_down() -> None:
    assert words.line("e" + "\u0301" * 50) == "e" + "\u0301" * 3


FILTERS = st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=4).map(".".join)


@given(st.lists(FILTERS, max_size=6, unique=True), st.lists(st.sampled_from("abc"), min_size=1, max_size=4))
def test_the_rule_that_counts_is_the_heaviest_of_those_that_match(filters: list[str], fields: list[str]) -> None:
    topic = ".".join(fields)
    rules = [TextRule.parse(one, {"title": one}) for one in filters]
    found = Texts(rules).of(message({}, topic)).title
    matching = [one for one in rules if one.filter.matches(topic)]
    if not matching:
        assert found == title_of(topic)
    else:
        assert weight(TopicFilter(found)) == max(weight(one.filter) for one in matching)
