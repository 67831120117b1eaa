"""`fedbus completion`: the script that lets a shell complete fedbus."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from fedbus.cli.common import examples


@click.command(
    "completion",
    epilog=examples(
        'eval "$(fedbus completion bash)"                            in ~/.bashrc',
        'eval "$(fedbus completion zsh)"                             in ~/.zshrc, after compinit',
        "fedbus completion fish > ~/.config/fish/completions/fedbus.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that lets SHELL complete commands, options, endpoints and topics.

    Endpoints and services are those of the configuration in use, topics those in the journals of this host.
    """
    from fedbus.cli.main import fedbus_command

    kind = get_completion_class(shell)
    assert kind is not None
    shown = kind(fedbus_command, {}, "fedbus", "_FEDBUS_COMPLETE")
    # not source(): for bash that runs whatever bash is in the path, only to warn of one from before 2009
    click.echo(shown.source_template % shown.source_vars())
