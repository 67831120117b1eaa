"""What a message of an unknown kind seems to say, from its topic and from fields that most services have.

Who did it, to what, with which result: each is looked for under the names that services give it, first in the body
itself and then in the objects right below it. Whatever the size of the body, no more than a fixed number of its fields
is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import chain, islice
from typing import Any, NamedTuple

from fedbus.texts import words
from fedbus.texts.text import Text

Body = Mapping[str, Any]

_ENVIRONMENTS = frozenset({"dev", "stg", "stage", "staging", "prod", "production"})
_CHILDREN = 24  # fields of the body that are looked into
_ITEMS = 8  # of a list
_REMEMBERED = 8192  # names that were cleaned: they come again and again
_SHORT = 200  # characters of such a name
_KINDS, _LARGE = 2048, 64  # kinds of objects that are remembered, and members of the largest

# The names of fields, what says it best first.
_AGENTS = (
    *("agent", "username", "user_text", "userid", "user", "sender", "submitter", "packager", "tester", "nick"),
    *("author", "editor", "from", "owner", "fas_name", "person", "who"),
)
_ABOUT = (  # people to whom something is done
    *("owner", "recipient", "new_user", "new_owner", "assignee", "fas_name", "awardee", "member", "user", "person"),
)
_PACKAGES = ("nvr", "package", "package_name", "pkg", "pkgname", "packages", "srpm", "component", "original_spec_nvr")
_SUBJECTS = (
    *("nvr", "package_name", "package", "pkg", "pkgname", "packages", "builds", "update", "updates"),
    *("package_listing", "packagelist", "pullrequest", "pull_request", "issue", "ticket", "bug", "erratum", "advisory"),
    *("build", "repository", "repo", "project", "copr", "module", "component", "rpm", "image_name", "artifact"),
    *("compose_id", "compose", "playbook", "page", "post", "thread", "badge", "meeting_topic", "mlist", "channel"),
    *("stack", "override", "group", "hostname", "host", "tag", "task", "item", "file", "filename", "name", "title"),
    *("subject_identifier", "subject", "testcase", "calendar", "meeting", "election", "question", "organization"),
    *("org", "team", "query", "playlist", "service", "variant", "distro", "collection", "kernel_version", "release"),
    *("branch", "job", "id", "task_id", "uuid"),
)
_DEEPER = (  # of these, what may stand one level below
    *("nvr", "package_name", "package", "pkg", "packages", "builds", "repository", "repo", "project", "module"),
    *("component", "artifact", "compose_id", "kernel_version", "tag", "item"),
)
_NUMBERED = frozenset({"build", "job", "id", "task", "task_id", "issue", "ticket", "bug"})
_TEXTS = (
    *("summary", "subject", "message", "title", "text", "comment", "comment_text", "line", "notes", "reason", "topic"),
    *("description", "body", "content", "zen"),
)
_TALKERS = ("comment", "details", "commit", "head_commit", "note", "review", "msg", "update", "flag", "waiver", "vote")
_LINKS = (
    *("html_url", "full_url", "url", "link", "web_url", "build_url", "job_url", "page_url", "href", "location"),
    *("archived-at", "log_url", "logs", "project_url", "homepage", "external_url", "result_url", "target_url"),
)
_LINKED = (  # whose link says more than that of others
    *("comment", "review", "issue", "ticket", "pull_request", "pullrequest", "build", "result", "update", "release"),
    *("commit", "head_commit", "compare", "erratum", "task", "job", "page", "post", "flag", "msg", "badge", "meeting"),
    *("calendar",),
)
_RESULTS = ("result", "outcome", "conclusion", "status", "state", "new_status", "retirement", "verdict")
_JUDGED = ("result", "flag", "review", "waiver", "build", "update", "task", "job", "test", "action", "decision")
_NAMES = (
    *("nvr", "name", "fullname", "username", "nick", "nickname", "login", "alias", "title", "summary", "label"),
    "list_name",
)
_ICONS = ("icon", "image_url", "badge_image_url", "avatar_url", "avatar", "project_icon")

_TALKING = frozenset(_TALKERS)
_VERSIONED = frozenset(("name", "version", "release"))
_NVR = re.compile(r"([A-Za-z0-9][A-Za-z0-9+._-]{0,120})-([^-\s]*[0-9][^-\s]*)-([0-9][^-\s]*)")
# of these, the commonest: a text that is shown as it is
_PLAIN_NVR = re.compile(r"([A-Za-z0-9][A-Za-z0-9+._-]{0,90})-([!-,.-~]*[0-9][!-,.-~]*)-([0-9][!-,.-~]*)").fullmatch
_PERSON = re.compile(r"\s*\"?([^\"<>]{0,200}?)\"?\s*<([^<>@\s]{0,200})[^<>]{0,200}>\s*")
_OPENID = re.compile(r"https?://([a-z0-9-]{1,64})\.id\.[a-z0-9.-]+/?")
_DIGEST = re.compile(r"[0-9a-f]{32,64}")
_DOTTED = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+){3,}")  # a topic, not something that somebody wrote


def guess(topic: str, body: Body, root: str = "") -> Text:
    """Return the texts of a message; *root* is PREFIX.ENV, which is not said again."""
    title = title_of(topic, root)
    talking = _chosen(body, _TALKERS)
    places = _places(body, talking)
    agent, users, packages = _named(places)
    return Text(
        title=title,
        summary=_summary(title, body, places, talking, agent),
        link=_link(chain(_chosen(body, _LINKED), places)),
        icon=_icon(places),
        agent=agent,
        packages=packages,
        users=users,
    )


def names(body: Body) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the users and the packages of :func:`guess`, for whoever needs no more, at a fraction of its cost."""
    members = tuple(body)
    if (_kinds.get(members) or _new_kind(members)).small:
        # a body from the wire has no other mappings than these, and telling them costs least
        places = [body, *[inner for inner in body.values() if type(inner) is dict]]
    else:
        places = _places(body, _chosen(body, _TALKERS))
    return _named(places)[1:]


class _Kind(NamedTuple):
    """What all objects with the same members, in the same order, have in common: which of them are looked at."""

    agents: tuple[str, ...]
    about: tuple[str, ...]
    packages: tuple[str, ...]
    versioned: bool  # it has a name, a version and a release
    small: bool  # nobody talks in it, and all that is below it is looked into


_kinds: dict[tuple[str, ...], _Kind] = {}  # messages of one topic are alike, so that there are not many


def _new_kind(members: tuple[str, ...]) -> _Kind:
    there = frozenset(members)
    kind = _Kind(
        tuple(key for key in _AGENTS if key in there),
        tuple(key for key in _ABOUT if key in there),
        tuple(key for key in _PACKAGES if key in there),
        there >= _VERSIONED,
        len(members) <= _CHILDREN and _TALKING.isdisjoint(there),
    )
    if len(members) <= _LARGE:
        if len(_kinds) >= _KINDS:
            _kinds.clear()
        _kinds[members] = kind
    return kind


def _places(body: Body, talking: list[Body]) -> list[Body]:
    places = [body, *talking]
    for key, inner in islice(body.items(), _CHILDREN):
        if isinstance(inner, Mapping) and key not in _TALKING:
            places.append(inner)
    return places


def _named(places: list[Body]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return the agent, the users and the packages."""
    agent = ""
    who: Any = None  # what the agent was found in: often an owner, who is asked for twice
    people: dict[str, None] = {}
    packages: dict[str, None] = {}
    for place in places:
        members = tuple(place)
        agents, about, kinds, versioned, _ = _kinds.get(members) or _new_kind(members)
        if agents and not agent:
            for key in agents:
                value = place[key]
                if type(value) is str:
                    agent = _short_person(value) if len(value) <= _SHORT else _person(value)
                elif value and isinstance(value, (dict, Mapping)):
                    agent = _person(value)
                if agent:
                    who = value
                    break
        for key in about:
            value = place[key]
            if value is who and agent:
                people[agent] = None
            elif type(value) is str:
                people[_short_person(value) if len(value) <= _SHORT else _person(value)] = None
            elif value:
                for one in value[:_ITEMS] if isinstance(value, list) else (value,):
                    if isinstance(one, (str, dict, Mapping)):
                        people[_person(one)] = None
        if packages:
            continue
        if versioned and isinstance(place["release"], str) and _is_versioned(place, "name"):
            packages[_package(place["name"])] = None
        for key in kinds:
            value = place[key]
            if type(value) is str:
                packages[_package(value)] = None
            elif value:
                for one in value[:_ITEMS] if isinstance(value, list) else (value,):
                    if isinstance(one, (str, dict, Mapping)):
                        packages[_package(one)] = None
        packages.pop("", None)
    people.pop("", None)
    if agent and next(iter(people), "") != agent:
        people = {agent: None, **people}
    return agent, tuple(people)[:_ITEMS], tuple(packages)[:_ITEMS]


def title_of(topic: str, root: str = "") -> str:
    """Return the kind of event that *topic* names, as words: ``koji package build complete``."""
    if root and topic.startswith(root + "."):
        fields = topic[len(root) + 1 :].split(".")
    else:
        fields = topic.split(".")
        for place, field in enumerate(fields[1:-1], 1):
            if field in _ENVIRONMENTS:
                fields = fields[place + 1 :]
                break
    return words.line(" ".join(fields).replace("_", " "), 120)


def name_of(value: Any, room: int = 100) -> str:
    """Return what *value* is called: text and numbers as they are, objects by the name in them, lists by their items.

    Nothing, true and false have no name, and neither has an object without one.
    """
    return _name(value, room, 3)


@lru_cache(maxsize=_REMEMBERED)
def package_of(text: str) -> str:
    """Return the name in NAME-VERSION-RELEASE; any other text as it is."""
    match = _NVR.fullmatch(text)
    return match[1] if match else text


@lru_cache(maxsize=_REMEMBERED)
def person_of(text: str) -> str:
    """Return a person's name without the address, the host and the like that came with it."""
    text = text.strip()
    if match := _PERSON.fullmatch(text[:600]):
        return match[1] or match[2]
    if match := _OPENID.fullmatch(text):
        return match[1]
    if "/" in text and not text.startswith("http"):
        text = text.partition("/")[0] or text  # a Kerberos principal: mbs/mbs.example.org
    if text.count("@") == 1 and " " not in text:
        text = text.partition("@")[0] or text
    return text


_line = lru_cache(maxsize=_REMEMBERED)(words.line)


def _person(value: Any) -> str:
    """Return the name of the person that *value* is."""
    return words.line(person_of(name_of(value)), 60)


@lru_cache(maxsize=_REMEMBERED)
def _short_person(text: str) -> str:
    return _person(text)


def _package(value: Any) -> str:
    """Return the name of the package that *value* is, or is a build of."""
    if type(value) is str and len(value) <= 100:
        # builds are many: knowing one again costs more than reading it
        return match[1] if (match := _PLAIN_NVR(value)) else _short_package(value)
    return package_of(name_of(value))


@lru_cache(maxsize=_REMEMBERED)
def _short_package(text: str) -> str:
    return package_of(name_of(text))


def _name(value: Any, room: int, depth: int) -> str:
    if isinstance(value, str):
        return _line(value, room) if len(value) <= _SHORT else words.line(value, room)
    if isinstance(value, bool) or value is None:
        return ""
    if isinstance(value, (int, float)):
        return str(value)[:40]
    if isinstance(value, (dict, Mapping)) and depth:  # in this order: almost all are dicts, which is told sooner
        for key in _NAMES:
            if (inner := value.get(key)) and (name := _name(inner, room, depth - 1)):
                return name
        for key in islice(value, _CHILDREN):  # meeting_name, election_name
            if key.endswith("_name") and (name := _name(value[key], room, depth - 1)):
                return name
    if isinstance(value, list) and depth:
        names = [name for one in value[:3] if (name := _name(one, room, depth - 1))]
        more = len(value) - 3
        return words.line(", ".join(names) + (f" and {more} more" if names and more > 0 else ""), room)
    return ""


def _chosen(body: Body, keys: Iterable[str]) -> list[Body]:
    """Return the objects below *body* that are called as *keys* say."""
    return [inner for key in keys if isinstance(inner := body.get(key), Mapping)]


def _summary(title: str, body: Body, places: list[Body], talking: list[Body], agent: str) -> str:
    said = title.lower()
    subject = _subject(body, places)
    parts = [subject] if subject and subject.lower() not in said else []
    remark = _remark([*talking, body])
    if remark and remark not in subject and remark.lower() != said:
        parts.append(f"“{remark}”" if " " in remark else remark)
    result = _result([body, *_chosen(body, _JUDGED)])
    if result and result.lower() not in said and result not in parts:
        parts.append(result)
    if agent and agent not in parts:
        parts.append(f"by {agent}")
    return words.line(f"{title}: {', '.join(parts)}" if parts else title)


def _subject(body: Body, places: list[Body]) -> str:
    """Return what it is about: the first that says so, with the number or version that belongs to it."""
    if versioned := _versioned(body, "name"):
        return versioned
    for key in _SUBJECTS:
        value = body.get(key)
        if not value or isinstance(value, bool):
            continue
        if isinstance(value, Mapping):
            name = _numbered(body, value, name_of(value))
        else:
            name = name_of(value)
            if key in ("package", "pkg", "package_name"):
                name = _versioned(body, key) or name
            elif key in _NUMBERED and name.isdigit():
                of = name_of(body.get("copr") or body.get("project")) if key == "build" else ""
                name = f"{of} #{name}".lstrip()
            elif _DIGEST.fullmatch(name):
                name = name[:10]
        if name:
            return name
    for inner in places[1:]:
        for key in _DEEPER:
            if (value := inner.get(key)) and (name := name_of(value)):
                return name
    return ""


def _numbered(body: Body, thing: Body, name: str) -> str:
    """Return the *name* of an issue, pull request or repository with its number and the project it belongs to."""
    if isinstance(full := thing.get("full_name"), str):
        return words.line(full, 100)
    number = thing.get("number", thing.get("id"))
    if not isinstance(number, int) or isinstance(number, bool):
        number = None
    home = thing.get("project") or thing.get("repo") or body.get("project") or body.get("repository")
    project = ""
    if isinstance(home, Mapping) and isinstance(full := home.get("full_name"), str):
        project = words.line(full, 60)
    elif home is not thing:
        project = name_of(home, 60)
    if number is not None and ("title" in thing or "subject" in thing):
        return words.line(f"{project}#{number} {name}", 120)
    if not name and number is not None:
        return f"#{number}"
    return f"{project}: {name}" if project and name and project != name else name or project


def _is_versioned(body: Body, key: str) -> bool:
    name, version = body.get(key), body.get("version")
    return isinstance(name, str) and isinstance(version, str) and name != "" and version != ""


def _versioned(body: Body, key: str) -> str:
    """Return NAME-VERSION-RELEASE, or NAME-VERSION, where *body* says all of it; *key* is that of the name."""
    if not _is_versioned(body, key):
        return ""
    version, release = body["version"], body.get("release")
    name = name_of(body[key])
    if _NVR.fullmatch(name):
        return name
    parts = [name, _line(version[:_SHORT], 60)]
    if isinstance(release, str) and release:
        parts.append(_line(release[:_SHORT], 60))
    return "-".join(parts)


def _remark(places: list[Body]) -> str:
    """Return the first line of what somebody wrote."""
    for place in places:
        for key in _TEXTS:
            value = place.get(key)
            if not value or not isinstance(value, str):
                continue
            text = words.first_line(value, 120)
            if text and not _DOTTED.fullmatch(text):
                return text
    return ""


def _result(places: list[Body]) -> str:
    for place in places:
        for key in _RESULTS:
            value = place.get(key)
            if isinstance(value, str) and 0 < len(value) <= 40:
                return words.line(value, 40)
    return ""


def _link(places: Iterable[Body]) -> str:
    for place in places:
        for key in _LINKS:
            value = place.get(key)
            if isinstance(value, str) and (link := words.url(value.strip("<> "))):
                return link
    return ""


def _icon(places: list[Body]) -> str:
    for place in places:
        for key in _ICONS:
            if link := words.url(place.get(key)):
                return link
    return ""
