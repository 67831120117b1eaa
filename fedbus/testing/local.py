"""A whole bus in one process: real keys, journals and sockets in a folder of its own, and a hub for what is tested."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedbus.bus import Bus
    from fedbus.config.settings import Settings
    from fedbus.hub.consumer import Consumer
    from fedbus.hub.delivery import Delivery
    from fedbus.hub.enabled import Enabled
    from fedbus.hub.hub import Hub
    from fedbus.model.message import Message, MessageKey
    from fedbus.model.receipt import Receipt
    from fedbus.transport.publisher import Publisher
    from fedbus.transport.state import Loss

ENDPOINT = "test.host01"
_PATIENCE = 60.0  # seconds, for whatever happens soon
_LOOK_SECONDS = 0.005
_EARLIER_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class DeadMessage:
    """A dead letter: a message that a consumer was given as often as it may be, and did not take."""

    id: int
    consumer: str
    key: MessageKey
    topic: str
    body: dict[str, Any]
    reason: str  # the error, as "ValueError: text"
    traceback: str
    attempts: int


@dataclass(frozen=True, slots=True)
class _Sent:
    endpoint: str
    epoch: str
    sequence: int
    topic: str
    hub: int  # which run of a hub it was published in, 0 before the first


class LocalBus:
    """A bus of this process and no other, on free ports of the loopback. Use it with ``with``, or call :meth:`close`.

    ``bus`` is its :class:`~fedbus.Bus`, ``folder`` its configuration, which ``FEDBUS_CONFIG`` may name for other
    programs. What is published is signed, journaled and sent, what is consumed was verified, as everywhere; only syncs
    of the disk are left out, pauses before new tries are short, and nothing of the machine's own configuration is read.
    Belongs to one thread.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        endpoints: Sequence[str] = (ENDPOINT,),
        config: Mapping[str, Any] | None = None,
        prefix: str = "org.example",
        environment: str = "dev",
    ) -> None:
        """Make the bus in *folder*, which must be new or empty; without one in a folder that is removed at the end.

        *endpoints*: who may publish; the first one does where none is named. *config*: more of a configuration, with
        the keys that its files have, such as ``{"schemas": {"topics": {…}}, "policy": […]}``.

        Raises:
            ConfigError: An endpoint's name or *config* is no good.
        """
        from fedbus.bus import Bus
        from fedbus.config.init import create
        from fedbus.config.settings import Settings

        self._temporary = tempfile.TemporaryDirectory(prefix="fedbus-") if folder is None else None
        self.folder = Path(self._temporary.name if self._temporary is not None else str(folder))
        self.bus: Bus
        self.hub: Hub | None = None
        self.losses: list[Loss] = []
        """What consumers were told is lost, in this order."""
        self.endpoints = tuple(endpoints)
        self._publishers: dict[str, Publisher] = {}
        self._sent: list[_Sent] = []
        self._runs = 0
        self._thread: threading.Thread | None = None
        self._exit_code: int | None = None
        self._failure: BaseException | None = None
        try:
            create(self.folder, self.endpoints, prefix=prefix, environment=environment)
            if config:
                path = self.folder / "90-test.yaml"
                path.write_text(json.dumps(dict(config), default=str), "utf-8")  # which is YAML
                path.chmod(0o600)
            self.bus = Bus(_quick(Settings.load(self.folder, {})))
        except BaseException:
            self._remove()
            raise

    # --- publishing --------------------------------------------------------------------------------------------

    def publisher(self, endpoint: str | None = None) -> Publisher:
        """Return the publisher of *endpoint*, which stays open until the bus is closed."""
        name = endpoint or self.endpoints[0]
        if name not in self._publishers:
            self._publishers[name] = self.bus.publisher(name, direct=True)
        return self._publishers[name]

    def publish(self, topic: str, body: Mapping[str, Any], *, endpoint: str | None = None, **more: Any) -> Receipt:
        """Publish a message; *topic* is what follows the service, ``package.build.complete``.

        Raises:
            MessageError, SchemaError, TrustError: As :meth:`fedbus.Publisher.publish`.
        """
        publisher = self.publisher(endpoint)
        receipt: Receipt = publisher.publish(topic, dict(body), **more)
        self._sent.append(_Sent(receipt.endpoint, receipt.epoch, receipt.sequence, receipt.topic, self._runs))
        return receipt

    def message(self, topic: str, body: Mapping[str, Any], *, endpoint: str | None = None, **more: Any) -> Message:
        """Publish a message and return it as consumers get it: signed, verified, decoded."""
        receipt = self.publish(topic, body, endpoint=endpoint, **more)
        key = (receipt.endpoint, receipt.epoch, receipt.sequence)
        for message in self.messages():
            if message.key == key:
                return message
        raise AssertionError(f"{receipt} was published, and nobody could read it")

    def messages(self, *filters: str) -> list[Message]:
        """Return all that was published below *filters*, or all, as a subscriber gets it, endpoint by endpoint."""
        found: list[Message] = []
        heads = {name: one.head for name, one in self._publishers.items() if one.head}
        if not heads:
            return found
        with self.bus.subscribe(*filters, since="beginning", endpoints=list(heads)) as subscriber:
            deadline = time.monotonic() + _PATIENCE
            while True:
                some = subscriber.receive(0.05)
                found += some
                if not some and subscriber.caught_up:
                    break
                if time.monotonic() > deadline:
                    raise AssertionError(f"the journals were not read within {_PATIENCE:g} s")
        return sorted(found, key=lambda message: (message.endpoint, message.sequence))

    def lose_journal(self, endpoint: str | None = None) -> None:
        """Let *endpoint* lose all that it has published, as if its disk had been replaced: readers are told of a loss.

        It goes on with a new, empty journal. Publish something behind it, so that readers find out at once.
        """
        import shutil

        name = endpoint or self.endpoints[0]
        publisher = self._publishers.pop(name, None)
        if publisher is not None:
            publisher.close()
        shutil.rmtree(self.bus.settings.journal_for(name).directory, ignore_errors=True)
        self._sent = [one for one in self._sent if one.endpoint != name]
        self.publisher(name)

    # --- consuming ---------------------------------------------------------------------------------------------

    def run(self, *consumers: Consumer | Callable[[Message], object] | Enabled, timeout: float = _PATIENCE) -> Hub:
        """Let a hub deliver to *consumers* (objects, or functions with ``@fedbus.consumer``), and return it.

        It runs in a thread of its own until :meth:`stop`; on return it reads every endpoint that was opened, so what is
        published from now on is delivered. Consumers begin where their ``since`` says, or where they were when a hub of
        this bus ran them before. A failed message is tried again after 10 ms.

        Raises:
            ConfigError: Two consumers have one name, one names no topics, or a filter is none.
            RuntimeError: There is a hub already.
        """
        from fedbus.hub.enabled import Enabled
        from fedbus.hub.registry import enable

        if self._thread is not None:
            raise RuntimeError("a hub is running already; give it all consumers, or stop() it first")
        for name in self.endpoints:
            self.publisher(name)  # an endpoint that nobody has opened is one that does not answer
        enabled = [one if isinstance(one, Enabled) else enable(one) for one in consumers]
        for one in enabled:
            self._listen(one.consumer)
        # "now" counts in milliseconds: what was published before belongs into an earlier one
        threading.Event().wait(_EARLIER_SECONDS)
        hub = self.bus.hub(enabled)
        ready = threading.Event()
        self.hub, self._exit_code, self._failure = hub, None, None
        self._runs += 1

        def work() -> None:
            try:
                self._exit_code = hub.run(on_ready=ready.set)
            except BaseException as error:  # told to whoever waits
                self._failure = error
            finally:
                ready.set()

        self._thread = threading.Thread(target=work, name="fedbus-testing-hub", daemon=True)
        self._thread.start()
        if not ready.wait(timeout):
            raise AssertionError(f"the hub was not ready within {timeout:g} s: {'; '.join(hub.reasons())}")
        if self._failure is not None:
            failure = self._failure
            self.stop()
            raise failure
        return hub

    def stop(self, timeout: float = _PATIENCE) -> int | None:
        """Stop the hub, whose consumers finish the message in hand; return its exit code, None where there is none."""
        thread, hub = self._thread, self.hub
        if thread is None or hub is None:
            return None
        if thread.is_alive():
            hub.stop()
        thread.join(timeout)
        if thread.is_alive():
            raise AssertionError(f"the hub has not ended within {timeout:g} s; busy: {_busy(hub)}")
        self._thread = None
        return self._exit_code

    def wait_consumed(self, timeout: float = _PATIENCE) -> None:
        """Return once every consumer is done with all that was published with :meth:`publish`, one way or another.

        That is: taken, dropped, or made a dead letter. Where a hub was stopped by ``Halt`` use :meth:`wait_ended`.

        Raises:
            AssertionError: Not within *timeout* seconds, or the hub has ended; the text says who hangs where.
        """
        hub, thread = self.hub, self._thread
        if hub is None or thread is None:
            raise RuntimeError("no hub is running; call run(consumer) first")
        deadline = time.monotonic() + timeout
        while waiting := self._waiting(hub):
            if not thread.is_alive():
                why = f": {self._failure}" if self._failure else f" with exit code {self._exit_code}"
                raise AssertionError(f"the hub has ended{why}, before {'; '.join(waiting)}")
            if time.monotonic() > deadline:
                faults = "; ".join(hub.reasons()) or "no fault is known"
                raise AssertionError(f"not within {timeout:g} s: {'; '.join(waiting)}. {faults}")
            threading.Event().wait(_LOOK_SECONDS)

    def wait_for(self, condition: Callable[[], Any], timeout: float = _PATIENCE, what: str = "the condition") -> Any:
        """Return the first true value of *condition*, which is asked again and again.

        Raises:
            AssertionError: It was not true within *timeout* seconds.
        """
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come true within {timeout:g} s")
            threading.Event().wait(_LOOK_SECONDS)
        return value

    def wait_ended(self, timeout: float = _PATIENCE) -> int:
        """Wait until a consumer has ended the hub with ``Halt``, and return its exit code.

        Raises:
            AssertionError: It still runs after *timeout* seconds.
        """
        thread = self._thread
        if thread is None:
            raise RuntimeError("no hub is running; call run(consumer) first")
        thread.join(timeout)
        if thread.is_alive():
            raise AssertionError(f"the hub still runs after {timeout:g} s")
        self._thread = None
        if self._failure is not None:
            raise self._failure
        assert self._exit_code is not None
        return self._exit_code

    def dead_letters(self, consumer: str | None = None) -> list[DeadMessage]:
        """Return the dead letters, the oldest first; of one *consumer* only, where it is named."""
        found = []
        for letter in self.bus.dead.list(consumer):
            rest = self.bus.dead.get(letter.id)
            if rest is None:
                continue  # taken just now
            found.append(
                DeadMessage(
                    id=letter.id,
                    consumer=letter.consumer,
                    key=letter.key,
                    topic=letter.topic,
                    body=_body(rest[1].parcel),
                    reason=letter.reason,
                    traceback=rest[1].traceback,
                    attempts=letter.attempts,
                )
            )
        return found

    def requeue(self, letter: DeadMessage) -> None:
        """Give a dead letter to its consumer again, as ``fedbus dead requeue`` does; a hub takes a second to notice."""
        self.bus.dead.requeue(letter.id)

    # --- the end -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop the hub, close everything, remove the folder if it was made here."""
        try:
            self.stop()
        finally:
            self._publishers.clear()
            try:
                self.bus.close()
            finally:
                self._remove()

    def __enter__(self) -> LocalBus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _remove(self) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()

    def _waiting(self, hub: Hub) -> list[str]:
        """Return, as words, what consumers are not done with."""
        found = []
        for delivery in hub.deliveries:
            places = delivery.places()
            for sent in self._due(delivery):
                place = places.get(sent.endpoint)
                if place is None or place.epoch != sent.epoch or place.sequence < sent.sequence:
                    name = delivery.enabled.name
                    found.append(f"consumer {name} is done with {sent.endpoint}#{sent.sequence} {sent.topic}")
                    break
        return found

    def _due(self, delivery: Delivery) -> Iterable[_Sent]:
        for sent in self._sent:
            # what was said before a hub ran is nothing to those who begin now
            early = sent.hub < self._runs and delivery.enabled.since == "now"
            if not early and any(one.matches(sent.topic) for one in delivery.filters):
                yield sent

    def _listen(self, consumer: Consumer) -> None:
        """Note what *consumer* is told is lost."""
        told = consumer.lost

        def lost(loss: Loss) -> Any:
            self.losses.append(loss)
            return told(loss)

        consumer.lost = lost  # type: ignore[method-assign]


def _quick(settings: Settings) -> Settings:
    """Return *settings* with which things happen soon, as tests want it."""
    from fedbus.journal.options import SyncPolicy

    return replace(
        settings,
        journals={name: replace(one, sync=SyncPolicy.ASYNC) for name, one in settings.journals.items()},
        publisher=replace(settings.publisher, beat_interval=0.1),
        subscriber=replace(settings.subscriber, commit_interval=0.1, silence=1.0),
        hub=replace(settings.hub, retry_pause=0.01, commit_interval=0.1, http=None),
    )


def _busy(hub: Hub) -> str:
    return "; ".join(f"consumer {one.enabled.name} with {one.in_words()}" for one in hub.unfinished()) or "nobody"


def _body(data: bytes) -> dict[str, Any]:
    """Return the body of the message in a parcel of one, of this bus; it was verified when it was consumed."""
    from fedbus.wire import parcel as parcels

    body: dict[str, Any] = json.loads(parcels.decode(data, parcel_bytes=len(data)).envelopes[0])["data"]
    return body
