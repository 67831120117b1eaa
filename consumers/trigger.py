"""Runs a command for each message, with the message on its standard input as JSON; never through a shell.

The command is a list of words, the same for all messages; nothing of a message is in its arguments, environment or
working directory, so there is nothing to quote. What it prints is kept up to a limit and logged with escapes.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping
from typing import Any

from fedbus import Consumer, Drop, Message, Retry

from .trigger_parts.command import CommandFailed, Ended, Runner, shown, signal_name
from .trigger_parts.quiet import SHORTAGE_PAUSE, Debounced, to_json
from .trigger_parts.settings import PATH, SCHEMA, find_program, meanings, seconds
from .trigger_parts.warden import Warden

__all__ = ["PATH", "CommandFailed", "Ended", "Trigger", "shown"]

log = logging.getLogger(__name__)

_SHORTAGES = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC)


class Trigger(Consumer):
    """Run a command for each message, or once things are quiet."""

    schema = SCHEMA

    def __init__(
        self,
        command: list[str],
        directory: str = "/",
        environment: Mapping[str, str] | None = None,
        keep_environment: list[str] | None = None,
        timeout: float | str = 50.0,
        kill_after: float | str = 5.0,
        output_bytes: int = 8192,
        exit_codes: Mapping[str, list[int]] | None = None,
        retry_after: float | str = 30.0,
        debounce: Mapping[str, Any] | None = None,
    ) -> None:
        kept = {name: os.environ[name] for name in keep_environment or () if name in os.environ}
        self.environment = {"PATH": PATH, "LANG": "C.UTF-8", **kept, **(environment or {})}
        self.command = [find_program(command[0], self.environment["PATH"]), *command[1:]]
        self.timeout = seconds("timeout", timeout, least=0.01)
        self.kill_after = seconds("kill_after", kill_after)
        self.retry_after = seconds("retry_after", retry_after)
        self.codes = meanings({"done": [0], "retry": [75], "drop": [], **(exit_codes or {})})
        self._warden = Warden(self.kill_after)
        self._runner = Runner(
            self.command,
            directory=directory,
            environment=self.environment,
            timeout=self.timeout,
            kill_after=self.kill_after,
            output_bytes=output_bytes,
            warden=self._warden,
        )
        self._debounced = Debounced(self.act, **debounce) if debounce else None

    def start(self) -> None:
        """Begin; takes up what was waiting for quiet when the hub ended."""
        self._warden.start()
        if self._debounced is not None:
            self._debounced.start(self.state)

    def stop(self) -> None:
        """End what still runs; what waits for quiet stays in its file."""
        if self._debounced is not None:
            self._debounced.ask_to_stop()
        self._warden.stop()
        if self._debounced is not None:
            self._debounced.stop(self.kill_after + 1.0)

    def consume(self, message: Message) -> None:
        """Run the command on *message*, or note that it is to be run. May be called from several threads."""
        record = message.record()
        if self._debounced is not None:
            self._debounced.note(record)
        else:
            self.act(record)

    def act(self, record: Mapping[str, Any]) -> None:
        """Run the command with *record* on its standard input.

        Raises:
            Retry: Its exit code, or a machine without resources, asks for another try.
            Drop: Its exit code asks to give up.
            CommandFailed: Anything else but success.
        """
        try:
            ended = self._runner.run(to_json(record) + b"\n")
        except OSError as error:
            if error.errno in _SHORTAGES:
                raise Retry(SHORTAGE_PAUSE, f"cannot start {self.command[0]}: {error.strerror}") from error
            what = error.filename or self.command[0]
            raise CommandFailed(f"cannot start {self.command[0]}: {what}: {error.strerror}") from error
        output = shown(ended)
        what = "" if ended.timed_out else self.codes.get(ended.code, "")
        if what == "done":
            if output:
                log.info("%s%s", self.command[0], output)
            return
        if ended.timed_out:
            how = f"was ended: it ran longer than its timeout of {self.timeout:g} s"
        elif ended.code < 0:
            how = f"was ended by {signal_name(-ended.code)}"
        else:
            how = f"ended with exit code {ended.code}"
        text = f"{self.command[0]} {how}{output}"
        if what == "retry":
            raise Retry(self.retry_after, text)
        if what == "drop":
            raise Drop(text)
        raise CommandFailed(text)
