"""`fedbus` with ports that a test chose: for commands that make a bus of their own, as `init` and `demo` do.

Tests beside this one choose theirs from what is free, and so would the command: each might take what the other is about
to bind. The ports of :func:`command` are of this worker of pytest-xdist alone.
"""

from __future__ import annotations

import sys

from fedbus.cli import main
from fedbus.config import init


def command(endpoints: int) -> tuple[str, ...]:
    """Return what stands before the arguments of `fedbus`; it has ports for so many *endpoints*."""
    return (sys.executable, __file__, ",".join(map(str, init.free_ports(2 * endpoints))))


if __name__ == "__main__":
    ports = iter([int(port) for port in sys.argv.pop(1).split(",")])
    init._candidates = lambda: ports
    main.main()
