"""Finds the consumers that a hub is to run: in entry points, modules, the hub's folder, and files named by hand.

A consumer that cannot be loaded never keeps the others from running: it becomes a problem, with the file and line that
asked for it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import logging
import os
import stat
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fedbus.errors import ConfigError
from fedbus.hub.consumer import MARK, Callback, Consumer, Declaration, check_name, name_of, takes_batches
from fedbus.hub.enabled import Enabled
from fedbus.hub.isolated import Isolated
from fedbus.hub.options import Batch, ConsumerSettings
from fedbus.model.limits import Limits
from fedbus.model.message import Message

log = logging.getLogger(__name__)

GROUP = "fedbus.consumers"
_FILE_BYTES = 2**20


@dataclass(slots=True)
class Found:
    """What was loaded, and why the rest was not, each with its origin."""

    consumers: list[Enabled] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    """Those that run already, made of the same; they were not loaded again."""
    failed: dict[str, str] = field(default_factory=dict)
    """What those that could not be loaded are made of, by name."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Something in a module that can be run as a consumer."""

    attribute: str
    name: str
    target: Any  # a class, or a function that the decorator has marked


def find(
    configured: Mapping[str, ConsumerSettings],
    *,
    folder: Path | None = None,
    files: Sequence[str] = (),
    only: Sequence[str] = (),
    since: str | None = None,
    origins: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    running: Mapping[str, str] | None = None,
) -> Found:
    """Load the *configured* consumers and those in *files* (``FILE[:NAME]``), of these the ones named in *only*.

    *since* says where those without a cursor begin, in place of what they declare. *origins* maps the dotted keys of
    the configuration to ``FILE:LINE``. *running* says what those that run are made of: these are not loaded again.

    Raises:
        ConfigError: What was asked for by hand, in *files* or *only*, is not there; a file cannot be loaded, or none of
            those in *only*; or there is no consumer at all.
    """
    found = Found()
    running = running or {}
    asked = [*_from_files(files)]
    names = {one.candidate.name for one in asked}
    for one in configured.values():
        if not one.enabled or (only and one.name not in only):
            continue
        if one.name in names:
            found.problems.append(
                f"{one.origin}: consumer {one.name!r} is also in a file named with --consumer; rename one of them"
            )
            continue
        made_of = _made_of(one, folder, since, limits)
        if running.get(one.name) == made_of:
            found.kept.add(one.name)
            continue
        try:
            loaded = load_configured(one, folder=folder, since=since, origins=origins or {}, limits=limits or Limits())
            found.consumers.append(replace(loaded, made_of=made_of))
        except ConfigError as error:
            found.problems += error.problems
            found.failed[one.name] = made_of
    known = names | set(configured)
    for name in only:
        if name not in known:
            raise ConfigError(
                f"--only {name}: there is no such consumer; there are: {', '.join(sorted(known)) or 'none'}"
            )
        if name in configured and not configured[name].enabled and name not in names:
            raise ConfigError(f"--only {name}: {configured[name].origin} says enabled: false; change that")
    for named in asked:
        if only and named.candidate.name not in only:
            continue
        if running.get(named.candidate.name) == named.made_of:
            found.kept.add(named.candidate.name)
        else:
            found.consumers.append(_enable_asked(named, since))
    _tell_of_unused(configured, folder)
    if only and not (found.consumers or found.kept):
        raise ConfigError([f"--only: nothing that it names can be loaded: {problem}" for problem in found.problems])
    if not (found.consumers or found.kept or found.problems):
        raise ConfigError(
            "there is no consumer to run; enable one below `consumers:` in the configuration, or name a file with "
            "--consumer FILE.py"
        )
    return found


def _made_of(wanted: ConsumerSettings, folder: Path | None, since: str | None, limits: Limits | None) -> str:
    """Return what tells a consumer from itself after a change: its settings, and its source where that is a file.

    A module is not loaded again by a running program, so what it holds does not count.
    """
    parts = {**asdict(replace(wanted, origin="")), "since of all": since, "limits": asdict(limits or Limits())}
    name = wanted.use.partition(":")[0]
    if folder is not None and "/" not in name and (name.endswith(".py") or "." not in name):
        path = folder / (name if name.endswith(".py") else f"{name}.py")
        try:
            parts["source"] = hashlib.sha256(path.read_bytes()[: _FILE_BYTES + 1]).hexdigest()
        except OSError:
            parts["source"] = ""
    return hashlib.sha256(repr(sorted(parts.items())).encode()).hexdigest()


def _tell_of_unused(configured: Mapping[str, ConsumerSettings], folder: Path | None) -> None:
    """A file in the folder is not enough; say so to those who expect it."""
    used = {one.use.partition(":")[0].removesuffix(".py") for one in configured.values()}
    for path in sorted(folder.glob("*.py")) if folder is not None else ():
        if path.stem not in used and not path.name.startswith("_"):
            log.info("%s is not used: nothing below `consumers:` in the configuration names it", path)


def enable(consumer: Consumer | Callable[[Message], object]) -> Enabled:
    """Return how to run a *consumer* that a program has made itself: an object, or a function that is marked.

    Raises:
        ConfigError: It is neither, or names no topics.
    """
    if isinstance(consumer, Consumer):
        kind: Any = type(consumer)
        name = consumer.name or name_of(kind)
        try:
            check_name(name)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        topics = _topics(consumer, (), f"consumer {name!r}")
        batch = _batch(kind, consumer.batch, f"consumer {name!r}")
        _check_call(consumer, batch, f"consumer {name!r}")
        return Enabled(name=name, consumer=consumer, topics=topics, since=consumer.since, batch=batch)
    candidate = _candidate(getattr(consumer, "__name__", repr(consumer)), consumer, "Bus.hub")
    batch = _batch(consumer, None, f"consumer {candidate.name!r}")
    return Enabled(
        name=candidate.name,
        consumer=_build(consumer, {}, "Bus.hub", batch),
        topics=_topics(consumer, (), f"consumer {candidate.name!r}"),
        since=_since(consumer),
        batch=batch,
    )


# --- what the configuration names ------------------------------------------------------------------------------


def load_configured(
    wanted: ConsumerSettings,
    *,
    folder: Path | None,
    since: str | None,
    origins: Mapping[str, str],
    limits: Limits | None = None,
) -> Enabled:
    """Load one consumer, in a process of its own where it is to have one; *limits* are for the messages there.

    Raises:
        ConfigError: It cannot be loaded, or its settings are not what it takes.
    """
    where = f"{wanted.origin}: consumer {wanted.name!r}"
    if wanted.isolation == "process":
        isolated = Isolated(wanted, folder=folder, since=since, origins=origins, limits=limits or Limits())
        return Enabled(
            name=wanted.name,
            consumer=isolated,
            topics=isolated.topics,
            since=isolated.since,
            attempts=wanted.attempts,
            timeout=wanted.timeout,
            workers=wanted.workers,
            ordered_by=wanted.ordered_by,
            batch=isolated.batch,
            origin=wanted.origin,
        )
    candidates, chosen = _resolve(wanted, folder, where)
    candidate = _one(candidates, chosen, wanted.name, f"{where}: {wanted.use}")
    settings = dict(wanted.settings)
    at = origins.get(f"consumers.{wanted.name}.settings", wanted.origin)
    schema = getattr(candidate.target, "schema", None) if inspect.isclass(candidate.target) else None
    if schema is not None:
        _check_settings(schema, settings, wanted, origins)
    batch = _batch(candidate.target, wanted.batch, where)
    return Enabled(
        name=wanted.name,
        consumer=_build(candidate.target, settings, f"{at}: consumer {wanted.name!r}", batch),
        topics=_topics(candidate.target, wanted.topics, where),
        since=since or wanted.since or _since(candidate.target),
        attempts=wanted.attempts,
        timeout=wanted.timeout,
        workers=wanted.workers,
        ordered_by=wanted.ordered_by,
        batch=batch,
        origin=wanted.origin,
    )


def _resolve(wanted: ConsumerSettings, folder: Path | None, where: str) -> tuple[list[_Candidate], str]:
    """Return what the module that ``use`` names holds, and which of it is asked for (empty: the only one)."""
    use = wanted.use
    # of one value there may be several, where a package is found twice on the path
    entries = {one.value: one for one in importlib.metadata.entry_points(group=GROUP) if one.name == use}
    if len(entries) > 1:
        values = ", ".join(sorted(entries))
        raise ConfigError(
            f"{where}: several packages have an entry point {use!r}: {values}; write one of these instead"
        )
    for entry in entries.values():
        loaded = _guarded(entry.load, f"{where}: entry point {use!r} ({entry.value})")
        if isinstance(loaded, types.ModuleType):
            return _candidates(loaded), ""
        return [_candidate(entry.attr or use, loaded, f"{where}: entry point {use!r}")], ""
    path, _, chosen = use.partition(":")
    if path.endswith(".py"):
        return _candidates(_load_from_folder(folder, path, where)), chosen
    if "/" in path or not all(part.isidentifier() for part in path.split(".")):
        raise ConfigError(
            f"{where}: {use!r} is neither an entry point of {GROUP}, a module, module:NAME nor a FILE.py of the hub's "
            "folder; correct `use`"
        )
    if folder is not None and "." not in path and (folder / f"{path}.py").exists():
        return _candidates(_load_from_folder(folder, f"{path}.py", where)), chosen
    module = _guarded(lambda: importlib.import_module(path), f"{where}: module {path!r}")
    return _candidates(module), chosen


def _load_from_folder(folder: Path | None, name: str, where: str) -> types.ModuleType:
    if folder is None:
        raise ConfigError(f"{where}: {name!r} is a file, but hub.folder is not set; name the folder of consumers there")
    inside, path = folder.resolve(), (folder / name).resolve()
    if not path.is_relative_to(inside):
        raise ConfigError(f"{where}: {name!r} is outside {folder}; only files in hub.folder are loaded, put it there")
    return _load(path, where, guarded=True)


# --- what was named by hand ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Asked:
    """A consumer in a file that was named by hand."""

    where: str
    candidate: _Candidate
    made_of: str


def _from_files(files: Iterable[str]) -> Iterable[_Asked]:
    seen: dict[str, str] = {}
    for text in files:
        where = f"--consumer {text}"
        path, chosen = text, ""
        if not text.endswith(".py") and ".py:" in text:
            path, _, chosen = text.rpartition(":")
        module = _load(Path(path), where, guarded=False)
        candidates = _candidates(module)
        if chosen or not candidates:
            candidates = [_one(candidates, chosen, chosen, where)]
        for candidate in candidates:
            if candidate.name in seen:
                raise ConfigError(
                    f"{where}: a consumer named {candidate.name!r} is in {seen[candidate.name]} too; rename one of them"
                )
            seen[candidate.name] = text
            yield _Asked(where, candidate, f"{where} {hashlib.sha256(vars(module)['__source__']).hexdigest()}")


def _enable_asked(asked: _Asked, since: str | None) -> Enabled:
    where, target = asked.where, asked.candidate.target
    batch = _batch(target, None, where)
    return Enabled(
        name=asked.candidate.name,
        consumer=_build(target, {}, f"{where}: consumer {asked.candidate.name!r}", batch),
        topics=_topics(target, (), where),
        since=since or _since(target),
        batch=batch,
        origin=where,
        made_of=asked.made_of,
    )


# --- modules ---------------------------------------------------------------------------------------------------


def _load(path: Path, where: str, *, guarded: bool) -> types.ModuleType:
    """Run the file at *path* as a module; what is run is what was checked.

    *guarded*: the file and its folder must belong to root or to us, and nobody else may write them. A file named by
    hand must only not be writable by everybody.
    """
    source = _read(path, where, guarded=guarded)
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:8]
    name = f"fedbus_consumer_{path.stem.replace('-', '_')}_{digest}"
    if (known := sys.modules.get(name)) is not None and getattr(known, "__source__", None) == source:
        return known
    module = types.ModuleType(name)
    module.__file__ = str(path)
    module.__dict__["__source__"] = source

    def run() -> types.ModuleType:
        code = compile(source, str(path), "exec", dont_inherit=True)
        sys.modules[name] = module  # dataclasses and pickle look a class's module up there
        try:
            exec(code, module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
        return module

    loaded: types.ModuleType = _guarded(run, f"{where}: {path}")
    return loaded


def _read(path: Path, where: str, *, guarded: bool) -> bytes:
    try:
        # O_NONBLOCK: a FIFO in place of the file must not hold us up
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{where}: cannot read {path}: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{where}: {path} is not a regular file; name a Python file")
        states = [(path, found, 0o022 if guarded else 0o002)]
        if guarded:
            states.append((path.parent, path.parent.stat(), 0o022))
        for what, state, forbidden in states:
            if guarded and state.st_uid not in (0, os.geteuid()):
                raise ConfigError(
                    f"{where}: {what} belongs to user id {state.st_uid}; it must belong to root or to user id "
                    f"{os.geteuid()}: use chown, or run this as the user whom it belongs to"
                )
            if state.st_mode & forbidden:
                raise ConfigError(
                    f"{where}: {what} has mode {stat.S_IMODE(state.st_mode):04o}, so others can change what the hub "
                    "runs; use chmod go-w"
                )
        if found.st_size > _FILE_BYTES:
            raise ConfigError(f"{where}: {path} has {found.st_size} bytes; {_FILE_BYTES} at most")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(_FILE_BYTES)
    finally:
        os.close(descriptor)


def _candidates(module: types.ModuleType) -> list[_Candidate]:
    """Return the consumers that *module* itself defines, in the order of its names' definition."""
    found = []
    for attribute, value in vars(module).items():
        if attribute.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if _is_consumer(value):
            found.append(_candidate(attribute, value, module.__name__))
    return found


def _is_consumer(value: object) -> bool:
    if inspect.isclass(value):
        return issubclass(value, Consumer) and value is not Consumer and not inspect.isabstract(value)
    return isinstance(getattr(value, MARK, None), Declaration)


def _candidate(attribute: str, value: Any, where: str) -> _Candidate:
    if not _is_consumer(value):
        raise ConfigError(
            f"{where}: {attribute!r} is no consumer; derive a class from fedbus.Consumer, or mark a function with "
            "@fedbus.consumer(TOPIC)"
        )
    mark = getattr(value, MARK, None)
    name: str = name_of(value) if mark is None else mark.name
    try:
        check_name(name)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    return _Candidate(attribute, name, value)


def _one(candidates: list[_Candidate], chosen: str, name: str, where: str) -> _Candidate:
    """Return the candidate that *chosen* names, by attribute or by name; else the only one, or that of our *name*."""
    names = ", ".join(f"{one.attribute}" for one in candidates) or "none"
    if chosen:
        found = [one for one in candidates if one.attribute == chosen] or [
            one for one in candidates if one.name == chosen
        ]
        if len(found) == 1:
            return found[0]
        if found:
            same = ", ".join(one.attribute for one in found)
            raise ConfigError(f"{where}: it holds several consumers with that name: {same}; name one of these instead")
        raise ConfigError(f"{where}: it holds no consumer {chosen!r}; there are: {names}")
    if len(candidates) == 1:
        return candidates[0]
    named = [one for one in candidates if one.name == name]
    if len(named) == 1:
        return named[0]
    if not candidates:
        raise ConfigError(
            f"{where}: it holds no consumer; derive a class from fedbus.Consumer, or mark a function with "
            "@fedbus.consumer(TOPIC)"
        )
    raise ConfigError(f"{where}: it holds several consumers; add :NAME, one of {names}")


# --- from code to something that runs --------------------------------------------------------------------------


def _check_settings(
    schema: Mapping[str, Any], settings: dict[str, Any], wanted: ConsumerSettings, origins: Mapping[str, str]
) -> None:
    # it takes 30 ms to import, and a process is started anew for each crash of its consumer
    import jsonschema

    problems = []
    prefix = f"consumers.{wanted.name}.settings"
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ConfigError(
            f"{wanted.origin}: consumer {wanted.name!r}: its own schema is none: {error.message[:200]}"
        ) from error
    for fault in jsonschema.Draft202012Validator(schema).iter_errors(settings):
        key = prefix
        for part in fault.absolute_path:
            key += f"[{part}]" if isinstance(part, int) else f".{part}"
        origin = origins.get(key) or origins.get(prefix) or wanted.origin
        problems.append(f"{origin}: {key}: {fault.message[:200]}")
    if problems:
        raise ConfigError(sorted(problems))


def _build(target: Any, settings: dict[str, Any], where: str, batch: Batch | None) -> Consumer:
    if not inspect.isclass(target):
        if settings:
            raise ConfigError(
                f"{where}: a callback takes no settings; make it a class, or remove {', '.join(settings)}"
            )
        callback = Callback(target, batched=batch is not None)
        _check_call(callback, batch, where)
        return callback
    try:
        inspect.signature(target).bind(**settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: its settings do not fit {target.__name__}: {error}") from error
    made: Consumer = _guarded(lambda: target(**settings), f"{where}: {target.__name__}")
    _check_call(made, batch, where)
    return made


def _check_call(made: Consumer, batch: Batch | None, where: str) -> None:
    """Refuse what cannot take a single message: it would make a dead letter of each."""
    call: Any = made.consume if batch is None else made.consume_batch
    what = "consume(message)" if batch is None else "consume_batch(messages)"
    if getattr(call, "__func__", None) in (Consumer.consume, Consumer.consume_batch):
        raise ConfigError(f"{where}: {type(made).__name__} does nothing with messages; define {what}")
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):
        return  # made in C; the first message will tell
    try:
        signature.bind(None)
    except TypeError as error:
        name = getattr(call, "__qualname__", what)
        given = "message" if batch is None else "list of messages"
        raise ConfigError(f"{where}: {name}{signature} is called with one {given}: {error}") from error


def _batch(target: Any, configured: Batch | None, where: str) -> Batch | None:
    """Return how much *target* is given at once; None for a message each."""
    mark = getattr(target, MARK, None)
    if mark is not None:
        return configured or mark.batch
    if takes_batches(target):
        declared = target.batch
        if declared is not None and not isinstance(declared, Batch):
            raise ConfigError(
                f"{where}: its batch is {declared!r}; write batch = fedbus.Batch(messages=500, seconds=0.5)"
            )
        return configured or declared or Batch()
    if configured is not None:
        raise ConfigError(f"{where}: it takes no batches; give {target.__name__} a consume_batch, or remove `batch`")
    return None


def _topics(target: Any, configured: tuple[str, ...], where: str) -> tuple[str, ...]:
    mark = getattr(target, MARK, None)
    declared = target.topics if mark is None else mark.topics
    if isinstance(declared, str):
        raise ConfigError(f"{where}: topics is one text; write a tuple: topics = ({declared!r},)")
    topics = configured or tuple(declared)
    if not topics:
        raise ConfigError(
            f"{where}: it names no topics; declare `topics` in the class, or below it in the configuration"
        )
    return topics


def _since(target: Any) -> str:
    mark = getattr(target, MARK, None)
    declared: str = target.since if mark is None else mark.since
    return declared


def _guarded(call: Any, where: str) -> Any:
    """Run code that is not ours: whatever it raises, even ``sys.exit()``, is a reason not to load it, no more."""
    try:
        return call()
    except ConfigError as error:
        raise ConfigError([f"{where}: {problem}" for problem in error.problems]) from error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        text = str(error)[:300]
        line = ""
        trace = error.__traceback__
        while trace is not None:
            name = trace.tb_frame.f_code.co_filename
            if not name.startswith("<frozen") and Path(name).name != Path(__file__).name:
                line = f" ({name}:{trace.tb_lineno})"
            trace = trace.tb_next
        raise ConfigError(f"{where} cannot be loaded: {type(error).__name__}: {text}{line}") from error
