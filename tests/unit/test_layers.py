"""The layers: a module imports from its own package and those before it, and consumers from `fedbus` alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From the ground up; names with a dot stand apart from their package, and '' is `fedbus` with its public names.
LAYERS = (
    "errors",
    "bell",
    "clock",
    "failpoints",
    "model",
    "wire",
    "texts",
    "trust",
    "journal",
    "monitor",
    "schemas",
    "transport",
    "fedmsg",
    "history",
    "hub",
    "config",
    "cli.wiring",
    "bus",
    "",
    "cli",
    "testing",
)
BARE = {"model", "wire"}  # of these two, what opens a socket or asks the time of day is kept away
SOCKETS = {"zmq", "socket", "select", "asyncio", "tornado", "selectors", "threading", "subprocess"}
PYTHON_FILES = sorted((ROOT / "fedbus").rglob("*.py"))


def layer_of(module: str) -> str:
    """The layer of `fedbus.x.y`: the longest name of a layer that it begins with; '' for the package itself."""
    inner = module.removeprefix("fedbus").removeprefix(".")
    names = [layer for layer in LAYERS if inner == layer or inner.startswith(layer + ".")]
    return max(names, key=len, default=inner)


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file names in an import, wherever in the file, with its line."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            for one in node.names:
                yield node.lineno, one.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]) if base else ".".join(parents)
            for one in node.names:
                # `from fedbus.wire import parcel` may name a module or something in one
                inner = ROOT / Path(*f"{base}.{one.name}".split("."))
                is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
                yield node.lineno, f"{base}.{one.name}" if is_module else base


@pytest.mark.parametrize("path", PYTHON_FILES, ids=module_of)
def test_a_module_imports_only_from_its_own_layer_and_those_before_it(path: Path) -> None:
    module = module_of(path)
    if module == "fedbus":
        return  # it gathers the public names of all layers
    own = layer_of(module)
    assert own in LAYERS, f"{module} stands in no layer; add its package to LAYERS where it belongs"
    wrong = []
    for line, name in imports(path):
        if name.partition(".")[0] != "fedbus":
            continue
        layer = layer_of(name)
        if layer not in LAYERS or LAYERS.index(layer) > LAYERS.index(own):
            wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong


@pytest.mark.parametrize("path", [one for one in PYTHON_FILES if layer_of(module_of(one)) in BARE], ids=module_of)
def test_model_and_wire_know_no_socket_and_no_thread(path: Path) -> None:
    wrong = [f"{path.relative_to(ROOT)}:{line} imports {name}" for line, name in imports(path) if name in SOCKETS]
    assert not wrong


def test_socket_options_are_set_in_one_module() -> None:
    wrong = []
    for path in PYTHON_FILES:
        if module_of(path) == "fedbus.transport.sockets":
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setsockopt":
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong


def test_consumers_import_from_fedbus_alone() -> None:
    wrong = []
    for path in sorted((ROOT / "consumers").rglob("*.py")):
        # the parts of a consumer that is more than a file stand in a folder beside it
        first = path.relative_to(ROOT / "consumers").parts[0].removesuffix(".py")
        own = f"consumers.{first.removesuffix('_parts')}_parts"
        for line, name in imports(path):
            if name.startswith((own, "fedbus.failpoints")):
                continue
            if name.startswith("fedbus.") or name.startswith(("consumers", "fedbus_consumers", "tests")):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong


@pytest.mark.badinput("B36")
def test_nothing_imports_what_can_run_code_from_data() -> None:
    wrong = []
    for path in [*PYTHON_FILES, *(ROOT / "consumers").rglob("*.py")]:
        for line, name in imports(path):
            if name.partition(".")[0] in {"pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle"}:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong
