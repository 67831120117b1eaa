"""One service of `fedbus demo`, a process of its own: `python -m fedbus.cli.demo_service koji|bodhi|git …`.

It prints `{"up": SERVICE}` when it can publish. It ends at SIGTERM, and then prints `{"published": N}`.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from fedbus.bus import Bus
from fedbus.cli.signals import Stop
from fedbus.errors import PublisherClosed
from fedbus.transport.publisher import Publisher

_COMMITS = 400  # of the history that are read
_GIT_SECONDS = 10.0
_PAUSE_SECONDS = (0.2, 0.9)  # between two messages of a service
_PACKAGES = (
    ("bash", "5.2.37", "shell-sig"),
    ("python3.13", "3.13.1", "python-sig"),
    ("kernel", "6.12.4", "kernel-team"),
    ("zeromq", "4.3.5", "messaging-sig"),
    ("emacs", "30.1", "editors-sig"),
    ("nethack", "3.6.7", "games-sig"),
    ("git", "2.47.1", "scm-sig"),
    ("openssl", "3.2.4", "crypto-sig"),
    ("perl-Devel-CheckBin", "0.04", "editors-sig"),
    ("rust-ripgrep", "14.1.1", "rust-sig"),
    ("vim", "9.1.950", "editors-sig"),
    ("curl", "8.11.1", "net-sig"),
)
_INVENTED_SUBJECTS = (
    "Update to the new upstream release",
    "Rebuild for the new libffi",
    "Fix a crash when the terminal is resized",
    "Drop a patch that upstream has taken",
    "Turn on the tests again",
    "Correct the license tag to SPDX",
)


def find_repository(start: Path) -> Path | None:
    """Return the top folder of the git repository that *start* is in, if there is one with a commit."""
    top = _git(start, "rev-parse", "--show-toplevel")
    if not top or not _git(start, "rev-parse", "--verify", "--quiet", "HEAD"):
        return None
    return Path(top.strip())


def pushes(repository: Path) -> Iterator[dict[str, Any]]:
    """Yield pushes made of the history of *repository*, the oldest of what is read first."""
    log = _git(
        repository, "log", f"--max-count={_COMMITS}", "--no-merges", "--shortstat", "--format=%x1e%H%x1f%an%x1f%s"
    )
    branch = _git(repository, "rev-parse", "--abbrev-ref", "HEAD").strip() or "main"
    commits = []
    for entry in reversed(log.split("\x1e")[1:]):
        head, _, stat = entry.partition("\n")
        if head.count("\x1f") != 2:
            continue
        revision, author, subject = head.split("\x1f")
        commits.append({"rev": revision, "author": author, "summary": subject, "stat": stat.strip()})
    while commits:
        # those who push several commits at once do so under one name
        count = 1
        while count < min(len(commits), 3) and commits[count]["author"] == commits[0]["author"]:
            count += 1
        taken, commits = commits[:count], commits[count:]
        yield _push(repository.name, branch, taken)


def invented_pushes(chance: random.Random) -> Iterator[dict[str, Any]]:
    """Yield pushes as they may look, for a machine without a repository."""
    while True:
        name, _, owner = chance.choice(_PACKAGES)
        commit = {
            "rev": f"{chance.getrandbits(160):040x}",
            "author": owner,
            "summary": chance.choice(_INVENTED_SUBJECTS),
        }
        yield _push(name, "rawhide", [commit])


def _push(repo: str, branch: str, commits: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "repo": repo,
        "branch": branch,
        "pusher": commits[-1]["author"],
        "summary": commits[-1]["summary"],
        "commits": commits,
    }


def _git(folder: Path, *arguments: str) -> str:
    """Return what git prints, or nothing where it cannot say."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "--no-pager", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_SECONDS,
            check=False,
            # no prompt, no lock, nothing fetched for a partial clone
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace").replace("\0", "") if done.returncode == 0 else ""


def koji(publisher: Publisher, stop: Stop, chance: random.Random) -> None:
    """Build packages: each build starts, and then completes or fails."""
    running: list[dict[str, Any]] = []
    number = 2_600_000
    while not stop.wait(chance.uniform(*_PAUSE_SECONDS)):
        if len(running) < 2 or (len(running) < 5 and chance.random() < 0.4):
            number += chance.randrange(1, 9)
            package, version, owner = chance.choice(_PACKAGES)
            build = {"build": number, "package": package, "version": version, "owner": owner, "target": "f42"}
            running.append(build)
            publisher.publish("package.build.start", build)
            continue
        build = running.pop(0)
        if chance.random() < 0.15:
            publisher.publish("package.build.fail", {**build, "reason": "tests failed on s390x"})
        else:
            publisher.publish("package.build.complete", {**build, "seconds": chance.randrange(40, 900)})
            publisher.publish("package.tag.add", {"package": package_of(build), "tag": "f42-candidate"})


def package_of(build: dict[str, Any]) -> str:
    """Return name and version, as people write them."""
    return f"{build['package']}-{build['version']}"


def bodhi(bus: Bus, publisher: Publisher, stop: Stop, chance: random.Random) -> None:
    """Make an update of each build that koji says is complete, and let people test it."""
    with bus.subscribe("koji.package.build.complete", since="beginning") as builds:
        stop.on_stop = builds.stop
        waiting: list[dict[str, Any]] = []
        while not stop.signal:
            for message in builds.receive(chance.uniform(*_PAUSE_SECONDS)):
                build = message.body
                update = {
                    "update": f"FEDORA-2026-{chance.getrandbits(40):010x}",
                    "builds": [package_of(build)],
                    "submitter": build["owner"],
                    "type": chance.choice(["bugfix", "security", "enhancement"]),
                }
                publisher.publish("update.create", update)
                waiting.append(update)
            if waiting and chance.random() < 0.5 and not stop.signal:
                update = chance.choice(waiting)
                karma = chance.choice([1, 1, 1, -1])
                comment = "works for me" if karma > 0 else "does not start here"
                publisher.publish(
                    "update.comment.add",
                    {
                        "update": update["update"],
                        "author": chance.choice(_PACKAGES)[2],
                        "karma": karma,
                        "text": comment,
                    },
                )
                if karma > 0 and chance.random() < 0.5:
                    waiting.remove(update)
                    publisher.publish("update.push", {"update": update["update"], "builds": update["builds"]})


def git(publisher: Publisher, stop: Stop, chance: random.Random, repository: Path | None) -> None:
    """Say again what was pushed to a repository of this machine."""
    source = pushes(repository) if repository is not None else invented_pushes(chance)
    for push in source:
        if stop.wait(chance.uniform(*_PAUSE_SECONDS)):
            return
        publisher.publish("push.receive", push)
    stop.wait(24 * 3600.0)  # all is said


def main(arguments: list[str] | None = None) -> int:
    """Run one service until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("service", choices=["koji", "bodhi", "git"])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--repository", type=Path)
    given = parser.parse_args(arguments)
    chance = random.Random()
    published = 0
    with Stop() as stop, Bus.open(given.config) as bus:
        publisher = bus.publisher(given.endpoint, direct=True)
        print(orjson.dumps({"up": given.service}).decode(), flush=True)
        try:
            if given.service == "koji":
                koji(publisher, stop, chance)
            elif given.service == "bodhi":
                bodhi(bus, publisher, stop, chance)
            else:
                git(publisher, stop, chance, given.repository)
        except PublisherClosed as error:
            print(f"fedbus: {error}", file=sys.stderr)
            return 1
        published = publisher.stats.published
    print(orjson.dumps({"published": published}).decode(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
