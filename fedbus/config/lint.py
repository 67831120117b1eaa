"""What the naming rules have against a topic: singular nouns, known verbs, existing words before new ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from fedbus.errors import MessageError
from fedbus.model.topic import Naming, check_topic

# Verbs that say what happened to an object, in the form that topics use: `package.build.complete`.
_VERB_TEXT = (
    "accept acquire activate add announce answer approve archive assign attach begin block branch build cancel change "
    "check claim clear clone close comment commit complete confirm connect copy create deactivate delete deny deploy "
    "detach disable disconnect down download drop edit eject enable end enter expire export fail fetch finish fork "
    "freeze gain grant import include index init install invite join kill leave link load lock log lose mark merge "
    "migrate mirror modify move new notify open orphan pass pause pin promote propose publish pull purge push queue "
    "read reassign rebase receive recover refresh register reject release reload remove rename renew reopen replace "
    "report request requeue reset resolve restart restore resume retire retry return review revise revoke rollback "
    "rotate run save schedule send set show sign skip start stop submit subscribe succeed suspend switch sync tag test "
    "timeout transfer trigger unassign unblock undeploy undo uninstall unlink unlock unorphan unpin unpublish "
    "unregister unretire unsubscribe untag up update upgrade upload verify view vote wait withdraw"
)
VERBS = frozenset(_VERB_TEXT.split())

# Words that end like a plural and are none.
_SINGULAR_TEXT = (
    "access address alias analysis analytics atlas axis basis bias bonus bus business canvas census class compass "
    "consensus corpus dns focus gas genius gps https ips kubernetes lens loss mass news nexus pass plus process "
    "progress radius redis series species status stress success tls ups virus vps"
)
_SINGULAR = frozenset(_SINGULAR_TEXT.split())

_NEAR = 0.8  # ratio of difflib from which on two words are taken for one; build/biuld 0.8, comment/commit 0.77
_GROUP = 500  # words compared with each other at one place; more are data in a topic, not names


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing to mend in a topic."""

    topic: str
    rule: str  # malformed, short, plural, verb, near-duplicate
    text: str
    suggestion: str = ""


def lint(
    topics: Iterable[str],
    existing: Iterable[str] = (),
    *,
    naming: Naming,
    services: frozenset[str] = frozenset(),
    verbs: frozenset[str] = VERBS,
) -> list[Finding]:
    """Return what is to be said against *topics*, in their order; *existing* are topics in use that they must fit.

    A topic is full, or begins with the name of one of *services*, or is what publishing code says
    (``package.build.complete``).
    """
    findings: list[Finding] = []
    groups: dict[tuple[str, ...], list[str]] = {}
    for topic in existing:
        service, fields = _fields(topic, naming, services)
        # what publishing code says names no service: it is held against those of all
        for one in {service, ""}:
            for place, masked in _masked((one, fields)):
                group = groups.setdefault(masked, [])
                if len(group) < _GROUP and fields[place] not in group:
                    group.append(fields[place])
    for topic in dict.fromkeys(topics):
        try:
            check_topic(topic)
        except MessageError as error:
            findings.append(Finding(topic, "malformed", str(error)))
            continue
        service, fields = _fields(topic, naming, services)
        if len(fields) < 2:
            findings.append(Finding(topic, "short", "needs an object and an event, such as build.complete"))
            continue
        findings += _plurals(topic, fields[:-1])
        findings += _verb(topic, fields[-1], verbs)
        for place, masked in _masked((service, fields)):
            words = groups.setdefault(masked, [])
            word = fields[place]
            if word in words:
                continue
            near = [one for one in difflib.get_close_matches(word, words, n=1, cutoff=_NEAR) if len(word) > 2]
            # start and restart are near, and both are meant
            if near and not {word, near[0]} <= verbs:
                text = f"{word!r} is nearly {near[0]!r}, which is in use at this place; use the existing word"
                findings.append(Finding(topic, "near-duplicate", text, near[0]))
            if len(words) < _GROUP:
                words.append(word)
    return findings


def singular(word: str) -> str:
    """Return the singular of *word* where it looks like a plural, else *word* itself; the last part of a-b counts."""
    start = max(word.rfind("-"), word.rfind("_")) + 1
    last = word[start:]
    if len(last) < 4 or not last.endswith("s") or last.endswith(("ss", "us", "is")) or last in _SINGULAR:
        return word
    if last.endswith("ies") and len(last) > 4:
        return f"{word[:-3]}y"
    if last.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    return word[:-1]


def _fields(topic: str, naming: Naming, services: frozenset[str]) -> tuple[str, list[str]]:
    """Return the service, empty where the topic names none, and the fields after it."""
    fields = topic.split(".")
    labels = naming.prefix.split(".")
    if fields[: len(labels)] == labels:
        rest = fields[len(labels) + 1 :]  # the environment is no name
        return (rest[0] if rest else "", rest[1:])
    if fields[0] in services:
        return fields[0], fields[1:]
    return "", fields


def _masked(parts: tuple[str, list[str]]) -> list[tuple[int, tuple[str, ...]]]:
    """Return for each place of the fields the topic with that place left open: topics that differ there share it."""
    service, fields = parts
    return [(place, (service, *fields[:place], "", *fields[place + 1 :])) for place in range(len(fields))]


def _plurals(topic: str, fields: list[str]) -> list[Finding]:
    found = [(field, one) for field in fields if (one := singular(field)) != field]
    return [
        Finding(topic, "plural", f"{field!r} is a plural; objects are singular: {one!r}", one) for field, one in found
    ]


def _verb(topic: str, event: str, verbs: frozenset[str]) -> list[Finding]:
    if event in verbs:
        return []
    near = difflib.get_close_matches(event, sorted(verbs), n=1, cutoff=0.7)
    if near:
        return [Finding(topic, "verb", f"{event!r} is not a known verb; did you mean {near[0]!r}?", near[0])]
    text = f"{event!r} is not a known verb; the last field says what happened, such as create, start, complete, fail"
    return [Finding(topic, "verb", text)]
