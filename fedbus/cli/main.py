"""The command `fedbus`: subcommands that are imported only when they are called, and one table of exit codes."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

import fedbus
from fedbus import errors
from fedbus.cli.common import examples, notice, set_up_logs, share_options, shared_options
from fedbus.cli.signals import Finished, guard_standard_streams, silence_stdout

# name -> module, attribute, line for --help (so that listing them imports none)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "init": ("fedbus.cli.init", "init", "Write a complete private set-up into a folder."),
    "demo": ("fedbus.cli.demo", "demo", "Run a whole bus on this machine, live."),
    "publish": ("fedbus.cli.publish", "publish", "Publish messages from scripts and hooks."),
    "tail": ("fedbus.cli.tail", "tail", "Show the bus, as it happens or from the past."),
    "hub": ("fedbus.cli.hub", "hub", "Run consumers, each with a cursor of its own."),
    "new-consumer": ("fedbus.cli.new_consumer", "new_consumer", "Write a working consumer, its test and its YAML."),
    "dead": ("fedbus.cli.dead", "dead", "Show, requeue and drop dead letters of the hub's consumers."),
    "journal": ("fedbus.cli.journal", "journal", "Show, verify, export and restore journals."),
    "history": ("fedbus.cli.history", "history", "Search, count, export and verify the history of all messages."),
    "relay": ("fedbus.cli.relay", "relay", "Take messages from hooks, scripts and web workers of this host."),
    "bridge": ("fedbus.cli.bridge", "bridge", "Carry a fedmsg bus into this one, and this one out to it."),
    "cursor": ("fedbus.cli.cursor", "cursor", "Show where named readers have come to; forget a cursor."),
    "schema": ("fedbus.cli.schema", "schema", "JSON Schemas by topic: list, show, check, export as AsyncAPI."),
    "keys": ("fedbus.cli.keys", "keys", "Make a CA; issue, rotate, revoke and verify certificates."),
    "config": ("fedbus.cli.config", "config", "Show the merged settings, and where each comes from."),
    "check": ("fedbus.cli.check", "check", "Check settings, keys, endpoints and topics."),
    "systemd": ("fedbus.cli.units", "systemd", "Print or write units for systemd."),
    "man": ("fedbus.cli.man", "man", "Print or write the manual pages."),
    "completion": ("fedbus.cli.completion", "completion", "Print the script that lets a shell complete fedbus."),
}

OK, FAILURE, USAGE, CONFIGURATION, TRUST, CONNECTION, TIMEOUT, GAP = range(8)

# the first class that fits decides; 128 + n: ended by signal n
EXIT_CODES: tuple[tuple[type[errors.FedbusError], int], ...] = (
    (errors.ConfigError, CONFIGURATION),
    (errors.KeysError, CONFIGURATION),
    (errors.TrustError, TRUST),
    (errors.BindError, CONNECTION),
    (errors.ConnectError, CONNECTION),
    (errors.JournalLocked, CONNECTION),
    (errors.DeadlineExceeded, TIMEOUT),
    (errors.QueueFull, TIMEOUT),
    (errors.LossError, GAP),
    (errors.FedbusError, FAILURE),
)


def exit_code(error: errors.FedbusError) -> int:
    """Return the exit code for *error*: 3 configuration, 4 signature or policy, 5 connection, 6 timeout, 7 a gap."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


class LazyGroup(click.Group):
    """Imports a subcommand's module when the subcommand is called, completed, or asked for help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return load(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        names = [CompletionItem(name, help=text) for name, (_, _, text) in COMMANDS.items()]
        return [one for one in names if one.value.startswith(incomplete)] + click.Command.shell_complete(
            self, ctx, incomplete
        )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(COMMANDS)}"
            ctx.fail(f"no such command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)


_loaded: dict[str, click.Command] = {}


def load(name: str) -> click.Command:
    """Import the subcommand *name*, and give it the options that all have."""
    if name not in _loaded:
        module, attribute, _ = COMMANDS[name]
        _loaded[name] = share_options(getattr(importlib.import_module(module), attribute))
    return _loaded[name]


_EPILOG = examples(
    "fedbus demo                              see it all at work",
    "fedbus init ~/bus --endpoint koji.build01",
    "export FEDBUS_CONFIG=~/bus",
    "fedbus tail --since 1h koji &",
    'fedbus publish package.build.complete \'{"package": "bash"}\'',
    'eval "$(fedbus completion bash)"         zsh and fish too',
)


@click.group("fedbus", cls=LazyGroup, params=[*shared_options()], epilog=_EPILOG)
@click.version_option(fedbus.__version__, prog_name="fedbus")
def fedbus_command() -> None:
    """A decentralized, signed and durable message bus.

    Data goes to stdout, notices to stderr. Exit codes: 0 ok, 1 failure, 2 usage, 3 configuration, 4 signature or
    policy, 5 connection, 6 timeout, 7 a gap under --strict, 128+n ended by signal n.
    """


def main() -> NoReturn:
    """`fedbus`."""
    _exit(run(fedbus_command, "fedbus", sys.argv[1:]))


def publish_main() -> NoReturn:
    """`fedbus-publish`."""
    _exit(run(load("publish"), "fedbus-publish", sys.argv[1:]))


def tail_main() -> NoReturn:
    """`fedbus-tail`."""
    _exit(run(load("tail"), "fedbus-tail", sys.argv[1:]))


def hub_main() -> NoReturn:
    """`fedbus-hub`."""
    _exit(run(load("hub"), "fedbus-hub", sys.argv[1:]))


def run(command: click.Command, name: str, arguments: Sequence[str]) -> int:
    """Run *command* and return the exit code; whatever goes wrong is told on stderr, without a traceback.

    With ``-v`` the traceback is shown too. A reader of stdout that goes away ends the command quietly, with 0.
    """
    guard_standard_streams()
    instruction = os.environ.get(f"_{name.replace('-', '_').upper()}_COMPLETE")
    if instruction:
        from click.shell_completion import shell_complete

        return shell_complete(command, {"obj": {}}, name, f"_{name.replace('-', '_').upper()}_COMPLETE", instruction)
    given: dict[str, Any] = {}
    set_up_logs(given)
    try:
        with command.make_context(name, list(arguments), obj=given) as context:
            set_up_logs(given)
            result = command.invoke(context)
            if sys.stdout is not None:
                sys.stdout.flush()
        return result if isinstance(result, int) and not isinstance(result, bool) else OK
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        if isinstance(error, click.UsageError):
            _show_usage(error, name)
            return USAGE
        _tell(given, error, error.format_message())
        return FAILURE
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        silence_stdout()
        return OK
    except errors.FedbusError as error:
        _tell(given, error, str(error))
        return exit_code(error)
    except OSError as error:
        _tell(given, error, f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        return FAILURE
    except Exception as error:
        # a fault of ours: say what is needed to find it, and how to see more
        hint = "" if given.get("verbose") else " (-v shows where; please report it)"
        _tell(given, error, f"unexpected {type(error).__name__}: {error}{hint}")
        return FAILURE


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            # the interpreter flushes once more at its end, and would complain
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)
    if isinstance(code, Finished):
        os._exit(code)
    sys.exit(code)


def _tell(given: dict[str, Any], error: BaseException, text: str) -> None:
    if given.get("verbose"):
        notice("".join(traceback.format_exception(error)).rstrip("\n"))
    import logging

    if given.get("log_form") == "json":
        logging.getLogger("fedbus").error(text, extra={"error": type(error).__name__})
        return
    from fedbus.cli import logs

    shown = f"fedbus: {text}"
    notice(logs.with_priority(shown, logging.ERROR) if logs.to_journal() else shown)


def _show_usage(error: click.UsageError, name: str) -> None:
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # since click 8.2: its text is the help
        notice(error.format_message())
        return
    if error.ctx is not None:
        notice(error.ctx.get_usage())
        notice(f"Try '{error.ctx.command_path} --help' for help.\n")
    notice(f"Error: {error.format_message()}")


if __name__ == "__main__":
    main()
