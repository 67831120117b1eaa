"""Reads configuration files of fedmsg, which are Python, without running them.

fedmsg executes each file and takes its ``config``. Here a file is only parsed, and a small part of the language is
evaluated: constants, lists, dicts, names that were given such a value, text that is put together from them, and loops
over a fixed range inside a list. Whatever else stands there gives an :class:`Unknown`, which says where; nothing is
called, imported or looked up. Size, depth and the number of steps are bounded, since a file may come from anywhere.
"""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE_BYTES = 2 * 2**20
FILES = 1000
_STEPS = 300_000  # for one file
_ALL_STEPS = 3_000_000  # for one folder
_DEPTH = 60
_TEXT = 64 * 2**10  # characters of one value
_ITEMS = 20_000  # of one list or dict
_PERCENT = re.compile(r"%(?:\((\w+)\))?(0?[0-9]{0,2})([sdi%])")


@dataclass(frozen=True, slots=True)
class Unknown:
    """A value that only running the file would tell."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Found:
    """A key of the merged configuration, and where it was last set."""

    value: Any
    origin: str  # FILE:LINE


@dataclass(slots=True)
class Folder:
    """What a folder holds: the merged keys, and what could not be read, each with its file and line."""

    keys: dict[str, Found] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


class _TooMuch(Exception):
    """The file asks for more than is given."""


def read_folder(folder: Path) -> Folder:
    """Return what the ``*.py`` files of *folder* configure, merged in the order of their names, as fedmsg does.

    Raises:
        OSError: The folder cannot be read.
    """
    result = Folder()
    left = _ALL_STEPS
    paths = sorted(path for path in folder.iterdir() if path.suffix == ".py")
    for path in paths[:FILES]:
        result.files.append(path.name)
        try:
            if not path.is_file():
                raise ValueError("no regular file")
            with path.open("rb") as file:
                data = file.read(FILE_BYTES + 1)
            if len(data) > FILE_BYTES:
                raise ValueError(f"larger than {FILE_BYTES} bytes")
            budget = [min(_STEPS, left)]
            left -= budget[0]
            values, lines, problems = evaluate(data, budget)
            left += max(0, budget[0])
        except (OSError, ValueError) as error:
            result.problems.append(f"{path.name}: cannot be read: {getattr(error, 'strerror', None) or error}")
            continue
        result.problems += [f"{path.name}: cannot be translated: {one}" for one in problems]
        for key, value in values.items():
            before = result.keys.get(key)
            merged = value if before is None else _merged(before.value, value)
            result.keys[key] = Found(merged, f"{path.name}:{lines.get(key, 1)}")
    if len(paths) > FILES:
        result.problems.append(f"only the first {FILES} files were read")
    return result


def evaluate(data: bytes, budget: list[int] | None = None) -> tuple[dict[str, Any], dict[str, int], list[str]]:
    """Return what ``config`` is bound to in the source *data*, the line of each key, and what cannot be told.

    Raises:
        ValueError: It is no Python, or nested deeper than anybody writes.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    try:
        # the parser has limits of its own for what is nested, and for long chains of operators
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f"line {error.lineno}: no Python 3: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"no Python that can be parsed: {type(error).__name__}") from None
    return _Evaluator([_STEPS] if budget is None else budget).module(tree)


def _merged(old: Any, new: Any) -> Any:
    """Put *new* over *old*, dict by dict; lists are replaced."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    result = dict(old)
    for key, value in new.items():
        result[key] = _merged(result[key], value) if key in result else value
    return result


def _copied(value: Any) -> Any:
    """Return *value* without anything shared, so that nothing can come to hold itself; its weight was paid for."""
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_copied(one) for one in value]
    return value


def _key_lines(value: dict[Any, Any], source: ast.AST) -> dict[str, int]:
    """Return the line of each key of *value*, which *source* gave; that of *source* for what comes from a name."""
    found = {key: getattr(source, "lineno", 1) for key in value if isinstance(key, str)}
    found.update((key, line) for key, line in _written_keys(source) if key in found)
    return found


def _written_keys(source: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the keys that are written out in *source*, each with its line; what comes last is in force."""
    if isinstance(source, ast.Dict):
        for key, inner in zip(source.keys, source.values, strict=True):
            if key is None:  # **{…}
                yield from _written_keys(inner)
            elif isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value, key.lineno
    elif isinstance(source, ast.Call):
        for argument in source.args:
            yield from _written_keys(argument)
        for keyword in source.keywords:
            if keyword.arg is None:
                yield from _written_keys(keyword.value)
            else:
                yield keyword.arg, keyword.lineno


class _Evaluator:
    def __init__(self, budget: list[int]) -> None:
        self._budget = budget
        self._names: dict[str, Any] = {}
        # What a value costs to walk over, counted as if nothing in it were shared: `a = [a, a]` doubles it each time.
        self._weights: dict[str, int] = {}
        self._lines: dict[str, int] = {}
        self.problems: list[str] = []

    def module(self, tree: ast.Module) -> tuple[dict[str, Any], dict[str, int], list[str]]:
        for statement in tree.body:
            try:
                self._statement(statement)
            except (_TooMuch, RecursionError) as error:
                self.problems.append(f"line {statement.lineno}: {error or 'nested too deep'}")
        found = self._names.get("config")
        if isinstance(found, Unknown):
            self.problems.append(str(found))
        if not isinstance(found, dict):
            return {}, {}, self.problems
        return {key: value for key, value in found.items() if isinstance(key, str)}, self._lines, self.problems

    # --- statements --------------------------------------------------------------------------------------------

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Pass)):
            return  # what comes from a module is unknown where it is used
        if isinstance(node, ast.Expr):
            self._expression(node)
        elif isinstance(node, ast.Assign):
            before = self._budget[0]
            value = self._value(node.value, 0)
            for target in node.targets:
                self._assign(target, value, node, before - self._budget[0])
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            before = self._budget[0]
            value = self._value(node.value, 0)
            self._assign(node.target, value, node, before - self._budget[0])
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            self._names[node.name] = Unknown(node.lineno, f"{node.name} is code")
        else:
            word = type(node).__name__.lower()
            self.problems.append(f"line {node.lineno}: a statement ({word}) that would have to be run")
            for inner in ast.walk(node):
                # what it may have set is not known any more
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                    self._names[inner.id] = Unknown(node.lineno, "set by a statement that would have to be run")

    def _expression(self, node: ast.Expr) -> None:
        call = node.value
        if isinstance(call, ast.Constant):
            return  # a docstring
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr == "update"
            and isinstance(call.func.value, ast.Name)
            and isinstance(self._names.get(call.func.value.id), dict)
        ):
            target = self._names[call.func.value.id]
            before = self._budget[0]
            given = [(self._value(one, 0), one) for one in call.args]
            for new, source in [*given, (self._keywords(call, 0), call)]:
                if isinstance(new, dict):
                    target.update(new)
                    if call.func.value.id == "config":
                        self._lines |= _key_lines(new, source)
                else:
                    self.problems.append(str(new) if isinstance(new, Unknown) else f"line {call.lineno}: no dict")
            self._weigh(call.func.value.id, before - self._budget[0])
            return
        self.problems.append(f"line {node.lineno}: an expression that would have to be run")

    def _weigh(self, name: str, more: int) -> None:
        self._weights[name] = self._weights.get(name, 1) + more

    def _assign(self, target: ast.expr, value: Any, node: ast.stmt, weight: int) -> None:
        if isinstance(target, ast.Name):
            self._names[target.id] = value
            self._weights[target.id] = weight
            if target.id == "config" and isinstance(value, dict):
                self._lines = _key_lines(value, getattr(node, "value", node))
            return
        if isinstance(target, ast.Subscript):
            path: list[Any] = []
            inner: ast.expr = target
            while isinstance(inner, ast.Subscript) and len(path) < _DEPTH:
                path.append(self._value(inner.slice, 0))
                inner = inner.value
            place = self._names.get(inner.id) if isinstance(inner, ast.Name) else None
            for key in reversed(path[1:]):
                place = place.get(key) if isinstance(place, dict) and isinstance(key, str) else None
            if isinstance(place, dict) and isinstance(path[0], str):
                place[path[0]] = value
                assert isinstance(inner, ast.Name)
                self._weigh(inner.id, weight)
                if inner.id == "config":
                    self._lines[str(path[-1])] = node.lineno
                return
        self.problems.append(f"line {node.lineno}: an assignment that would have to be run")

    # --- values ------------------------------------------------------------------------------------------------

    def _value(self, node: ast.expr, depth: int) -> Any:
        self._budget[0] -= 1
        if self._budget[0] < 0:
            raise _TooMuch("more than can be evaluated here")
        if depth > _DEPTH:
            raise _TooMuch(f"nested deeper than {_DEPTH} levels")
        below = depth + 1
        if isinstance(node, ast.Constant):
            if isinstance(node.value, (str, int, float, bool, type(None))):
                return self._bounded(node.value, node)
            return Unknown(node.lineno, "a constant that no configuration of fedmsg has")
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            return self._bounded([self._value(one, below) for one in node.elts], node)
        if isinstance(node, ast.Dict):
            return self._dict(node, below)
        if isinstance(node, ast.Name):
            self._budget[0] -= self._weights.get(node.id, 1)
            if self._budget[0] < 0:
                raise _TooMuch("more than can be evaluated here")
            return _copied(self._names.get(node.id, Unknown(node.lineno, f"{node.id} is not known")))
        if isinstance(node, ast.BinOp):
            return self._operation(node, below)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd, ast.Not)):
            value = self._value(node.operand, below)
            if isinstance(node.op, ast.Not):
                return value if isinstance(value, Unknown) else not value
            if isinstance(value, (int, float)):
                return -value if isinstance(node.op, ast.USub) else value
            return Unknown(node.lineno, "an operation that would have to be run")
        if isinstance(node, ast.JoinedStr):
            parts = [
                Unknown(one.lineno, "a format")
                if isinstance(one, ast.FormattedValue) and (one.format_spec is not None or one.conversion != -1)
                else self._value(one.value if isinstance(one, ast.FormattedValue) else one, below)
                for one in node.values
            ]
            return self._joined(parts, node)
        if isinstance(node, ast.Call):
            return self._call(node, below)
        if isinstance(node, ast.ListComp):
            return self._loop(node, below)
        if isinstance(node, ast.Subscript):
            whole, key = self._value(node.value, below), self._value(node.slice, below)
            if isinstance(whole, dict) and isinstance(key, str) and key in whole:
                return whole[key]
            if isinstance(whole, list) and type(key) is int and -len(whole) <= key < len(whole):
                return whole[key]
            return whole if isinstance(whole, Unknown) else Unknown(node.lineno, "a part of what is not known")
        return Unknown(node.lineno, f"{type(node).__name__.lower()} would have to be run")

    def _bounded(self, value: Any, node: ast.expr) -> Any:
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**63:
            return Unknown(node.lineno, "a number beyond 64 bits")
        if isinstance(value, str) and len(value) > _TEXT:
            return Unknown(node.lineno, f"a text of more than {_TEXT} characters")
        if isinstance(value, list) and len(value) > _ITEMS:
            return Unknown(node.lineno, f"a list of more than {_ITEMS} members")
        return value

    def _dict(self, node: ast.Dict, depth: int) -> Any:
        found: dict[Any, Any] = {}
        for key_node, value_node in zip(node.keys, node.values, strict=True):
            value = self._value(value_node, depth)
            if key_node is None:  # **other
                if isinstance(value, dict):
                    found.update(value)
                else:
                    self.problems.append(f"line {value_node.lineno}: what is merged here is not known")
                continue
            key = self._value(key_node, depth)
            if isinstance(key, (str, int, float, bool)):
                found[key] = value
            else:
                self.problems.append(f"line {key_node.lineno}: a key that only running the file would tell")
        if len(found) > _ITEMS:
            return Unknown(node.lineno, f"a dict of more than {_ITEMS} members")
        return found

    def _keywords(self, node: ast.Call, depth: int) -> Any:
        found: dict[str, Any] = {}
        for one in node.keywords:
            value = self._value(one.value, depth)
            if one.arg is not None:
                found[one.arg] = value
            elif isinstance(value, dict):
                found.update(value)
            else:
                self.problems.append(f"line {one.value.lineno}: what is merged here is not known")
        return found

    def _operation(self, node: ast.BinOp, depth: int) -> Any:
        left, right = self._value(node.left, depth), self._value(node.right, depth)
        if isinstance(node.op, ast.Mod) and isinstance(left, str):
            return self._percent(left, right, node)
        for one in (left, right):
            if isinstance(one, Unknown):
                return one
        if isinstance(node.op, ast.Add):
            if isinstance(left, str) and isinstance(right, str) and len(left) + len(right) <= _TEXT:
                return left + right
            if isinstance(left, list) and isinstance(right, list) and len(left) + len(right) <= _ITEMS:
                return left + right
        if isinstance(left, (int, float)) and isinstance(right, (int, float)):
            if isinstance(node.op, ast.Add):
                return self._bounded(left + right, node)
            if isinstance(node.op, ast.Sub):
                return self._bounded(left - right, node)
            if isinstance(node.op, ast.Mult) and abs(left) < 2**53 and abs(right) < 2**53:
                return self._bounded(left * right, node)
        return Unknown(node.lineno, "an operation that would have to be run")

    def _percent(self, text: str, values: Any, node: ast.expr) -> Any:
        """``"tcp://%s:%d" % (host, port)``, with plain values alone."""
        given = values if isinstance(values, list) else [values]
        place = 0
        parts: list[Any] = []
        at = 0
        for match in _PERCENT.finditer(text):
            parts.append(text[at : match.start()])
            at = match.end()
            name, width, kind = match.groups()
            if kind == "%":
                parts.append("%")
                continue
            if name is not None:
                value = values.get(name) if isinstance(values, dict) else None
            else:
                value = given[place] if place < len(given) else None
                place += 1
            if width and isinstance(value, (int, float, str)):
                value = f"%{width}{kind}" % value if isinstance(value, int) or kind == "s" else None
            parts.append(value)
        rest = text[at:]
        if "%" in rest or any("%" in one for one in parts[::2] if isinstance(one, str) and one != "%"):
            return Unknown(node.lineno, "a format")
        return self._joined([*parts, rest], node)

    def _joined(self, parts: list[Any], node: ast.expr) -> Any:
        size = 0
        for one in parts:
            if isinstance(one, Unknown):
                return one
            if not isinstance(one, (str, int, float)):
                return Unknown(node.lineno, "a text that is made of more than texts and numbers")
            size += len(one) if isinstance(one, str) else 32
        if size > _TEXT:
            return Unknown(node.lineno, f"a text of more than {_TEXT} characters")
        return "".join(map(str, parts))

    def _call(self, node: ast.Call, depth: int) -> Any:
        func = node.func
        if isinstance(func, ast.Name) and func.id == "dict" and "dict" not in self._names:
            found: dict[Any, Any] = {}
            for argument in node.args:
                value = self._value(argument, depth)
                if not isinstance(value, dict):
                    return Unknown(node.lineno, "a dict made of what is not known")
                found.update(value)
            return {**found, **self._keywords(node, depth)}
        if isinstance(func, ast.Name) and func.id in ("list", "tuple", "str", "int") and len(node.args) == 1:
            value = self._value(node.args[0], depth)
            if func.id in ("list", "tuple") and isinstance(value, list):
                return list(value)
            if func.id == "str" and isinstance(value, (str, int)):
                return str(value)
            if func.id == "int" and isinstance(value, int):
                return value
        if isinstance(func, ast.Attribute) and func.attr in ("format", "join"):
            whole = self._value(func.value, depth)
            if isinstance(whole, str):
                values = [self._value(one, depth) for one in node.args]
                if func.attr == "join":
                    return self._join(whole, values, node)
                return self._format(whole, values, self._keywords(node, depth), node)
        try:
            shown = ast.unparse(func)[:80]
        except RecursionError:
            shown = "something"
        return Unknown(node.lineno, f"{shown}() would have to be called")

    def _join(self, between: str, values: list[Any], node: ast.expr) -> Any:
        if len(values) != 1 or not isinstance(values[0], list):
            return values[0] if values and isinstance(values[0], Unknown) else Unknown(node.lineno, "no list to join")
        parts: list[Any] = []
        for one in values[0]:
            parts += [between, one]
        return self._joined(parts[1:], node)

    def _format(self, text: str, values: list[Any], named: dict[str, Any], node: ast.expr) -> Any:
        parts: list[Any] = []
        place = 0
        try:
            for literal, name, spec, conversion in string.Formatter().parse(text):
                parts.append(literal)
                if name is None:
                    continue
                if spec or conversion:
                    return Unknown(node.lineno, "a format")
                if name == "":
                    name, place = str(place), place + 1
                if name.isascii() and name.isdigit() and len(name) < 6 and int(name) < len(values):
                    parts.append(values[int(name)])
                elif name in named:
                    parts.append(named[name])
                else:
                    return Unknown(node.lineno, "a format")
        except ValueError:
            return Unknown(node.lineno, "a format")
        return self._joined(parts, node)

    def _loop(self, node: ast.ListComp, depth: int) -> Any:
        """``[… for name in range(10)]``, over a list or range that is known."""
        if len(node.generators) != 1:
            return Unknown(node.lineno, "a loop in a loop")
        (one,) = node.generators
        if one.ifs or one.is_async or not isinstance(one.target, ast.Name):
            return Unknown(node.lineno, "a loop that would have to be run")
        source: Any
        call = one.iter
        spent = self._budget[0]
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "range":
            bounds = [self._value(argument, depth) for argument in call.args]
            if call.keywords or not 1 <= len(bounds) <= 3 or not all(type(bound) is int for bound in bounds):
                return Unknown(node.lineno, "a range that is not known")
            if len(bounds) == 3 and bounds[2] == 0:
                return Unknown(node.lineno, "a range that has no end")
            source = range(*bounds)
            if len(bounds) and len(source[: _ITEMS + 1]) > _ITEMS:
                return Unknown(node.lineno, f"a loop of more than {_ITEMS} rounds")
        else:
            source = self._value(call, depth)
        if not isinstance(source, (list, range)):
            return source if isinstance(source, Unknown) else Unknown(node.lineno, "a loop over no list")
        name = one.target.id
        before = self._names.get(name)
        self._weights[name] = spent - self._budget[0] + 1
        found = []
        for value in source:
            self._names[name] = value
            found.append(self._value(node.elt, depth))
        if before is None:
            self._names.pop(name, None)
        else:
            self._names[name] = before
        return found
