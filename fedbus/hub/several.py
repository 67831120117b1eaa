"""Several workers, or batches: what was read waits in lanes, and threads take it from there."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue

from fedbus.failpoints import ARMED, hit
from fedbus.hub.calls import OwnLoop, Settle, SharedLoop, Stopped, where
from fedbus.hub.consumer import Consumer, Halt, Retry
from fedbus.hub.crew import Crew
from fedbus.hub.dead import Letter
from fedbus.hub.enabled import Enabled
from fedbus.hub.inhand import REQUEUED, InHand, note_of, notes
from fedbus.hub.isolated import ChildEnded, Isolated
from fedbus.hub.lanes import Job, Key, Lanes, Taken, key_of
from fedbus.hub.source import Source
from fedbus.hub.trying import Trying
from fedbus.model.message import Message, MessageKey
from fedbus.model.position import Cursor
from fedbus.transport.state import Loss

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5  # how often somebody who waits for others looks around


class _Worker:
    """A thread's own things."""

    def __init__(self, number: int, consumer: Consumer, hand: InHand, settle: Settle) -> None:
        self.number = number
        self.consumer = consumer
        self.hand = hand
        self.settle = settle
        self.current: Message | None = None  # in a call, or the first of a batch that is
        self.failure = ""
        self.delivered = 0  # not yet in the statistics
        self.thread: threading.Thread | None = None


class Several(Crew):
    """So many workers as ``workers`` says. ``async def`` runs in one event loop, a thread waits for each call.

    With ``isolation: process`` each worker has a process of its own.
    """

    def __init__(self, enabled: Enabled, trying: Trying, source: Source) -> None:
        """Raises JournalError where the notes of what is in hand cannot be opened."""
        self._enabled = enabled
        self._trying = trying
        self._stats = trying.stats
        self._clock = source.clock
        self._batched = enabled.batch is not None
        options = trying.options
        self._lanes = Lanes(
            clock=source.clock, messages=options.queue_messages, size=options.queue_bytes, batch=enabled.batch
        )
        # one worker takes all in the order in which it was read
        self._key: Key = key_of(enabled.ordered_by) if enabled.workers > 1 else lambda message: 0
        self._letters: set[int] = set()  # ids of those that are in hand
        consumer = enabled.consumer
        call = consumer.consume_batch if self._batched else consumer.consume
        self._shared: Settle | None = None
        if inspect.iscoroutinefunction(call):
            self._shared = SharedLoop(enabled.timeout, f"fedbus-{enabled.name}-loop")
        self._calls: SimpleQueue[tuple[Callable[[], object], Future[None]] | None] = SimpleQueue()
        wanted = {note_of(source.hands, enabled.name, number) for number in range(enabled.workers)}
        for path in notes(source.hands, enabled.name):
            if path not in wanted:
                path.unlink(missing_ok=True)  # of a worker that is no more; what it had was taken stock of
        self._workers: list[_Worker] = []
        for number in range(enabled.workers):
            hand = InHand(note_of(source.hands, enabled.name, number), batches=self._batched)
            one = consumer
            if isinstance(consumer, Isolated) and number:
                one = consumer.sibling()
            self._workers.append(_Worker(number, one, hand, self._shared or OwnLoop(enabled.timeout)))

    # --- the life of a crew ------------------------------------------------------------------------------------

    def begin(self) -> None:
        first, *others = self._workers
        consumer = self._enabled.consumer
        if first.thread is None:
            self._start(first)
        if not isinstance(consumer, Isolated):  # a process is started by its worker
            self._call(lambda: first.settle(consumer.start()))
        self._calls.put(None)
        for worker in others:
            self._start(worker)

    def stop(self) -> None:
        self._lanes.stop()

    def end(self, *, started: bool) -> None:
        self._lanes.stop()
        first, *others = self._workers
        for worker in others:
            if worker.thread is not None:
                worker.thread.join()
        consumer = self._enabled.consumer
        try:
            if isinstance(consumer, Isolated):
                if first.thread is None:
                    consumer.stop()  # its process may be there, from when it was loaded
            elif started:
                self._call(lambda: first.settle(consumer.stop()))
        finally:
            if first.thread is not None:
                if not started:
                    self._calls.put(None)
                self._calls.put(None)
                first.thread.join()
            if self._shared is not None:
                self._shared.close()
            for worker in self._workers:
                worker.hand.close()

    def _start(self, worker: _Worker) -> None:
        name = f"fedbus-{self._enabled.name}-{worker.number}"
        worker.thread = threading.Thread(target=self._run, args=(worker,), name=name, daemon=True)
        worker.thread.start()

    def _call(self, call: Callable[[], object]) -> None:
        """Call a hook in the thread of the first worker: what is opened there, SQLite for one, may be bound to it."""
        done: Future[None] = Future()
        self._calls.put((call, done))
        done.result()

    def _serve_calls(self) -> None:
        while (asked := self._calls.get()) is not None:
            call, done = asked
            try:
                call()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

    def adopt(self, *, messages: int, size: int) -> None:
        self._lanes.resize(messages=messages, size=size)

    def kill(self) -> None:
        for worker in self._workers:
            if isinstance(worker.consumer, Isolated):
                worker.consumer.kill()

    # --- for the hub -------------------------------------------------------------------------------------------

    @property
    def failure(self) -> str:
        for worker in self._workers:
            failure = worker.failure or (worker.consumer.failure if isinstance(worker.consumer, Isolated) else "")
            if failure:
                return f"worker {worker.number + 1} of {len(self._workers)}: {failure}"
        return ""

    @property
    def currents(self) -> Sequence[Message | None]:
        return [worker.current for worker in self._workers]

    @property
    def in_hand(self) -> int:
        return self._lanes.count

    def places(self, read: Cursor) -> Cursor:
        return self._lanes.places(read)

    def ahead(self) -> Sequence[MessageKey]:
        return self._lanes.ahead()

    # --- for the reader's thread -------------------------------------------------------------------------------

    def work(self, messages: Sequence[Message]) -> None:
        trying, key = self._trying, self._key
        jobs = []
        for message in messages:
            job = Job(key(message), message)
            if trying.attempts or trying.suspects:
                known = trying.attempts.get(message.key)
                job.done = known is not None and known.settled
                job.alone = known is not None or message.key in trying.suspects
            jobs.append(job)
        while jobs:
            room = self._lanes.room(_LOOK_SECONDS)
            if trying.stopping:
                raise Stopped
            if room:
                self._lanes.put(jobs[:room])
                del jobs[:room]

    def letters(self, found: Sequence[tuple[Letter, Message]]) -> None:
        for letter, message in found:
            # asked again behind the first look: a worker may have finished it since the letter was read
            if letter.id in self._letters or not self._trying.is_requeued(letter):
                continue
            self._letters.add(letter.id)
            job = Job(("letter", letter.id), message, alone=True)
            job.letter = letter
            self._stats.requeued += 1
            self._lanes.put([job])

    def lost(self, loss: Loss) -> None:
        self._wait_for(lambda: self._lanes.is_idle(loss.endpoint))
        job = Job(("lost", loss.endpoint), None, alone=True)
        job.loss = loss
        self._lanes.put([job])
        self._wait_for(lambda: job.done)

    def _wait_for(self, done: Callable[[], bool]) -> None:
        while not self._lanes.wait_for(done, _LOOK_SECONDS):
            if self._trying.stopping or self._lanes.stopping:
                raise Stopped

    # --- a worker ----------------------------------------------------------------------------------------------

    def _run(self, worker: _Worker) -> None:
        if worker.number == 0:
            self._serve_calls()  # until the consumer was started
        try:
            while self._make_ready(worker):
                taken = self._lanes.take()
                if taken is None:
                    break
                self._work_on(worker, taken)
        except Stopped:
            self._lanes.stop()
        except BaseException as error:  # a fault of ours
            worker.failure = f"stopped by a fault of the hub: {type(error).__name__}: {error}"
            log.exception("consumer %s: worker %d has failed", self._enabled.name, worker.number + 1)
        finally:
            worker.current = None
            worker.hand.slot[0] = 0
            if isinstance(worker.consumer, Isolated):
                try:
                    worker.consumer.stop()
                except BaseException as error:
                    log.warning("consumer %s: stop() raised %s", self._enabled.name, where(error))
            if worker.number == 0:
                self._serve_calls()  # until it was stopped
            if worker.settle is not self._shared:
                worker.settle.close()

    def _make_ready(self, worker: _Worker) -> bool:
        """Have a process, where the consumer needs one, before a message is taken; return False at the end."""
        isolated = worker.consumer
        while isinstance(isolated, Isolated) and not self._lanes.stopping:
            try:
                isolated.start()
            except Retry as retry:
                log.warning("consumer %s: %s; trying again in %.3g s", self._enabled.name, retry.reason, retry.after)
                if not isolated.failure:
                    worker.failure = f"start() is to be tried again: {retry.reason}"
                self._lanes.pass_on()
                self._trying.pause(retry.after)
            except Halt as halt:
                self._trying.halt(halt)
            else:
                worker.failure = ""
                break
        return not self._lanes.stopping

    def _work_on(self, worker: _Worker, taken: Taken) -> None:
        jobs = [job for _, some in taken for job in some]
        if self._batched and len(jobs) > 1:
            self._work_on_batch(worker, taken, jobs)
            return
        after = None
        try:
            for job in jobs:
                after = self._work_on_one(worker, job)
                if after is not None:
                    break
                job.done = True
        finally:
            with self._trying.turn:
                self._stats.delivered += worker.delivered
            worker.delivered = 0
        if ARMED:
            hit("hub.consumed")
        if after is None:
            self._lanes.finished(taken)
        else:
            self._lanes.again(taken, after)

    def _work_on_one(self, worker: _Worker, job: Job) -> float | None:
        """Return after how many seconds it is to be given again; None when it is done with."""
        if self._lanes.stopping:
            raise Stopped
        message, letter, trying = job.message, job.letter, self._trying
        if message is None:
            self._tell(worker, job)
            return None
        if letter is None and trying.attempts and not trying.may_try(message):
            return None
        worker.current = message
        worker.hand.stream(message.endpoint, message.epoch)
        worker.hand.slot[0] = message.sequence | (REQUEUED if letter is not None else 0)
        consumer = worker.consumer
        after = None
        try:
            result = consumer.consume_batch([message]) if self._batched else consumer.consume(message)
            if result is not None:
                worker.settle(result)
        except BaseException as error:
            worker.hand.slot[0], worker.current = 0, None
            after = trying.failed(message, error, letter)
        else:
            worker.hand.slot[0], worker.current = 0, None
            worker.delivered += 1
            if letter is not None or trying.attempts or trying.vain.any:
                trying.taken(message, letter)
        if after is None:
            trying.suspects.discard(message.key)
            if letter is not None:
                self._letters.discard(letter.id)
        return after

    def _work_on_batch(self, worker: _Worker, taken: Taken, jobs: list[Job]) -> None:
        messages = [job.message for job in jobs if job.message is not None]
        trying, name = self._trying, self._enabled.name
        worker.current = messages[0]
        worker.hand.batch(messages)
        try:
            if self._lanes.stopping:
                raise Stopped
            worker.settle(worker.consumer.consume_batch(list(messages)))
            if ARMED:
                hit("hub.consumed")
        except Stopped:
            raise
        except Retry as retry:
            with trying.turn:
                self._stats.retried += 1
            log.info("consumer %s: a batch of %d again in %.3g s: %s", name, len(messages), retry.after, retry.reason)
            trying.vain.tried(messages[0], retry.reason, retry.after)
            self._lanes.again(taken, retry.after)
        except Halt as halt:
            trying.halt(halt)
        except BaseException as error:
            if trying.stopping and isinstance(error, ChildEnded):
                raise Stopped from error  # it was we who ended it, at the deadline
            with trying.turn:
                self._stats.broken_batches += 1
            log.warning(
                "consumer %s: a batch of %d messages, the first one %s: %s; they are given one by one",
                name,
                len(messages),
                messages[0].key,
                where(error),
            )
            for job in jobs:
                job.alone = True
            self._lanes.again(taken, 0.0)
        else:
            with trying.turn:
                self._stats.delivered += len(messages)
            if trying.vain.any:
                trying.vain.taken(*(message.key for message in messages))
            self._lanes.finished(taken)
        finally:
            worker.current = None
            worker.hand.slot[0] = 0

    def _tell(self, worker: _Worker, job: Job) -> None:
        """Tell of a loss; what the consumer makes of it does not matter, unless it is Halt."""
        assert job.loss is not None
        try:
            worker.settle(worker.consumer.lost(job.loss))
        except Halt as halt:
            self._trying.halt(halt)
        except BaseException as error:
            log.error("consumer %s: lost() raised %s; it was to hear: %s", self._enabled.name, where(error), job.loss)
