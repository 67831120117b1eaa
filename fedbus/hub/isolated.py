"""A consumer in a process of its own, as the hub's thread for it sees it.

Whatever the consumer does to its process (crash, hang, leak, exit) is an error of the message in hand, which is tried
again in a new process, and at last made a dead letter. The hub and the other consumers notice nothing.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import orjson

from fedbus.errors import ConfigError, FedbusError
from fedbus.hub.consumer import Consumer, Drop, Halt, Retry
from fedbus.hub.options import Batch, ConsumerSettings
from fedbus.model.limits import Limits
from fedbus.model.message import Message
from fedbus.texts.texts import TextRule
from fedbus.transport import sockets
from fedbus.transport.state import Loss
from fedbus.wire.parcel import Parcel

log = logging.getLogger(__name__)

_LOAD_SECONDS = 60.0  # to import the consumer and all that it needs
_STOP_SECONDS = 5.0
_END_SECONDS = 5.0  # from when it has closed the connection until its exit code is there
_PIECE_SECONDS = 10.0  # for a part of what is sent or received, once it has begun
_LOOK_SECONDS = 0.05  # between two looks at the memory of a call that lasts
_IDLE_LOOK_SECONDS = 0.1
_HARD = 2  # times memory_bytes at which a call is broken off
_PAUSE = (1.0, 60.0)  # seconds between two starts that fail
_ANSWER_BYTES = 2**20
_MAIN = "import sys; from fedbus.hub.child import main; main(int(sys.argv[1]), int(sys.argv[2]))"


class ChildFailed(FedbusError):
    """The consumer raised an error in its process, or the process ended; ``trace`` is the traceback's text."""

    def __init__(self, text: str, trace: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.trace = trace


class ChildEnded(ChildFailed):
    """The process has ended while it had something to do."""


class Isolated(Consumer):
    """Runs the consumer that *wanted* names in a child process, made anew whenever it has ended.

    All methods but :meth:`kill` are for one thread.
    """

    def __init__(
        self,
        wanted: ConsumerSettings,
        *,
        folder: Path | None,
        since: str | None,
        origins: Mapping[str, str],
        limits: Limits,
    ) -> None:
        """Start the process and have it load the consumer.

        Raises:
            ConfigError: The consumer cannot be loaded.
        """
        self.failure = ""  # why there is no process at the moment
        self._wanted = wanted
        self._launch = {
            "do": "load",
            "settings": {
                **asdict(replace(wanted, settings={})),
                "settings": dict(wanted.settings),
                "topics": list(wanted.topics),
            },
            "folder": None if folder is None else str(folder.resolve()),
            "since": since,
            "origins": {key: text for key, text in origins.items() if key.startswith(f"consumers.{wanted.name}.")},
            "limits": asdict(limits),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._parcel: object = None  # the last that the process was given
        self._started = False
        self._pause = _PAUSE[0]
        self._looked_at = 0.0
        self._told_rules: tuple[TextRule, ...] | None = None  # of the texts that the process has
        facts = self._spawn()
        self.topics: tuple[str, ...] = tuple(facts["topics"])  # type: ignore[misc]
        self.since: str = facts["since"]  # type: ignore[misc]
        self.batch = None if facts["batch"] is None else Batch(*facts["batch"])  # type: ignore[misc]

    def sibling(self) -> Isolated:
        """Return the same with a process of its own, which is started when it is needed."""
        other = copy.copy(self)
        other._process = other._connection = other._parcel = None
        other._started = False
        return other

    # --- what the hub calls --------------------------------------------------------------------------------------

    def start(self) -> None:
        self._ready()

    def consume(self, message: Message) -> None:
        self._ready()
        asked: dict[str, Any] = {"do": "consume", "index": message.index}
        frame = None
        if message.parcel is not self._parcel:
            frame = cast(Parcel, message.parcel).frame
            asked |= {"frame": True, "signer": message.signer}
            self._parcel = message.parcel
        self._ask(asked, self._wanted.timeout, *(() if frame is None else (frame,)))

    def consume_batch(self, messages: Sequence[Message]) -> None:
        self._ready()
        parts: list[dict[str, Any]] = []
        frames: list[bytes] = []
        for message in messages:
            if not parts or message.parcel is not self._parcel:
                fresh = message.parcel is not self._parcel
                parts.append({"indexes": [], "frame": fresh, "signer": message.signer})
                if fresh:
                    frames.append(cast(Parcel, message.parcel).frame)
                    self._parcel = message.parcel
            parts[-1]["indexes"].append(message.index)
        self._ask({"do": "consume_batch", "parts": parts}, self._wanted.timeout, *frames)

    def lost(self, loss: Loss) -> None:
        self._ready()
        self._ask({"do": "lost", "loss": asdict(loss)}, self._wanted.timeout)

    def stop(self) -> None:
        """Let the consumer stop, and end its process."""
        try:
            if self._process is not None and self._started:
                self._ask({"do": "stop"}, min(_STOP_SECONDS, self._wanted.timeout))
        finally:
            self._end()

    def discard(self) -> None:
        """End the process, whose consumer was not started."""
        self._end()

    def kill(self) -> None:
        """End the process at once, whatever it does; any thread may call this."""
        process = self._process
        if process is not None:
            _kill(process)

    # --- the process ---------------------------------------------------------------------------------------------

    def _ready(self) -> None:
        """Have a process whose consumer was started.

        Raises:
            Retry: There can be none now, through no fault of a message.
        """
        if self._process is not None and self._process.poll() is not None:
            log.warning("consumer %s: between two messages %s", self._wanted.name, self._how_it_ended())
        elif self._process is not None and self._started:
            self._watch_memory()
        if self._process is not None and self._started:
            if self.texts.rules is not self._told_rules:
                self._tell_texts()
            return
        try:
            if self._process is None:
                self._spawn()
            self._tell_texts()
            self._ask({"do": "start", "state": str(self.state or "")}, self._wanted.timeout)
        except (Halt, Retry):
            raise
        except FedbusError as error:
            self._end()
            self.failure = f"its process cannot be started: {error}"
            pause, self._pause = self._pause, min(_PAUSE[1], self._pause * 2)
            raise Retry(pause, self.failure) from error
        self._started = True
        self.failure = ""
        self._pause = _PAUSE[0]

    def _tell_texts(self) -> None:
        """Let the consumer have the texts that the hub has given us."""
        texts = self.texts
        self._told_rules = texts.rules
        rules = [
            {
                "topic": rule.filter.text,
                "rank": rule.rank,
                "values": {
                    key: [one.text for one in some] if key in ("packages", "users") else some[0].text
                    for key, some in rule.templates.items()
                },
            }
            for rule in self._told_rules
        ]
        self._ask({"do": "texts", "root": texts.root, "rules": rules}, self._wanted.timeout)

    def _spawn(self) -> dict[str, Any]:
        ours, theirs = sockets.process_pair(_PIECE_SECONDS)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _MAIN, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # so that what it has started ends with it
            )
        except OSError as error:
            ours.close()
            raise ChildFailed(f"cannot start a process: {error.strerror}") from error
        finally:
            theirs.close()
        _make_nice(self._process.pid, self._wanted.nice)
        self._connection = Connection(ours.detach())
        self._parcel = None
        self._started = False
        launch = {**self._launch, "path": sys.path, "level": logging.getLogger("fedbus").getEffectiveLevel()}
        try:
            return self._ask(launch, _LOAD_SECONDS)
        except ConfigError:
            self._end()
            raise
        except ChildFailed as error:
            self._end()
            raise ConfigError(
                f"{self._wanted.origin}: consumer {self._wanted.name!r}: {self._wanted.use} cannot be loaded in its "
                f"process: {error.text}"
            ) from error

    def _end(self) -> None:
        process, self._process = self._process, None
        connection, self._connection = self._connection, None
        self._parcel, self._started = None, False
        if connection is not None:
            connection.close()
        if process is not None:
            _kill(process)
            process.wait()

    # --- one question and its answer -----------------------------------------------------------------------------

    def _ask(self, asked: dict[str, Any], timeout: float, *frames: bytes) -> dict[str, Any]:
        """Have the process do something; return what it says, or raise what the consumer raised there."""
        connection = self._connection
        assert connection is not None
        try:
            connection.send_bytes(orjson.dumps(asked, option=orjson.OPT_NON_STR_KEYS))
            for frame in frames:
                connection.send_bytes(frame)
            answer = self._await(connection, timeout)
        except BlockingIOError as error:
            self._end()
            raise ChildEnded(f"its process took nothing in for {_PIECE_SECONDS:g} s, and was ended") from error
        except (EOFError, OSError) as error:
            raise ChildEnded(self._how_it_ended()) from error
        did = answer["did"]
        if did == "retry":
            raise Retry(answer["after"], answer["reason"])
        if did == "drop":
            raise Drop(answer["reason"])
        if did == "halt":
            raise Halt(answer["exit_code"], answer["reason"])
        if did == "problem":
            raise ConfigError(answer["problems"])
        if did == "fail":
            raise ChildFailed(answer["text"], answer["traceback"])
        return answer

    def _await(self, connection: Connection, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        most = self._wanted.memory_bytes
        while True:
            left = deadline - time.monotonic()
            if connection.poll(max(0.0, min(left, _LOOK_SECONDS) if most else left)):
                answer: dict[str, Any] = orjson.loads(connection.recv_bytes(_ANSWER_BYTES))
                if answer["did"] != "log":
                    return answer
                log.getChild("of." + self._wanted.name).log(
                    answer["level"], "consumer %s: %s: %s", self._wanted.name, answer["name"], answer["text"]
                )
            elif left <= 0:
                self._end()
                raise ChildEnded(f"it was not done within its timeout of {timeout:g} s; its process was ended")
            elif most and (size := self._resident()) > _HARD * most:
                self._end()
                raise ChildEnded(
                    f"its process had {size} bytes, over {_HARD} times its memory_bytes {most}; it was ended"
                )

    def _how_it_ended(self) -> str:
        process = self._process
        code = None
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(_END_SECONDS)
        self._end()
        if code is None:
            return "its process has closed the connection"
        if code < 0:
            return f"its process was ended by signal {-code} ({signal.Signals(-code).name})"
        return f"its process ended with exit code {code}"

    # --- memory --------------------------------------------------------------------------------------------------

    def _watch_memory(self) -> None:
        """Between two messages: a process that has grown too large is made anew, through no fault of a message."""
        now = time.monotonic()
        if not self._wanted.memory_bytes or now - self._looked_at < _IDLE_LOOK_SECONDS:
            return
        self._looked_at = now
        size = self._resident()
        if size > self._wanted.memory_bytes:
            log.warning(
                "consumer %s: its process has grown to %d bytes of %d that memory_bytes allows; it is started anew",
                self._wanted.name,
                size,
                self._wanted.memory_bytes,
            )
            try:
                self.stop()
            except Exception as error:
                log.warning("consumer %s: stop() failed: %s", self._wanted.name, error)

    def _resident(self) -> int:
        """Return the resident memory of the process in bytes, 0 where it is not known: proc(5), statm."""
        process = self._process
        if process is None:
            return 0
        try:
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        except (OSError, ValueError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")


def _make_nice(process: int, nice: int) -> None:
    """Have a new process and what it starts leave the processor to the hub, and to others, as long as these need it.

    Where the kernel gives each session a share of the processor of its own (sched(7), autogroups), that share counts,
    and the niceness of its processes only among themselves. Where it does not, the file has no effect.
    """
    with contextlib.suppress(OSError):  # it has ended, or the kernel wants no more changes of shares right now
        os.setpriority(os.PRIO_PROCESS, process, min(19, os.getpriority(os.PRIO_PROCESS, 0) + nice))
        Path(f"/proc/{process}/autogroup").write_text(str(nice))


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it has started."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        process.kill()
