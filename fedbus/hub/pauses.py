"""What keeps the threads of a process from holding each other up; for a process that is a hub and little else."""

from __future__ import annotations

import gc
import sys

# Threads take turns at least this often: else one that computes holds up those that wait for sockets, 5 ms each time
_SWITCH_SECONDS = 0.0005


def shorten_turns() -> None:
    """Have threads take turns more often than Python has by itself."""
    sys.setswitchinterval(_SWITCH_SECONDS)


def spare_the_collector() -> None:
    """Keep the garbage collector from what there is now, and will be for as long as the process lives.

    It stops all threads while it looks at everything, 50 ms where a few consumers are loaded.
    """
    gc.collect()
    gc.freeze()
