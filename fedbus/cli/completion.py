"""`fedbus completion`: the scripts that let a shell complete fedbus."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import get_completion_class

from fedbus.cli.common import examples

PROGRAMS = ("fedbus", "fedbus-publish", "fedbus-tail", "fedbus-hub")
# where each shell looks, below a `share` folder, for what completes a program
_PLACES = {
    "bash": "bash-completion/completions/{}",
    "zsh": "zsh/site-functions/_{}",
    "fish": "fish/vendor_completions.d/{}.fish",
}


def script(shell: str, program: str) -> str:
    """Return what lets *shell* complete *program*; it asks the program itself, so it is the same for each release."""
    from fedbus.cli.main import fedbus_command

    kind = get_completion_class(shell)
    assert kind is not None
    shown = kind(fedbus_command, {}, program, f"_{program.replace('-', '_').upper()}_COMPLETE")
    # not source(): for bash that runs whatever bash is in the path, only to warn of one from before 2009
    return shown.source_template % shown.source_vars()


def files() -> dict[str, str]:
    """Return the scripts of all shells and programs, by their paths below a ``share`` folder."""
    return {
        place.format(program): script(shell, program).strip() + "\n"
        for shell, place in _PLACES.items()
        for program in PROGRAMS
    }


@click.command(
    "completion",
    epilog=examples(
        'eval "$(fedbus completion bash)"                            in ~/.bashrc',
        'eval "$(fedbus completion zsh)"                             in ~/.zshrc, after compinit',
        "fedbus completion fish > ~/.config/fish/completions/fedbus.fish",
        "fedbus completion --write /usr/local/share                  for everybody, and all shells",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), required=False)
@click.option(
    "--write",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write those of all shells, for fedbus-hub and the like too, to where shells look below DIR.",
)
def completion(shell: str | None, folder: Path | None) -> None:
    """Print the script that lets SHELL complete commands, options, endpoints and topics.

    Endpoints and services are those of the configuration in use, topics those in the journals of this host.
    """
    if folder is not None:
        for place, text in files().items():
            path = folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            click.echo(str(path))
        return
    if shell is None:
        raise click.UsageError("name a shell (bash, zsh, fish), or a folder with --write")
    click.echo(script(shell, "fedbus"))
