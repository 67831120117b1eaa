"""From the configuration to the schemas and texts in force: its own sections, the folder of schemas, and packages.

Of a file, the topics are what ``x-fedbus: {topics: […]}`` says, else the name of the file without its ending:
``koji.package.build.json`` is for ``koji.package.build`` and all below. Files whose name begins with ``_`` are only
referred to by others.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from fedbus.config import files
from fedbus.config.settings import SCHEMAS, Settings
from fedbus.errors import ConfigError, MessageError, WireError
from fedbus.model.limits import Limits
from fedbus.model.topic import TopicFilter
from fedbus.schemas.registry import Schemas
from fedbus.schemas.schema import EXTRA, PLACE, Schema, compile_schema, deprecated_fields
from fedbus.texts.texts import KEYS, TextError, TextRule, Texts
from fedbus.wire import strict

log = logging.getLogger(__name__)

GROUP = "fedbus.schemas"
SUFFIXES = (".json", ".yaml")
_FILES = 2000  # in one folder
_EXTRA_KEYS = frozenset({"topics", "examples", *KEYS})

_INSTALLED, _IN_FOLDER, _IN_CONFIG = 0, 1, 2  # of two for the same topics the higher counts


@dataclass(frozen=True, slots=True)
class _Raw:
    """A schema as it was written."""

    name: str  # without the ending of the file
    document: Mapping[str, Any]
    origin: str
    base: str  # the address that relative references begin at
    rank: int
    topic: str | None = None  # the filter that it was written under, where one was


@dataclass(slots=True)
class Loaded:
    """What was found, and why the rest cannot be used."""

    schemas: list[Schema] = field(default_factory=list)
    shared: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # what schemas refer to, by its address
    rules: list[TextRule] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # of packages; whoever installed them can mend that


def load(settings: Settings) -> Loaded:
    """Read and compile all schemas, and the texts that stand beside them or in the section ``texts``.

    What a package brings and cannot be used becomes a problem; the rest goes on.

    Raises:
        ConfigError: A file of the folder, or a section of the configuration, cannot be used. All faults are listed.
    """
    options = settings.schemas
    faults: list[str] = []
    raws: list[_Raw] = []
    folder = schema_folder(settings)
    if folder is not None:
        raws += _of_folder(folder, _IN_FOLDER, faults)
    for topic, document in options.topics.items():
        origin = settings.origins.get(f"schemas.topics.{topic}", str(settings.directory))
        raws.append(_Raw(topic, document, f"{origin}: schemas.topics", PLACE, _IN_CONFIG, topic))
    loaded = Loaded(rules=_rules_of_config(settings, faults))
    if options.installed:
        for raw in _of_packages(loaded.problems):
            raws.append(raw)
    others = _addresses(raws)
    seen: dict[tuple[str, int], str] = {}
    for raw in raws:
        if raw.name.startswith("_"):
            loaded.shared.setdefault(raw.base, raw.document)
            continue
        told = loaded.problems if raw.rank == _INSTALLED else faults
        try:
            schema, rules = _finish(raw, settings, others)
            for topic in schema.topics:
                if first := seen.get((topic, schema.rank)):
                    raise ConfigError(f"{schema.origin}: {first} is for {topic} too; join them, or remove one")
                seen[topic, schema.rank] = schema.origin
        except ConfigError as error:
            told += error.problems
            continue
        loaded.schemas.append(schema)
        loaded.rules += rules
    if faults:
        raise ConfigError(sorted(set(faults)))
    loaded.schemas.sort(key=lambda one: (one.topics, -one.rank))
    for problem in loaded.problems:
        log.error("schemas of packages: %s", problem)
    return loaded


def open_schemas(settings: Settings) -> tuple[Schemas, Texts]:
    """Return the schemas and texts of *settings*.

    Raises:
        ConfigError: As :func:`load`.
    """
    loaded = load(settings)
    return Schemas(loaded.schemas, settings.schemas), Texts(loaded.rules, root=settings.naming.root)


def schema_folder(settings: Settings) -> Path | None:
    """Return the folder of schemas: the one that is set, else ``schemas`` below the configuration where it exists."""
    if settings.schemas.folder is not None:
        return settings.schemas.folder
    default = settings.directory / SCHEMAS
    return default if default.is_dir() else None


# --- where they come from --------------------------------------------------------------------------------------


def _of_folder(folder: Path, rank: int, faults: list[str]) -> Iterator[_Raw]:
    guarded = rank != _INSTALLED  # the code of a package stands beside its schemas, and was run already
    try:
        exposure = files.exposure(folder.stat()) if guarded else ""
        names = sorted(path.name for path in folder.iterdir() if _is_ours(path.name))
    except OSError as error:
        faults.append(f"{folder}: cannot read the folder of schemas: {error.strerror}")
        return
    if exposure:
        faults.append(f"{folder}: {exposure}")
        return
    if len(names) > _FILES:
        faults.append(f"{folder}: holds {len(names)} files of schemas; {_FILES} at most")
        return
    for name in names:
        parse = _parse_json if name.endswith(".json") else files.parse
        if guarded:
            read = files.read(folder / name, parse)
        else:
            with (folder / name).open("rb") as file:
                read = parse(file.read(files.FILE_LIMIT + 1), str(folder / name))
        if read.problems:
            faults += map(str, read.problems)
        else:
            stem = name.rpartition(".")[0]
            yield _Raw(stem, read.values, str(folder / name), PLACE + name, rank)


def _is_ours(name: str) -> bool:
    return name.endswith(SUFFIXES) and not name.startswith(".")


def _parse_json(data: bytes, name: str) -> files.Document:
    document = files.Document(name)
    try:
        document.values = strict.decode(data, Limits())
    except WireError as error:
        document.problems.append(files.Problem(name, 0, f"is no JSON object: {error}"))
    return document


def _of_packages(problems: list[str]) -> Iterator[_Raw]:
    if not _may_have_entry_points():
        return
    import importlib.metadata  # 20 ms, and scripts start often

    for entry in importlib.metadata.entry_points(group=GROUP):
        where = f"entry point {entry.name!r} ({entry.value})"
        try:
            found = entry.load()
            if callable(found) and not isinstance(found, ModuleType):
                found = found()
            yield from _of_object(found, where, problems)
        except Exception as error:
            problems.append(f"{where}: {type(error).__name__}: {error}")


def _may_have_entry_points() -> bool:
    """Whether any package seems to have the entry point group; a look into files that takes a fifth of parsing them."""
    wanted = b"[" + GROUP.encode() + b"]"
    for folder in sys.path:
        try:
            with os.scandir(folder or ".") as entries:
                for one in entries:
                    if one.name.endswith((".dist-info", ".egg-info")):
                        try:
                            with open(os.path.join(one.path, "entry_points.txt"), "rb") as file:  # noqa: PTH118, PTH123
                                if wanted in file.read(2**18):
                                    return True
                        except OSError:
                            continue
                    elif one.name.endswith((".egg", ".zip")):
                        return True
        except OSError:
            continue
    return False


def _of_object(found: Any, where: str, problems: list[str]) -> Iterator[_Raw]:
    """What an entry point leads to: a package with files, or a mapping of topics to schemas."""
    if isinstance(found, ModuleType):
        paths = [Path(one) for one in getattr(found, "__path__", ())]
        if not paths:
            problems.append(f"{where}: {found.__name__} is no package, so it has no folder of schemas; name a mapping")
        for path in paths:
            for raw in _of_folder(path, _INSTALLED, problems):
                yield _Raw(raw.name, raw.document, f"{where}: {Path(raw.origin).name}", raw.base, _INSTALLED)
    elif isinstance(found, Mapping):
        for topic, document in found.items():
            # once through JSON: whatever it is made of, it is plain data afterwards
            plain = json.loads(json.dumps(document))
            if not isinstance(plain, dict) or not isinstance(topic, str):
                problems.append(f"{where}: {topic!r} is no topic with a schema; name a mapping of topics to schemas")
                continue
            yield _Raw(topic, plain, where, PLACE, _INSTALLED, topic)
    else:
        problems.append(f"{where}: neither a package with files of schemas nor a mapping of topics to schemas")


def _addresses(raws: list[_Raw]) -> dict[str, Mapping[str, Any]]:
    """Return all schemas by the addresses that a reference may name."""
    found: dict[str, Mapping[str, Any]] = {}
    for raw in sorted(raws, key=lambda one: one.rank):
        if raw.base != PLACE:
            found[raw.base] = raw.document
        if isinstance(own := raw.document.get("$id"), str):
            found[own.removesuffix("#")] = raw.document
    return found


# --- from what is written to what is used ----------------------------------------------------------------------


def _finish(raw: _Raw, settings: Settings, others: Mapping[str, Any]) -> tuple[Schema, list[TextRule]]:
    document, naming = raw.document, settings.naming
    extra = document.get(EXTRA, {})
    if not isinstance(extra, dict) or not set(extra) <= _EXTRA_KEYS:
        unknown = sorted(set(extra) - _EXTRA_KEYS) if isinstance(extra, dict) else []
        fault = f"has the unknown key {unknown[0]!r}" if unknown else "must be a mapping"
        raise ConfigError(f"{raw.origin}: {EXTRA} {fault}; known here: {', '.join(sorted(_EXTRA_KEYS))}")
    written = extra.get("topics", [raw.topic if raw.topic is not None else raw.name])
    if not isinstance(written, list) or not written or not all(isinstance(one, str) for one in written):
        raise ConfigError(f"{raw.origin}: {EXTRA}.topics must be a list of topics")
    try:
        topics = tuple(TopicFilter.parse(one, naming).text for one in written)
    except MessageError as error:
        named = "topics" in extra or raw.topic is not None
        hint = "" if named else f"; name the file after its topic, or say {EXTRA}: {{topics: […]}}"
        raise ConfigError(f"{raw.origin}: {error}{hint}") from error
    texts = {key: value for key, value in extra.items() if key in KEYS}
    rules = []
    for one in written if texts else ():
        try:
            rules.append(TextRule.parse(one, texts, naming=naming, rank=raw.rank, origin=raw.origin))
        except TextError as error:
            raise ConfigError(f"{raw.origin}: {EXTRA}.{error}") from error
    validator = compile_schema(
        document, origin=raw.origin, base=raw.base, others=others, formats=settings.schemas.formats
    )
    schema = Schema(
        name=raw.name,
        topics=topics,
        document=document,
        origin=raw.origin,
        texts=texts,
        rank=raw.rank,
        base=raw.base,
        validator=validator,
        deprecated=document.get("deprecated") is True,
        deprecated_fields=tuple(deprecated_fields(document)),
    )
    return schema, rules


def _rules_of_config(settings: Settings, faults: list[str]) -> list[TextRule]:
    rules = []
    for topic, values in settings.texts.items():
        try:
            rules.append(TextRule.parse(topic, values, naming=settings.naming, rank=_IN_CONFIG + 1))
        except TextError as error:
            origin = settings.origins.get(f"texts.{topic}.{error.key}", settings.origins.get(f"texts.{topic}", ""))
            faults.append(f"{origin or settings.directory}: texts.{topic}: {error}")
    return rules
