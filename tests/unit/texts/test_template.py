"""The language of texts: bounded, without control characters, and faults told with their place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbus.texts import words
from fedbus.texts.template import FILTERS, Template, TemplateError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*"ab", "name"]), inner, max_size=3),
    max_leaves=6,
)
BODIES = st.dictionaries(st.sampled_from(["a", "b", "name", "status", "commit", "x.y"]), JSON, max_size=4)


def message(body: dict[str, Any], topic: str = "org.example.dev.koji.build.complete") -> Any:
    return SimpleNamespace(topic=topic, body=body, endpoint="koji.build01", sequence=7, attributes={"dataschema": "x"})


def rendered(template: str, body: dict[str, Any]) -> str:
    return Template(template).render(message(body))


@pytest.mark.parametrize(
    ("template", "body", "text"),
    [
        ("{owner}'s {body.nvr}", {"owner": "ralph", "nvr": "bash-5.2-1"}, "ralph's bash-5.2-1"),
        ("{topic} {endpoint}#{sequence}", {}, "org.example.dev.koji.build.complete koji.build01#7"),
        ('{a|b|"nobody"}', {"b": "x"}, "x"),
        ('{a|b|"nobody"}', {"a": "", "b": None}, "nobody"),
        ('{a|"one | two"}', {}, "one | two"),
        ("built[ by {owner}][ in {place}].", {"owner": "ralph"}, "built by ralph."),
        ("{{}} [[{a}]]", {"a": 1}, "{} [1]"),
        ("{builds.nvr}", {"builds": [{"nvr": "a-1-1"}, {"nvr": "b-1-1"}]}, "a-1-1, b-1-1"),
        ("{builds.1.nvr}", {"builds": [{"nvr": "a-1-1"}, {"nvr": "b-1-1"}]}, "b-1-1"),
        ("{many}", {"many": [*"abcdef"]}, "a, b, c and 3 more"),
        ("{many:count} builds", {"many": [*"abcdef"]}, "6 builds"),
        ("{status: 0=failed, 1=complete, *=ended}", {"status": 1}, "complete"),
        ("{status: 0=failed, 1=complete, *=ended}", {"status": 5}, "ended"),
        ("{status: 0=failed}", {"status": 5}, ""),
        ("{ok: true=fine, false=broken}", {"ok": False}, "broken"),
        ("{ok}", {"ok": True}, "yes"),
        ("{message:first}", {"message": "\n\n a b\nc"}, "a b"),
        ("{ref:base}", {"ref": "refs/heads/main"}, "main"),
        ("{commit:short}", {"commit": "0123456789abcdef"}, "01234567"),
        ("{who:person}", {"who": "Ralph Bean <r@example.org>"}, "Ralph Bean"),
        ("{nvr:package}", {"nvr": "python-ply-3.9-4.fc42"}, "python-ply"),
        ("{user}", {"user": {"name": "ralph", "id": 3}}, "ralph"),
        ("{a.b}", {"a.b": "dotted"}, "dotted"),
        ("{a.__class__}{__class__}{body.__dict__}", {"a": "x"}, ""),
        ("{topic.upper}{attributes}{attributes.id}{dataschema}", {}, "x"),
        ("a\tb\n{a}", {"a": "\x1b]8;;x\x07\u202e"}, "a b ]8;;x"),
    ],
)
def test_a_template_renders_as_the_documentation_says(template: str, body: dict[str, Any], text: str) -> None:
    assert rendered(template, body) == text


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("{", "single {"),
        ("a}", "single }"),
        ("[a", "without ]"),
        ("a]", "without ["),
        ("[a]", "no field"),
        ("[{a} [{b}]]", "nest"),
        ("{}", "no path"),
        ("{a b}", "no path"),
        ("{a..b}", "single dots"),
        ("{a:nothing}", "none of first"),
        ("{a: 0=x: 1=y}", "no table"),
        ("x" * 2001, "at most 2000"),
        ("{a}" * 65, "at most 64"),
        ("{" + ".".join("a" * 17) + "}", "16 names"),
    ],
)
def test_a_faulty_template_is_refused_with_what_is_wrong(template: str, word: str) -> None:
    with pytest.raises(TemplateError, match="(?i)" + word.replace("[", r"\[").replace("{", r"\{")):
        Template(template)


PIECES = st.sampled_from(
    [
        *(
            "{a}",
            "{body.a}",
            "{a.b}",
            "{name.0}",
            "{a|b}",
            '{b|"x"}',
            "{status: 0=no, *=yes}",
            "[ {a}]",
            "[{b}: {name}]",
        ),
        *(f"{{a:{name}}}" for name in FILTERS),
        *("{{", "}}", "[[", "]]", "text ", "\n", "\x1b[31m"),
    ]
)


@settings(max_examples=60)
@given(st.lists(PIECES, max_size=20).map("".join), BODIES, st.integers(1, 500))
def test_whatever_a_message_holds_a_text_is_one_printable_line_of_bounded_length(
    template: str, body: dict[str, Any], room: int
) -> None:
    try:
        text = Template(template).render(message(body), room)
    except TemplateError:
        return  # brackets that came to stand together
    assert len(text) <= room
    assert text.isprintable()
    assert all(one.isprintable() and len(one) <= words.LINE for one in Template(template).values(message(body)))


@given(st.text(st.sampled_from('{}[]|:=",. ab0*') | st.characters(), max_size=60))
def test_any_text_is_a_template_or_a_template_error(text: str) -> None:
    try:
        template = Template(text)
    except TemplateError:
        return
    assert template.render(message({"a": "b"})).isprintable()


def test_a_large_body_is_not_walked_for_a_line() -> None:
    seen = 0

    class Counted(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            nonlocal seen
            seen += 1
            return super().get(key, default)

    body = {"builds": [Counted(nvr="x" * 10_000) for _ in range(100_000)]}
    assert len(Template("{builds.nvr}" * 64).render(message(body))) <= words.LINE
    assert seen <= 64 * 50 * 2
