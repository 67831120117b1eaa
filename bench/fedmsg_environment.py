"""The environment of fedmsg 1.1.7, made once and shared by benchmarks and tests; several may ask for it at a time.

`python -m bench.fedmsg_environment` makes it, which may take minutes, or says why that does not work.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# Unpinned, pyOpenSSL has no load_crl any more: fedmsg swallows the import error and sends unsigned `null`s.
PINS = (
    "setuptools==65.7.0",
    "pyOpenSSL==24.2.1",
    "cryptography==43.0.3",
    "fedmsg[crypto_ng,commands,consumers]==1.1.7",
)


HOME = Path(__file__).resolve().parents[1] / ".bench" / "fedmsg-venv"


class Unavailable(Exception):
    """It cannot be made here, for want of an index of packages for instance."""


def environment(home: Path, say: Callable[[str], object]) -> Path:
    """Return the Python of the environment at *home*, which is made where it is not there yet.

    Raises:
        Unavailable: That does not work.
    """
    python = home / "bin" / "python"
    stamp = home / ".installed"
    wanted = "\n".join(PINS)
    home.parent.mkdir(exist_ok=True)
    with (home.parent / f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == wanted:
            return python
        say("making the environment of fedmsg 1.1.7 (once)")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "5"]
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(home)],
            [*pip, PINS[0], "wheel"],
            [*pip, "--no-build-isolation", *PINS],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
            if done.returncode:
                raise Unavailable((done.stderr.strip().splitlines() or ["no reason given"])[-1])
        stamp.write_text(wanted)
    return python


if __name__ == "__main__":
    try:
        environment(HOME, lambda text: sys.stderr.write(f"{text}\n"))
    except Unavailable as error:
        sys.stderr.write(f"it cannot be made here: {error}\n")
