"""The process of one isolated consumer: loads it, and does to it what the hub asks for over a socket.

What travels is JSON, and the parcels as they were signed; the hub has verified them. The hub ends this process when it
hangs or takes too much memory, and this process ends with the hub.
"""

from __future__ import annotations

import ctypes
import inspect
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from fedbus.errors import ConfigError
from fedbus.hub.consumer import Consumer, Drop, Halt, Retry
from fedbus.hub.options import Batch, ConsumerSettings
from fedbus.hub.registry import load_configured
from fedbus.model.limits import Limits
from fedbus.model.message import Message
from fedbus.texts.texts import TextRule, Texts
from fedbus.transport.state import Loss
from fedbus.wire import parcel as parcels
from fedbus.wire.envelope import open_parcel

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

_TEXT = 20_000  # characters of an error or of a line of the log
_PR_SET_PDEATHSIG = 1  # prctl(2)


def main(descriptor: int, parent: int) -> None:
    """Serve the hub, process *parent*, over the socket *descriptor* until it is closed."""
    _end_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # these reach the whole service; the hub decides when this process ends. A function, since what a consumer
        # starts would inherit that they are ignored
        signal.signal(number, lambda number, frame: None)
    child = _Child(Connection(descriptor))
    try:
        child.serve()
    except (EOFError, OSError):
        pass  # the hub has gone
    finally:
        sys.stdout.flush()
        os._exit(0)  # threads of the consumer must not keep it


def _end_with(parent: int) -> None:
    try:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (OSError, AttributeError):
        return  # the socket's end tells it too, unless the consumer hangs
    if os.getppid() != parent:
        os._exit(0)


class _Child:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._turn = threading.Lock()
        self._consumer: Consumer | None = None
        self._limits = Limits()
        self._loop: AbstractEventLoop | None = None
        self._messages: dict[int, Message] = {}  # of the last parcel, by index

    def serve(self) -> None:
        while True:
            asked = orjson.loads(self._connection.recv_bytes())
            # all of it, whatever becomes of the first: what is left would be taken for the next question
            count = sum(part["frame"] for part in asked["parts"]) if "parts" in asked else int(bool(asked.get("frame")))
            frames = [self._connection.recv_bytes() for _ in range(count)]
            self._send(self._answer(asked, frames))

    def _send(self, answer: dict[str, Any]) -> None:
        data = orjson.dumps(answer, default=str)
        with self._turn:
            self._connection.send_bytes(data)

    def _answer(self, asked: dict[str, Any], frames: list[bytes]) -> dict[str, Any]:
        try:
            result = self._do(asked, frames)
        except Retry as retry:
            return {"did": "retry", "after": retry.after, "reason": _text(retry.reason)}
        except Drop as drop:
            return {"did": "drop", "reason": _text(drop.reason)}
        except Halt as halt:
            return {"did": "halt", "exit_code": halt.exit_code, "reason": _text(halt.reason)}
        except ConfigError as error:
            return {"did": "problem", "problems": [_text(problem) for problem in error.problems]}
        except BaseException as error:
            return {
                "did": "fail",
                "text": _where(error),
                "traceback": _text("".join(traceback.format_exception(error))),
            }
        return {"did": "done", **(result or {})}

    def _do(self, asked: dict[str, Any], frames: list[bytes]) -> dict[str, Any] | None:
        operation = asked["do"]
        if operation == "load":
            return self._load(asked)
        consumer = self._consumer
        assert consumer is not None
        if operation == "consume":
            for frame in frames:
                self._open(frame, asked["signer"])
            message = self._messages[asked["index"]]
            self._settle(lambda: consumer.consume(message))
        elif operation == "consume_batch":
            messages = list(self._gather(asked["parts"], frames))
            self._settle(lambda: consumer.consume_batch(messages))
        elif operation == "texts":
            rules = [TextRule.parse(one["topic"], one["values"], rank=one["rank"]) for one in asked["rules"]]
            consumer.texts = Texts(rules, root=asked["root"])
        elif operation == "start":
            consumer.state = Path(asked["state"]) if asked.get("state") else None
            self._settle(consumer.start)
        elif operation == "stop":
            self._settle(consumer.stop)
        elif operation == "lost":
            self._settle(lambda: consumer.lost(Loss(**asked["loss"])))
        return None

    def _load(self, asked: dict[str, Any]) -> dict[str, Any]:
        for folder in asked["path"]:
            if folder not in sys.path:
                sys.path.append(folder)
        root = logging.getLogger()
        root.setLevel(asked["level"])
        root.addHandler(_ToHub(self._send))
        self._limits = Limits(**asked["limits"])
        wanted = asked["settings"]
        changes = {
            "topics": tuple(wanted["topics"]),
            "batch": None if wanted["batch"] is None else Batch(**wanted["batch"]),
            "isolation": "thread",
        }
        settings = ConsumerSettings(**{**wanted, **changes})
        folder = Path(asked["folder"]) if asked["folder"] is not None else None
        enabled = load_configured(settings, folder=folder, since=asked["since"], origins=asked["origins"])
        self._consumer = enabled.consumer
        batch = enabled.batch
        return {
            "topics": list(enabled.topics),
            "since": enabled.since,
            "batch": None if batch is None else [batch.messages, batch.seconds],
        }

    def _gather(self, parts: list[dict[str, Any]], frames: list[bytes]) -> Iterator[Message]:
        left = iter(frames)
        for part in parts:
            if part["frame"]:
                self._open(next(left), part["signer"])
            for index in part["indexes"]:
                yield self._messages[index]

    def _open(self, frame: bytes, signer: str) -> None:
        parcel = parcels.decode(frame, parcel_bytes=len(frame))
        opened = open_parcel(parcel, signer, self._limits, lambda error: None)  # the hub has told of what it refused
        self._messages = {message.index: message for message in opened}

    def _settle(self, call: Callable[[], object]) -> None:
        result = call()
        if inspect.isawaitable(result):
            if self._loop is None:
                # it takes 25 ms to import, and a process is started anew for each crash of its consumer
                import asyncio

                self._loop = asyncio.new_event_loop()
            self._loop.run_until_complete(_await(result))


async def _await(result: Any) -> None:
    await result


class _ToHub(logging.Handler):
    """Hands what is logged here to the hub's log."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._hand_over = send

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = _text(self.format(record))
            self._hand_over({"did": "log", "level": record.levelno, "name": record.name, "text": text})
        except Exception:
            self.handleError(record)


def _text(text: str) -> str:
    cut = text if len(text) <= _TEXT else text[:_TEXT] + "…"
    return cut.encode("utf-8", "backslashreplace").decode("utf-8")


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = next((frame for frame in reversed(frames) if "/fedbus/hub/" not in frame.filename), None)
    at = f" ({place.filename}:{place.lineno})" if place else ""
    return f"{type(error).__name__}: {_text(str(error)[:500])}{at}"
