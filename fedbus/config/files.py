"""Many YAML files to one mapping that remembers the file and line of every value.

YAML is read strictly: what two readers could understand differently (``no``, ``22:30``, ``017``), what can grow out of
all proportion (aliases), and what names code (tags) is refused with its line. No object is ever built from a tag:
the reader walks the events of the parser and knows mappings, lists, text, numbers, true, false and null, no more.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fedbus.errors import ConfigError

SYSTEM_FOLDER = Path("/etc/fedbus.d")
LOCAL_FOLDER = Path("etc/fedbus.d")
VARIABLE = "FEDBUS_CONFIG"

FILE_LIMIT = 2**20  # bytes of one file
COUNT_LIMIT = 1000  # files in a folder
DEPTH_LIMIT = 32  # mappings and lists inside each other
PROBLEM_LIMIT = 100  # reported for one file; after so many nobody reads on

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One fault; they sort in the order in which somebody would mend them."""

    file: str
    line: int  # from 1; 0: the file as a whole
    text: str

    def __str__(self) -> str:
        text = f"{self.file}:{self.line}: {self.text}" if self.line else f"{self.file}: {self.text}"
        # a key or a file's name could hold what a terminal obeys
        return text if text.isprintable() else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """Where a value was written."""

    file: str
    line: int

    def problem(self, text: str) -> Problem:
        return Problem(self.file, self.line, text)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(slots=True)
class Document:
    """What one file, or all files of a folder, hold.

    ``origins`` has an entry for every key and every item of a list. ``doubtful`` are the paths of values that were
    refused and stand in ``values`` only so that the checks can go on. ``whole`` is false when parts are missing.
    """

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    doubtful: set[KeyPath] = field(default_factory=set)
    variables: dict[KeyPath, str] = field(default_factory=dict)  # the text before ${...} was replaced
    whole: bool = True

    def origin(self, path: KeyPath) -> Origin:
        """Return where *path* was written, or its nearest parent, or the document itself (line 0)."""
        while path:
            if found := self.origins.get(path):
                return found
            path = path[:-1]
        return Origin(self.name, 0)


def dotted(path: KeyPath) -> str:
    """Return *path* as people write it: ``policy[0].topics``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


# --- the folder ------------------------------------------------------------------------------------------------


def find_folder(
    explicit: str | Path | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    defaults: tuple[Path, ...] = (SYSTEM_FOLDER, LOCAL_FOLDER),
) -> Path:
    """Return the absolute path of the folder to read: *explicit*, else ``FEDBUS_CONFIG``, else the first that exists.

    Raises:
        ConfigError: The folder named does not exist, or none is named and there is no default one.
    """
    named = str(explicit) if explicit else environ.get(VARIABLE, "")
    if named:
        folder = Path(named)
        if not folder.is_dir():
            # programs name it too, and know nothing of --config
            how = "" if explicit else f" named by {VARIABLE}"
            what = "is not a folder" if folder.exists() else "does not exist"
            raise ConfigError(
                f"{named}: the configuration folder{how} {what}; `fedbus init {named} --endpoint "
                "SERVICE.HOST` makes one"
            )
        return Path(os.path.abspath(folder))  # noqa: PTH100 - a link must stay visible
    for folder in defaults:
        if folder.is_dir():
            return Path(os.path.abspath(folder))  # noqa: PTH100
    raise ConfigError(
        f"no configuration: neither {' nor '.join(map(str, defaults))} exists; name a folder with --config DIR or "
        f"{VARIABLE}, or make one with `fedbus init DIR --endpoint SERVICE.HOST`"
    )


def load_folder(folder: Path, environ: Mapping[str, str] = os.environ) -> Document:
    """Read and merge every ``*.yaml`` of *folder* in the order of names; faults are in ``problems``, not raised."""
    merged = Document(str(folder))
    owner_lines: dict[str, Origin] = {}
    for path in _config_files(folder, merged):
        document = read(path)
        _expand(document, environ)
        merged.problems += document.problems
        merged.whole = merged.whole and document.whole
        endpoints = document.values.get("endpoints")
        for name in endpoints if isinstance(endpoints, dict) else ():
            origin = document.origin(("endpoints", name))
            if name in owner_lines:
                merged.problems.append(
                    origin.problem(f"duplicate endpoint {name!r}: {owner_lines[name]} defines it already; remove one")
                )
            owner_lines.setdefault(name, origin)
        _merge(merged, document)
    return merged


Fingerprint = tuple[tuple[str, int, int, int, int], ...]


def fingerprint(folder: Path, suffixes: tuple[str, ...] = (".yaml",)) -> Fingerprint:
    """Return what changes when a file of *folder* is edited, replaced, added or removed; empty when it cannot be read.

    Each file is ``(name, mtime_ns, ctime_ns, size, inode)``; nothing is opened, so this is cheap enough to poll.
    """
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_ours(entry.name, suffixes):
                    state = entry.stat(follow_symlinks=False)
                    found.append((entry.name, state.st_mtime_ns, state.st_ctime_ns, state.st_size, state.st_ino))
    except OSError:
        return ()
    return tuple(sorted(found))


def _is_ours(name: str, suffixes: tuple[str, ...] = (".yaml",)) -> bool:
    # editors leave .#10-bus.yaml and .10-bus.yaml.swp beside the file
    return name.endswith(suffixes) and not name.startswith(".")


def _config_files(folder: Path, merged: Document) -> list[Path]:
    def refuse(text: str) -> list[Path]:
        merged.problems.append(Problem(str(folder), 0, text))
        merged.whole = False
        return []

    try:
        own, state = folder.lstat(), folder.stat()
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        return refuse(f"cannot read the configuration folder: {error.strerror}")
    for text in {text: None for text in (exposure(own, link=True), exposure(state)) if text}:
        refuse(text)
    for name in names:
        if name.endswith(".yml"):
            merged.problems.append(Problem(str(folder / name), 0, "is not read; rename it to end in .yaml"))
    ours = [folder / name for name in names if _is_ours(name)]
    if not ours:
        return refuse("holds no *.yaml file; `fedbus init DIR --endpoint SERVICE.HOST` writes a set to begin with")
    if len(ours) > COUNT_LIMIT:
        return refuse(f"holds {len(ours)} *.yaml files; {COUNT_LIMIT} at most")
    return ours


def exposure(state: os.stat_result, *, link: bool = False) -> str:
    """Return why somebody else could have written what *state* describes, or nothing."""
    if state.st_uid not in (0, os.geteuid()):
        return f"belongs to user id {state.st_uid}; it must belong to root or to user id {os.geteuid()}: use chown"
    # the mode of a symbolic link is always 0777 and means nothing
    if state.st_mode & 0o022 and not (link and stat.S_ISLNK(state.st_mode)):
        return f"has mode {stat.S_IMODE(state.st_mode):04o}, so others can change it; use chmod go-w"
    return ""


def read(path: Path, reader: Callable[[bytes, str], Document] | None = None) -> Document:
    """Read one file, with *reader* for another language than YAML; faults are in ``problems``.

    Everything is checked on the open file, so it cannot be exchanged in between.
    """
    document = Document(str(path))

    def refuse(text: str) -> Document:
        document.problems.append(Problem(str(path), 0, text))
        document.whole = False
        return document

    try:
        # O_NONBLOCK: a FIFO would keep us waiting for ever
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if path.is_symlink():
            return refuse(
                f"is a symbolic link (mode {stat.S_IMODE(path.lstat().st_mode):04o}); put the file itself here"
            )
        return refuse(f"cannot be read: {error.strerror}")
    with os.fdopen(descriptor, "rb") as stream:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            return refuse(f"is no regular file (mode {stat.S_IMODE(state.st_mode):04o}); remove it from the folder")
        if fault := exposure(state):
            return refuse(fault)
        try:
            data = stream.read(FILE_LIMIT + 1)
        except OSError as error:
            return refuse(f"cannot be read: {error.strerror}")
    return (reader or parse)(data, str(path))


# --- one file --------------------------------------------------------------------------------------------------


def parse(data: bytes, name: str) -> Document:
    """Read *data*, the bytes of one file called *name*; faults are in ``problems``, never raised."""
    document = Document(name)
    reader = _Reader(document)
    try:
        reader.read(_text(data, name))
    except _Stop as stop:
        document.problems.append(stop.problem)
        document.whole = False
        document.doubtful.update(reader.unfinished())
    return document


class _Stop(Exception):
    """The rest of this file cannot be read."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem


def _text(data: bytes, name: str) -> str:
    if len(data) > FILE_LIMIT:
        raise _Stop(Problem(name, 0, f"is larger than {FILE_LIMIT} bytes; split it into several files"))
    if data.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"\x00\x00\xfe\xff")):
        raise _Stop(Problem(name, 1, "begins with a byte order mark; save it as plain UTF-8"))
    if (position := data.find(b"\0")) >= 0:
        line = data.count(b"\n", 0, position) + 1
        raise _Stop(Problem(name, line, "holds a NUL byte; save it as plain UTF-8 text (is it UTF-16?)"))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _Stop(Problem(name, line, f"is not UTF-8: byte 0x{data[error.start]:02x}; save it as UTF-8")) from None


@dataclass(slots=True)
class _Frame:
    """A mapping or list whose end has not been read yet."""

    path: KeyPath
    container: dict[str, Any] | list[Any]
    key: str | None = None


class _Reader:
    """The events of one YAML document, to values and origins."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._stack: list[_Frame] = []
        self._documents = 0

    def read(self, text: str) -> None:
        for event in self._events(text):
            self._take(event)

    def unfinished(self) -> list[KeyPath]:
        """Return the paths of what has been begun and whose end has not been read."""
        return [frame.path for frame in self._stack if frame.path]

    def _events(self, text: str) -> Iterator[Any]:
        try:
            yield from yaml.parse(text, Loader=yaml.CSafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 0
            parts = [part for part in (error.context, error.problem) if part]
            raise _Stop(Problem(self._document.name, line, f"is not YAML: {': '.join(parts)}")) from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise _Stop(Problem(self._document.name, line, f"is not YAML: {error.reason}")) from None
        except yaml.YAMLError as error:
            raise _Stop(Problem(self._document.name, 0, f"is not YAML: {error}")) from None

    def _take(self, event: Any) -> None:
        line = event.start_mark.line + 1
        if isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            self._stack.pop()
        elif isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self._stop(line, "a second document begins here; a file holds one, so remove the line ---")
            if event.version or event.tags:
                self._stop(line, "directives (%YAML, %TAG) are not used here; remove the line")
        elif isinstance(event, yaml.AliasEvent):
            self._stop(line, f"alias *{event.anchor} is not allowed; write the value out")
        elif isinstance(event, yaml.NodeEvent):
            self._take_node(event, line)

    def _take_node(self, event: Any, line: int) -> None:
        if event.anchor:
            self._refuse(line, f"anchor &{event.anchor} is not allowed; write the value out where it is needed")
        if event.tag is not None:
            self._refuse(line, f"tag {event.tag!r} is not allowed; remove it, and quote the value if it is text")
        scalar = isinstance(event, yaml.ScalarEvent)
        frame = self._stack[-1] if self._stack else None
        if frame is None:
            if not isinstance(event, yaml.MappingStartEvent):
                empty = scalar and not event.value
                what = "is empty" if empty else "does not hold a mapping"
                self._stop(line, f"{what}; the file must hold `key: value` lines")
            self._stack.append(_Frame((), self._document.values))
            return
        if isinstance(frame.container, dict) and frame.key is None:
            if not scalar:
                self._stop(line, "a key must be plain text, not a mapping or a list")
            frame.key = self._key(event, frame, line)
            return
        path = (*frame.path, frame.key if frame.key is not None else len(frame.container))
        value: Any
        if scalar:
            value = self._scalar(event, path, line)
        else:
            if len(self._stack) >= DEPTH_LIMIT:
                self._stop(line, f"is nested more than {DEPTH_LIMIT} levels deep")
            value = {} if isinstance(event, yaml.MappingStartEvent) else []
        if isinstance(frame.container, dict):
            assert frame.key is not None
            frame.container[frame.key] = value
            frame.key = None
        else:
            self._document.origins[path] = Origin(self._document.name, line)
            frame.container.append(value)
        if not scalar:
            self._stack.append(_Frame(path, value))

    def _key(self, event: Any, frame: _Frame, line: int) -> str:
        text = str(event.value)
        if _is_plain(event):
            if text in ("<<", "="):
                self._stop(line, f"the key {text} (a merge) is not allowed; write the values out")
            try:
                value = resolve(text)
            except ValueError as error:
                self._refuse(line, f"the key {error}")
            else:
                if not isinstance(value, str):
                    self._refuse(line, f'the key {text or "(empty)"} is not text; write "{text}"')
        if "\0" in text:
            self._refuse(line, "a key holds a NUL character; remove it")
        path = (*frame.path, text)
        assert isinstance(frame.container, dict)
        if text in frame.container:
            first = self._document.origins[path].line
            self._refuse(line, f"duplicate key {text!r}: line {first} has it already; remove one")
        self._document.origins[path] = Origin(self._document.name, line)
        return text

    def _scalar(self, event: Any, path: KeyPath, line: int) -> Any:
        text = str(event.value)
        if "\0" in text:
            self._refuse(line, f"{dotted(path)} holds a NUL character; remove it")
            self._document.doubtful.add(path)
        if not _is_plain(event):
            return text
        try:
            return resolve(text)
        except ValueError as error:
            self._refuse(line, f"{dotted(path)}: {error}")
            self._document.doubtful.add(path)
            return text

    def _refuse(self, line: int, text: str) -> None:
        if len(self._document.problems) >= PROBLEM_LIMIT:
            self._stop(line, "has too many faults; those after this line are not listed")
        self._document.problems.append(Problem(self._document.name, line, text))

    def _stop(self, line: int, text: str) -> None:
        raise _Stop(Problem(self._document.name, line, text))


def _is_plain(event: Any) -> bool:
    return not event.style and bool(event.implicit[0])  # the C parser says "" for plain


_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"-?(0|[1-9][0-9]{0,17})\.[0-9]{1,30}")
# What YAML 1.1 and 1.2 (or their readers) do not agree on, or what is a number in one spelling too many.
_TRAPS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?i)(y|yes|n|no|on|off|true|false)"), "write true or false"),
    (re.compile(r"(?i)null"), "write null in lower case"),
    (re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"), "some readers take it for a number to the base 60"),
    (re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?"), "some readers take it for a date"),
    (re.compile(r"[-+]?0[0-7_]+|[-+]?0o[0-7_]+"), "some readers take it for an octal number"),
    (re.compile(r"[-+]?0[xX][0-9a-fA-F_]+|[-+]?0b[01_]+"), "write the number in decimal"),
    (re.compile(r"[-+]?(\.(?i:inf)|\.(?i:nan))|\.(?i:nan)"), "only finite numbers are allowed"),
    (re.compile(r"[-+]?[0-9][0-9_]*"), "write a number of at most 18 digits without sign +, leading 0, or _"),
    (re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?"), "write the number as 12 or 1.5"),
    (re.compile(r"<<|="), "it has a meaning of its own in YAML"),
)


def resolve(text: str) -> str | int | float | bool | None:
    """Return the value of the plain (unquoted) scalar *text*.

    Raises:
        ValueError: Readers of YAML do not agree what it is.
    """
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    for pattern, hint in _TRAPS:
        if pattern.fullmatch(text):
            shown = text if len(text) <= 40 else text[:40] + "…"
            raise ValueError(f'{shown} without quotes is ambiguous ({hint}); for text write "{shown}"')
    return text


# --- the environment, and several files into one ---------------------------------------------------------------

_VARIABLE = re.compile(r"\$(?:\$(?=\{)|\{([^}]*)(\}?))")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _expand(document: Document, environ: Mapping[str, str]) -> None:
    """Replace ``${NAME}`` in every text of *document*; ``$${`` stands for ``${`` itself."""
    stack: list[tuple[KeyPath, Any]] = [((), document.values)]
    while stack:
        path, container = stack.pop()
        for key, value in container.items() if isinstance(container, dict) else enumerate(container):
            here = (*path, key)
            if isinstance(value, (dict, list)):
                stack.append((here, value))
            elif isinstance(value, str) and "${" in value:
                container[key] = _expand_text(document, here, value, environ)


def _expand_text(document: Document, path: KeyPath, text: str, environ: Mapping[str, str]) -> str:
    def replace(match: re.Match[str]) -> str:
        if match[0] == "$":
            return match[0]
        if match[0] == "$$":
            return "$"
        name = match[1]
        if not match[2] or not _VARIABLE_NAME.fullmatch(name):
            fault = f"{match[0]!r} names no environment variable; write ${{NAME}}, or $${{ for ${{ itself"
        elif name not in environ:
            fault = f"the environment variable {name} is not set; set it, or write the value here"
        elif any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in environ[name]):
            fault = f"the environment variable {name} holds control characters or is not UTF-8"
        else:
            document.variables[path] = text
            return environ[name]
        document.problems.append(document.origin(path).problem(f"{dotted(path)}: {fault}"))
        document.doubtful.add(path)
        return match[0]

    return _VARIABLE.sub(replace, text)


def _merge(target: Document, source: Document) -> None:
    """Lay *source* over *target*: mappings key by key, anything else is replaced whole."""

    replaced: set[KeyPath] = set()
    pending: list[tuple[KeyPath, dict[str, Any], dict[str, Any]]] = [((), target.values, source.values)]
    while pending:
        path, old, new = pending.pop()
        for key, value in new.items():
            here = (*path, key)
            if isinstance(value, dict) and isinstance(old.get(key), dict):
                pending.append((here, old[key], value))
            else:
                if key in old:
                    replaced.add(here)
                old[key] = value
    if replaced:
        # what was said of the old values, and of all inside them
        for path in [path for path in target.origins if _is_within(path, replaced)]:
            del target.origins[path]
            target.doubtful.discard(path)
            target.variables.pop(path, None)
    # an origin that is known already belongs to a mapping that both have; the first file began it
    for known, origin in source.origins.items():
        target.origins.setdefault(known, origin)
    target.doubtful |= source.doubtful
    target.variables.update(source.variables)


def _is_within(path: KeyPath, parents: set[KeyPath]) -> bool:
    return any(path[:end] in parents for end in range(1, len(path) + 1))
