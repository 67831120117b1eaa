"""The message of every measurement: the end of a build, 1 KiB of compact JSON, the same dict for all peers.

Only the standard library is used here: the environment of fedmsg imports this module too.
"""

from __future__ import annotations

from typing import Any

TOPIC = "package.build.complete"  # below org.example.dev.koji wherever a peer's naming has room for it

_TEMPLATE: dict[str, Any] = {
    "counter": 0,
    "build": {
        "id": 2469187,
        "task_id": 122730641,
        "name": "python-orjson",
        "epoch": None,
        "version": "3.10.12",
        "release": "2.fc41",
        "state": "COMPLETE",
        "draft": False,
        "source": "git+https://src.example.org/rpms/python-orjson.git#6c2f0a4b1d9e83751f0c4be2a7d35f9088e1c6aa",
        "owner": {"name": "ralph", "id": 4312, "groups": ["packager", "python-sig", "rust-sig"]},
        "started": 1763741402.183,
        "finished": 1763741689.902,
    },
    "tags": ["f41-updates-candidate", "f41-updates-testing-pending"],
    "artifacts": [
        {"arch": "x86_64", "rpm": "python3-orjson-3.10.12-2.fc41.x86_64.rpm", "bytes": 331776, "signed": True},
        {"arch": "aarch64", "rpm": "python3-orjson-3.10.12-2.fc41.aarch64.rpm", "bytes": 318464, "signed": True},
        {"arch": "src", "rpm": "python-orjson-3.10.12-2.fc41.src.rpm", "bytes": 2097152, "signed": False},
    ],
    "host": {"name": "buildvm-x86-17.example.org", "load": 3.41, "capacity": 8.0},
    "changelog": "- Update to 3.10.12 (rhbz#2312604); drop the patch for big-endian, merged upstream",
    "message": "python-orjson-3.10.12-2.fc41 by ralph: build completed \u2713 after 287 seconds",
}


def event(counter: int) -> dict[str, Any]:
    """A new dict whose "counter" is *counter*; what is nested below it is shared and must not be changed."""
    return {**_TEMPLATE, "counter": counter}


def stamped(counter: int, sent_ns: int) -> dict[str, Any]:
    """The same with "sent_ns", the monotonic clock's nanoseconds at publish(), for latency."""
    return {**_TEMPLATE, "counter": counter, "sent_ns": sent_ns}
