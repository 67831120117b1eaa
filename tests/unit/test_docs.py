"""What README and doc/ show is so: examples run, command lines parse, tables are complete.

A block is run when its ``:name:`` begins with ``run-``: ``python`` as a program, of ``console`` what follows ``$``, in
bash, whose output must hold the lines that are shown (``…`` stands for anything). Where it begins with ``file-`` the
block is written to a file of that name. The blocks of a page run in its order, in one folder, which is ``~`` and holds
a private bus that ``FEDBUS_CONFIG`` names; a block that calls ``fedbus init ~/bus`` finds none and makes its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import pytest

import fedbus
from fedbus.cli import main
from fedbus.config.init import create, free_ports
from fedbus.config.settings import Settings, schema
from fedbus.config.units import parse_duration, parse_size
from fedbus.errors import Reason
from fedbus.fedmsg.keys import KEYS
from fedbus.schemas.metrics import of_schemas
from fedbus.transport.metrics import of_links, of_publishers, of_refusals, of_streams
from fedbus.transport.state import LossCause
from fedbus.transport.zap import LinkStats
from tests.processes import own_ports
from tests.support import need_program

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.rst", *sorted((ROOT / "doc").glob("*.rst"))]
CODE = re.compile(r"^( *)\.\. code-block:: *(\w+)\n((?: +:[a-z-]+:.*\n)*)\n((?:(?:\1   .*)?\n)+)", re.M)
LITERAL = re.compile(r"(?:^|\n)[^\n]*::\n\n((?:(?:    .*)?\n)+)")
ENDPOINTS = ("koji.build01", "bodhi.web01")
PATIENCE = 300  # seconds for one block
SERVERS = {"irc": ("ngircd", "6667")}  # what the examples of a page start, and the port that is replaced by a free one


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    language: str
    name: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """Return the code blocks of *page* in their order."""
    text = page.read_text("utf-8") + "\n"
    found = []
    for match in CODE.finditer(text):
        name = re.search(r":name: *(\S+)", match[3])
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(match[2], name[1] if name else "", textwrap.dedent(match[4]).strip("\n") + "\n", line))
    return found


def runnable(page: Path) -> list[Block]:
    """Return those blocks that are to be run or written to a file."""
    return [block for block in blocks(page) if block.name.startswith(("run-", "file-"))]


WITH_EXAMPLES = [page for page in PAGES if runnable(page)]


def test_the_readme_and_the_pages_for_users_have_examples_that_run() -> None:
    expected = {"README", "first-steps", "publish", "subscribe", "consumers", "commands", "configuration", "keys"}
    assert expected <= {page.stem for page in WITH_EXAMPLES}


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run_in_order(
    page: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(tmp_path / "bus", ENDPOINTS)
    monkeypatch.setenv("PATH", path_with_our_ports(tmp_path_factory.mktemp("bin")))
    server, port = SERVERS.get(page.stem, ("", ""))
    if server:
        need_program(server, "/usr/sbin")
        free = str(free_ports(1)[0])
    for block in runnable(page):
        if port:
            block = replace(block, text=block.text.replace(port, free))
        where = f"{page.relative_to(ROOT)}:{block.line} ({block.name})"
        if block.name.startswith("file-"):
            path = tmp_path / block.name.removeprefix("file-")
            path.parent.mkdir(exist_ok=True)
            path.write_text(block.text, "utf-8")
            path.chmod(0o600)
        elif block.language == "python":
            run([sys.executable, "-c", block.text], tmp_path, where)
        else:
            if "fedbus init ~/bus " in block.text:
                (tmp_path / "bus").rename(tmp_path / f"before-{block.name}")
            commands, shown = session(block.text)
            # what is enough for a reader may not be where the machine is busy
            commands = re.sub(r"--(seconds|idle-exit) (\d+)", lambda one: f"--{one[1]} {5 * int(one[2])}", commands)
            output = run(["bash", "-euo", "pipefail", "-c", f"{commands}\nwait\n"], tmp_path, where)
            for line in shown:
                pattern = ".*".join(re.escape(part) for part in re.split(r"\s*…\s*", line))
                pattern = re.sub(r"(?:\\ )+", r"\\s+", pattern)
                assert any(re.fullmatch(pattern, one) for one in output.splitlines()), (
                    f"{where} shows {line!r}, but it says:\n{output}"
                )


def path_with_our_ports(folder: Path) -> str:
    """Return a PATH on which `fedbus init` takes ports that no test beside this one does."""
    python = Path(sys.executable)
    init = " ".join(map(shlex.quote, own_ports.command(endpoints=8)))
    (folder / "fedbus").write_text(
        f'#!/bin/sh\n[ "$1" != init ] || exec {init} "$@"\nexec {shlex.quote(str(python.with_name("fedbus")))} "$@"\n'
    )
    (folder / "fedbus").chmod(0o700)
    return os.pathsep.join([str(folder), str(python.parent), os.environ.get("PATH", os.defpath)])


def session(text: str) -> tuple[str, list[str]]:
    """Split a console block into a script and the lines of output that it shows."""
    commands, shown = [], []
    for line in text.splitlines():
        if line.startswith("$ "):
            commands.append(line[2:])
        elif line.strip():
            shown.append(line.rstrip())
    return "\n".join(commands), shown


def run(arguments: list[str], folder: Path, where: str) -> str:
    """Run a program in *folder* and return what it printed; all that it started ends with it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FEDBUS", "_FEDBUS"))}
    kept |= {
        "HOME": str(folder),
        "FEDBUS_CONFIG": str(folder / "bus"),
        "TZ": "UTC",
        "LC_ALL": "C.UTF-8",
        "COLUMNS": "200",
    }
    with subprocess.Popen(
        arguments,
        cwd=folder,
        env=kept,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, f"{where} ended with {process.returncode}:\n{out}\n{err}"
    return out


# --- command lines -----------------------------------------------------------------------------------------------


def command_lines(page: Path) -> Iterator[str]:
    """Yield every line of a block of *page* that calls fedbus."""
    text = page.read_text("utf-8") + "\n"
    bodies = [block.text for block in blocks(page) if block.language in ("console", "sh", "bash", "ini")]
    bodies += [textwrap.dedent(match[1]) for match in LITERAL.finditer(text)]
    for body in bodies:
        for line in body.replace("\\\n", " ").splitlines():
            yield from calls(line.removeprefix("$ "))


def calls(line: str) -> Iterator[str]:
    """Yield the calls of fedbus in a line of shell, each up to the next control operator."""
    for start in re.finditer(r"(?:^|(?<=[ (=/|]))fedbus(?:-hub|-tail|-publish)?(?= )", line):
        if line[: start.start()].endswith(("curl ", "pip install ", "echo ", "cd ", "User=")):
            continue
        rest = line[start.start() :]
        if line[: start.start()].endswith("$("):
            rest = rest[: rest.index(")")]
        yield rest


def words(call: str) -> list[str]:
    """Split a call as a shell would, and stop at the first operator or comment."""
    lexer = shlex.shlex(call, posix=True, punctuation_chars="|&<>;")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    found: list[str] = []
    for word in lexer:
        if set(word) <= set("|&<>;"):
            break
        found.append(word)
    return found


def all_calls() -> list[tuple[str, str]]:
    return [(page.stem, call) for page in PAGES for call in command_lines(page)]


def test_command_lines_are_found_in_the_documentation() -> None:
    assert len(all_calls()) > 60


def test_every_command_line_that_is_shown_parses() -> None:
    for stem, call in all_calls():
        name, *arguments = words(call)
        command: click.Command = main.fedbus_command
        if name != "fedbus":
            command = main.load(name.removeprefix("fedbus-"))
        try:
            parse(command, name, arguments)
        except click.ClickException as error:
            pytest.fail(f"{stem}.rst: {call!r}: {error.format_message()}")


def parse(command: click.Command, name: str, arguments: list[str], parent: click.Context | None = None) -> None:
    """Parse as the command would, down to the last subcommand, and run nothing."""
    try:
        context = command.make_context(name, list(arguments), parent=parent, obj={})
    except click.exceptions.Exit:
        return  # --help or --version
    except click.BadParameter as error:
        if "does not exist" in error.format_message():  # a file of the reader's
            return
        raise
    if isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        if not rest:
            return
        _, inner, rest = command.resolve_command(context, rest)
        assert inner is not None
        parse(inner, str(inner.name), rest, context)


def test_every_command_and_option_that_the_text_mentions_exists() -> None:
    for page in PAGES:
        for mention in re.findall(r"``((?:fedbus)(?:-hub|-tail|-publish)? [a-z-][^`]*)``", page.read_text("utf-8")):
            parts = [part for part in mention.split() if part != "…"]
            if page.stem == "wire":
                continue  # its contexts of signatures begin with the same word
            command: click.Command = main.fedbus_command
            if parts[0] != "fedbus":
                command = main.load(parts[0].removeprefix("fedbus-"))
            for part in parts[1:]:
                if part.startswith("-"):
                    known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
                    assert part in {*known, "--help"}, f"{page.name}: {mention!r}: no option {part}"
                elif isinstance(command, click.Group):
                    inner = command.get_command(click.Context(command), part)
                    assert inner is not None, f"{page.name}: {mention!r}: no command {part}"
                    command = inner


def every_command() -> list[tuple[str, click.Command]]:
    """Return all commands with their whole names."""
    found: list[tuple[str, click.Command]] = [("fedbus", main.fedbus_command)]
    for name in main.COMMANDS:
        command = main.load(name)
        found.append((f"fedbus {name}", command))
        if isinstance(command, click.Group):
            found += [(f"fedbus {name} {inner}", one) for inner, one in command.commands.items()]
    return found


@pytest.mark.parametrize(("name", "command"), every_command(), ids=[name for name, _ in every_command()])
def test_help_explains_every_option_and_has_examples(name: str, command: click.Command) -> None:
    assert command.help, f"{name} has no text"
    assert "Examples:" in (command.epilog or ""), f"{name} has no examples"
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{name}: {option.opts} is not explained"


@pytest.mark.parametrize(("name", "command"), every_command(), ids=[name for name, _ in every_command()])
def test_the_examples_of_help_parse(name: str, command: click.Command) -> None:
    lines = (command.epilog or "").replace("\\\n", " ").splitlines()
    found = [call for line in lines for call in calls(line)]
    assert found, f"{name} has no example that calls fedbus"
    for call in found:
        # what explains an example stands behind three blanks or more
        first, *arguments = words(re.split(r" {3,}", call)[0])
        parse(main.fedbus_command, first, arguments)


def test_every_command_is_in_the_readme_and_has_a_section() -> None:
    readme = (ROOT / "README.rst").read_text("utf-8")
    sections = (ROOT / "doc" / "commands.rst").read_text("utf-8")
    for name in main.COMMANDS:
        assert f"``fedbus {name}``" in readme
        assert f"\nfedbus {name}\n---" in sections


# --- tables --------------------------------------------------------------------------------------------------------


def rows(page: str) -> list[list[str]]:
    """Return the rows of all list tables of a page, headers left out, the first cell without its backquotes."""
    text = (ROOT / "doc" / page).read_text("utf-8")
    found = []
    for row in re.split(r"\n   \* - ", text)[1:]:
        row = re.split(r"\n(?! {5}|\n)", row)[0]
        cells = [" ".join(cell.split()) for cell in re.split(r"\n     - ", row)]
        if cells[0].startswith("``"):
            cells[0] = cells[0].strip("`")
            found.append(cells)
    return found


def schema_keys(part: dict[str, Any], path: str = "") -> Iterator[str]:
    """Yield the keys of the configuration in the form of the documentation."""
    definitions = schema()["$defs"]
    for key, inner in part["properties"].items():
        here = f"{path}.{key}" if path else key
        if path.startswith("endpoints") and key == "journal":
            yield here  # the keys of the general section
            continue
        if "$ref" in inner:
            inner = definitions[inner["$ref"].rpartition("/")[2]]
        rest = inner.get("additionalProperties")
        plain = isinstance(rest, dict) and not rest.keys() & {"properties", "$ref"}
        if plain or (path.startswith("endpoints") and key == "kafka"):
            yield here
        elif isinstance(rest, dict):
            found = definitions[rest["$ref"].rpartition("/")[2]] if "$ref" in rest else rest
            yield from schema_keys(found, f"{here}.NAME")
        elif inner.get("type") == "array" and "properties" in inner.get("items", {}):
            yield from schema_keys(inner["items"], f"{here}[]")
        elif "properties" in inner:
            yield from schema_keys(inner, here)
        else:
            yield here


def test_the_page_of_the_configuration_has_every_key_of_the_schema_and_no_other() -> None:
    documented = [cells[0] for cells in rows("configuration.rst")]
    assert len(documented) == len(set(documented))
    assert set(documented) == set(schema_keys(schema()))


def test_the_defaults_on_the_page_of_the_configuration_are_those_in_force(tmp_path: Path) -> None:
    create(tmp_path / "bus", ENDPOINTS)
    settings = Settings.load(tmp_path / "bus")
    seen = 0
    for key, default, *_ in rows("configuration.rst"):
        section, _, name = key.partition(".")
        if section in ("journal", "publisher", "subscriber", "limits", "hub", "log") and default != "none":
            value = getattr(getattr(settings, section), name)
            shown: Any = default.strip("`")
            if isinstance(value, (int, float)):
                unit = parse_duration if isinstance(value, float) and name != "signatures_per_second" else parse_size
                shown = unit(shown)
            assert shown == value, key
            seen += 1
    assert seen > 25


def test_every_reason_of_a_refusal_has_a_row() -> None:
    page = (ROOT / "doc" / "operations.rst").read_text("utf-8")
    documented = [cells[0] for cells in rows("operations.rst") if not cells[0].startswith("fedbus_")]
    assert documented == [reason.value for reason in Reason]
    assert ".. _reasons:" in page


def test_every_metric_has_a_row() -> None:
    source = "".join(
        (ROOT / "fedbus" / name).read_text("utf-8")
        for name in ("hub/metrics.py", "monitor/discovery.py", "monitor/process.py")
    )
    metrics = set(re.findall(r'"(fedbus_[a-z_]+)"', source))
    families = [*of_publishers([]), *of_links(LinkStats()), *of_streams([], now=0.0, since=0.0), of_refusals({})]
    families += of_schemas(None)
    metrics |= {family.name for family in families}
    documented = [cells[0] for cells in rows("monitoring.rst") if cells[0].startswith("fedbus_")]
    assert sorted(documented) == sorted(metrics)


def test_every_cause_of_a_loss_is_on_the_page_of_subscribing() -> None:
    page = (ROOT / "doc" / "subscribe.rst").read_text("utf-8")
    for cause in LossCause:
        assert re.search(rf"``{cause}``", page), cause


def test_every_metric_of_the_relay_has_a_row() -> None:
    source = (ROOT / "fedbus" / "transport" / "relay_metrics.py").read_text("utf-8")
    metrics = set(re.findall(r'"(fedbus_relay_[a-z_]+)"', source))
    metrics |= {f"fedbus_relay_{name}" for name in re.findall(r'(?:each|words)\(\s*"([a-z_]+)"', source)}
    assert sorted(cells[0] for cells in rows("relay.rst")) == sorted(metrics)


def test_every_public_name_is_on_the_page_of_the_interface() -> None:
    page = (ROOT / "doc" / "api.rst").read_text("utf-8")
    documented = re.findall(r"^\.\. (?:autoclass|autoexception|autofunction|py:data):: (\w+)", page, re.M)
    assert sorted(documented) == sorted(fedbus.__all__)


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (ROOT / "doc" / "index.rst").read_text("utf-8")
    for page in PAGES:
        if page.stem not in ("README", "index"):
            assert re.search(rf"^   {page.stem}$", index, re.M), page.stem


def test_the_exit_codes_on_the_page_of_commands_are_those_of_the_table() -> None:
    page = (ROOT / "doc" / "commands.rst").read_text("utf-8")
    codes = {int(code) for code in re.findall(r"^(\d) {3,}\S", page, re.M)}
    assert codes == {main.OK, main.USAGE, *(code for _, code in main.EXIT_CODES)}


def test_links_to_files_of_the_checkout_lead_somewhere() -> None:
    for page in PAGES:
        for path in re.findall(r"``((?:doc|bench|tests|etc|fedbus)/[\w./-]+\.\w+)``", page.read_text("utf-8")):
            built = path in ("bench/results.json",)
            assert built or (ROOT / path).exists(), f"{page.name}: {path}"


def test_modules_that_the_architecture_names_exist() -> None:
    page = (ROOT / "doc" / "architecture.rst").read_text("utf-8")
    named = re.findall(r"``((?:model|wire|trust|journal|transport|hub|config|cli)/\w+\.py)``", page)
    assert len(named) > 15
    for path in named:
        assert (ROOT / "fedbus" / path).exists(), path


def test_every_metric_of_the_fedmsg_side_has_a_row() -> None:
    source = (ROOT / "fedbus" / "fedmsg" / "metrics.py").read_text("utf-8")
    metrics = set(re.findall(r'"(fedbus_bridge_[a-z_]+)"', source))
    metrics |= {f"fedbus_fedmsg_{name}" for name in re.findall(r'(?:each|by)\(\s*"([a-z_]+)"', source)}
    documented = [cells[0] for cells in rows("fedmsg.rst") if cells[0].startswith("fedbus_")]
    assert sorted(documented) == sorted(metrics)


def test_the_page_about_moving_maps_every_command_and_key_of_fedmsg() -> None:
    found = {cells[0]: cells[1:] for cells in rows("migrate-from-fedmsg.rst")}
    assert {f"fedmsg-{name}" for name in COMMANDS_OF_FEDMSG.split()} <= found.keys()
    assert set(KEYS_OF_FEDMSG.split()) <= set(KEYS), "the list of keys is that of fedmsg, not ours"
    assert {key: status for key, (status, _) in KEYS.items()} == {
        key: cells[0] for key, cells in found.items() if key in KEYS
    }


COMMANDS_OF_FEDMSG = """
announce check collectd config dg-replay gateway hub irc logger relay signing-relay tail trigger
"""
KEYS_OF_FEDMSG = """
endpoints srv_endpoints name active relay_inbound topic_prefix environment topic_prefix_re high_water_mark
post_init_sleep zmq_linger io_threads timeout zmq_tcp_keepalive zmq_tcp_keepalive_cnt zmq_tcp_keepalive_idle
zmq_tcp_keepalive_intvl zmq_reconnect_ivl zmq_reconnect_ivl_max zmq_enabled zmq_strict sign_messages validate_signatures
crypto_backend crypto_validate_backends ssldir certnames cert_prefix ca_cert_location crl_location crl_cache
crl_cache_expiry ca_cert_cache ca_cert_cache_expiry routing_policy routing_nitpicky gpg_home gpg_signing_key gpg_keys
replay_endpoints persistent_store status_directory datagrepper_url skip_last_message moksha.workers_per_consumer
moksha.blocking_mode moksha.monitoring.socket moksha.monitoring.socket.mode moksha.livesocket.websocket.port stomp_* irc
logging fedmsg.consumers.gateway.port fedmsg.consumers.gateway.high_water_mark publish_endpoint mute
"""
