"""Calls to a consumer: what an ``async def`` returned is run to its end, and what was raised is put into words."""

from __future__ import annotations

import asyncio
import inspect
import threading
import traceback
from collections.abc import Awaitable
from typing import Any, Protocol

from fedbus.hub.isolated import ChildFailed


class Stopped(BaseException):
    """The hub is stopping: leave what is not begun."""


class Settle(Protocol):
    """Runs what a hook or an ``async def`` has returned to its end."""

    def __call__(self, result: object) -> None: ...
    def close(self) -> None: ...


class OwnLoop:
    """An event loop for one thread, made when it is first needed; for one call at a time."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._loop: asyncio.AbstractEventLoop | None = None

    def __call__(self, result: object) -> None:
        if inspect.isawaitable(result):
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
            self._loop.run_until_complete(_await(result, self._timeout))

    def close(self) -> None:
        if self._loop is not None:
            self._loop.close()


class SharedLoop:
    """An event loop in a thread of its own, in which the calls of several workers run at the same time."""

    def __init__(self, timeout: float, name: str) -> None:
        self._timeout = timeout
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def __call__(self, result: object) -> None:
        if inspect.isawaitable(result):
            error = asyncio.run_coroutine_threadsafe(_caught(result, self._timeout), self._loop).result()
            if error is not None:
                raise error

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _await(result: Awaitable[Any], timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout) as limit:
            await result
    except TimeoutError as error:
        if limit.expired():
            raise TimeoutError(f"it was not done within its timeout of {timeout:g} s, and was cancelled") from error
        raise


async def _caught(result: Awaitable[Any], timeout: float) -> BaseException | None:
    """Return what is raised: `sys.exit()` in a task would end the loop, and with it all other calls."""
    try:
        await _await(result, timeout)
    except BaseException as error:
        return error
    return None


def trace_of(error: BaseException) -> str:
    """Return the traceback's text; of an error in another process that which it had there."""
    return error.trace if isinstance(error, ChildFailed) else "".join(traceback.format_exception(error))


def where(error: BaseException) -> str:
    """Return an error's class, text and the place in the consumer that raised it, for one line."""
    if isinstance(error, ChildFailed):
        return error.text
    frames = traceback.extract_tb(error.__traceback__)
    place = next((frame for frame in reversed(frames) if "/fedbus/hub/" not in frame.filename), None)
    at = f" ({place.filename}:{place.lineno})" if place else ""
    text = str(error)
    if len(text) > 500:
        text = text[:500] + "…"
    return f"{type(error).__name__}: {text}{at}"
