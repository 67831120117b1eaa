"""`fedbus new-consumer`: a consumer to begin with, its test, and what the configuration needs."""

from __future__ import annotations

import json
import keyword
import os
import sys
from pathlib import Path

import click

from fedbus.cli.common import examples, notice

_EXAMPLES = examples(
    "fedbus new-consumer announce --topic koji.package.build.complete",
    "fedbus new-consumer count-updates --topic bodhi --directory ~/bus/consumers",
)

_CONSUMER = '''"""The consumer {name}; try it with ``fedbus hub --consumer {module}.py``."""

from typing import Any

from fedbus import Consumer, Drop, Message, Retry


class {kind}(Consumer):
    """Prints a line for each message. Write here what it is for."""

    name = "{name}"
    topics = {topics}

    # JSON Schema of `settings` in the configuration, which __init__ gets as keyword arguments
    schema = {{
        "type": "object",
        "properties": {{"greeting": {{"type": "string", "minLength": 1}}}},
        "additionalProperties": False,
    }}

    def __init__(self, greeting: str = "{name}:") -> None:
        self.greeting = greeting

    def start(self) -> None:
        """Open what it needs. Tried again later if it raises."""

    def consume(self, message: Message) -> None:
        """Work on one message. Returning says that it is done; it may come again after a crash, with the same key."""
        if not message.body:
            raise Drop("it says nothing")  # never again
        try:
            self.say(message.topic, message.body)
        except OSError as error:
            raise Retry(after=30.0, reason=str(error)) from error  # the same message once more
        # anything else that is raised is tried again a few times, then the message becomes a dead letter

    def say(self, topic: str, body: dict[str, Any]) -> None:
        print(self.greeting, topic.rpartition(".")[2], body, flush=True)

    def stop(self) -> None:
        """Close it again."""
'''

_TEST = '''"""What {name} does with messages: ``pytest {test}``.

The fixture fedbus_bus is a private bus: messages are signed, verified and decoded as everywhere. A hub
delivers them after ``fedbus_bus.run(...)``; the page "Testing consumers" of the documentation says more.
"""

import fedbus
import pytest
from fedbus.testing import LocalBus

from {module} import {kind}


def test_it_tells_of_a_message(fedbus_bus: LocalBus, capsys: pytest.CaptureFixture[str]) -> None:
    {kind}(greeting="look:").consume(fedbus_bus.message("thing.change", {{"package": "bash"}}))
    assert capsys.readouterr().out == "look: change {{'package': 'bash'}}\\n"


def test_it_drops_a_message_that_says_nothing(fedbus_bus: LocalBus) -> None:
    with pytest.raises(fedbus.Drop):
        {kind}().consume(fedbus_bus.message("thing.change", {{}}))
'''

_SETTINGS = """# Copy this into the configuration, and {module}.py into the folder that hub.folder names.
# hub:
#   folder: consumers
consumers:
  {name}:
    use: {module}.py
    # isolation: process   # may then crash, hang and leak without harm to other consumers
    # timeout: 60s
    # attempts: 4
    settings:
      greeting: "{name}:"
"""


@click.command("new-consumer", epilog=_EXAMPLES)
@click.argument("name", metavar="NAME")
@click.option("--topic", "topics", multiple=True, metavar="FILTER", help="What it gets, else all; may be repeated.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    show_default=True,
    help="The folder to write into.",
)
@click.option("--json", "as_json", is_flag=True, help="Say what was written as JSON.")
def new_consumer(name: str, topics: tuple[str, ...], directory: Path, as_json: bool) -> None:
    """Write a consumer that works, with its test and its piece of configuration.

    Three files: NAME.py, test_NAME.py, NAME.yaml ("-" becomes "_"). None that is there is written over.
    """
    module = _module(name)
    _check(topics)
    kind = "".join(part.capitalize() for part in module.split("_") if part)
    test = f"test_{module}.py"
    words = {
        "name": name,
        "module": module,
        "kind": kind,
        "test": test,
        "topics": "(" + "".join(f'"{topic}", ' for topic in topics or ("#",)).rstrip(" ") + ")",
    }
    if len(topics) > 1:
        words["topics"] = words["topics"].replace(",)", ")")
    texts = {f"{module}.py": _CONSUMER, test: _TEST, f"{module}.yaml": _SETTINGS}
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    there = [file for file in texts if (directory / file).exists()]
    if there:
        raise click.ClickException(f"{directory / there[0]} is there already; choose another name or folder")
    for file, text in texts.items():
        # the hub refuses what others may write, whatever the umask
        descriptor = os.open(directory / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            os.fchmod(descriptor, 0o644)
            opened.write(text.format_map(words))
    if as_json:
        click.echo(json.dumps({"name": name, "files": [str(directory / file) for file in texts]}))
        return
    for file in texts:
        click.echo(str(directory / file))
    notice(f"try it: fedbus hub --consumer {directory / module}.py; test it: pytest {directory / test}")


def _module(name: str) -> str:
    from fedbus.hub.consumer import check_name

    try:
        check_name(name)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="NAME") from error
    module = name.replace("-", "_")
    if not module.isidentifier() or keyword.iskeyword(module):
        reason = f"{name!r} must be fit for a module's name: a letter first, and no keyword"
        raise click.BadParameter(reason, param_hint="NAME")
    # its test imports it by this name, and would get the other one
    if module in sys.stdlib_module_names or module in ("fedbus", "fedbus_consumers", "pytest"):
        reason = f"{name!r} is the name of a module that there is already; take another one, such as {name}-messages"
        raise click.BadParameter(reason, param_hint="NAME")
    return module


def _check(topics: tuple[str, ...]) -> None:
    from fedbus.errors import MessageError
    from fedbus.model.topic import Naming, TopicFilter

    for topic in topics:
        try:
            TopicFilter.parse(topic, Naming())
        except MessageError as error:
            raise click.BadParameter(str(error), param_hint="--topic") from error
