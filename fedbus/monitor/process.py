"""What every process can tell of itself: its release, memory, descriptors and processor time, as metrics.

Names and units are those that the client libraries of Prometheus have agreed on, so that their dashboards fit.
"""

from __future__ import annotations

import functools
import os
import resource
import sys
import time
from pathlib import Path

from fedbus.monitor.text import Family

_STAT = Path("/proc/self/stat")
_DESCRIPTORS = Path("/proc/self/fd")
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def of_process() -> list[Family]:
    """Return the metrics of this process; what cannot be found out is left out."""
    # the package stands above this one, and is loaded before it
    version = str(getattr(sys.modules[__name__.partition(".")[0]], "__version__", ""))
    families = [Family("fedbus_build_info", "gauge", "1; the release that runs.", [({"version": version}, 1)])]

    def add(name: str, kind: str, text: str, value: float) -> None:
        families.append(Family(f"process_{name}", kind, text, [({}, value)]))

    try:
        # proc(5): the fields behind the name, which may hold blanks; from `state`, the third, on
        fields = [int(one) for one in _STAT.read_text("ascii", "replace").rpartition(")")[2].split()[1:22]]
        add("cpu_seconds_total", "counter", "Processor time used.", (fields[10] + fields[11]) / _TICKS)
        add("threads", "gauge", "Threads.", fields[16])
        add("start_time_seconds", "gauge", "When it began, in seconds since 1970.", _began(fields[18]))
        add("virtual_memory_bytes", "gauge", "Address space.", fields[19])
        add("resident_memory_bytes", "gauge", "Memory in use.", fields[20] * _PAGE)
    except (OSError, ValueError, IndexError):
        pass
    try:
        add("open_fds", "gauge", "Descriptors open.", sum(1 for _ in _DESCRIPTORS.iterdir()) - 1)
    except OSError:
        pass
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft != resource.RLIM_INFINITY:
        add("max_fds", "gauge", "Descriptors that may be open.", soft)
    return families


@functools.cache  # the wall clock may be set meanwhile, and this must not look like a restart
def _began(ticks: int) -> float:
    """Return the wall time at *ticks* after the boot of this machine."""
    return round(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / _TICKS, 2)
