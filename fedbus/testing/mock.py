"""Publishing without a bus: what code under test publishes is checked as always, and recorded instead of sent."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from fedbus.errors import SchemaError
from fedbus.testing.matching import Expected, Published, check_expected, difference

if TYPE_CHECKING:
    from fedbus.bus import Bus
    from fedbus.config.settings import Settings
    from fedbus.model.receipt import Receipt
    from fedbus.schemas.registry import Schemas

EPOCH = "00000000-0000-7000-8000-000000000000"  # of receipts that are proof of nothing


@contextmanager
def mock_publishes(
    *expected: Expected,
    ordered: bool = True,
    schemas: Mapping[str, Any] | Path | str | None = None,
    prefix: str = "org.example",
    environment: str = "dev",
) -> Iterator[list[Published]]:
    """Within the block nothing is sent, and at its end what was published must be *expected*: so many, in that order.

    Each of *expected* is a topic, a pair ``(topic, body)``, a mapping with some of ``topic``, ``body``, ``endpoint``,
    ``dataschema`` and ``traceparent``, or something that is called with the :class:`Published` message. Topics may be
    written in full, or from the service on, or as the code says them. Bodies are compared with ``==``, so
    `containing(...)` and `unittest.mock.ANY` can stand in them. None expected: nothing may be published. With *ordered*
    false the order does not matter.

    Topics, bodies, policy and schemas are checked as when publishing, and the same errors are raised. ``Bus.open()``
    without a folder, and without ``FEDBUS_CONFIG``, opens a bus of its own, whatever is configured on the machine:
    topics are below *prefix*.*environment* there, and any endpoint may be published from.
    *schemas* are JSON Schemas by topic, or a folder of them as in a configuration, in place of those configured. A body
    that does not fit its schema fails the test even if the code catches the error.

    Yields the list of published messages, which grows as they come.

    Raises:
        AssertionError: Something else was published; the text shows the difference.
        TypeError: *expected* holds something else.
    """
    check_expected(expected)
    with _recording(schemas, prefix, environment) as recorder:
        yield recorder.published
    text = difference(expected, recorder.published, ordered=ordered)
    if text:
        raise AssertionError(text)


@contextmanager
def record_publishes(
    *, schemas: Mapping[str, Any] | Path | str | None = None, prefix: str = "org.example", environment: str = "dev"
) -> Iterator[list[Published]]:
    """Like `mock_publishes`, but expect nothing: look at the list that is yielded."""
    with _recording(schemas, prefix, environment) as recorder:
        yield recorder.published


@contextmanager
def _recording(schemas: Mapping[str, Any] | Path | str | None, prefix: str, environment: str) -> Iterator[_Recorder]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedbus-mock-")))
        recorder = _Recorder(folder, schemas, prefix, environment)
        recorder.replace(stack)
        yield recorder
    if recorder.misfits:
        raise AssertionError("published although it does not fit its schema:\n" + "\n".join(recorder.misfits))


class _Recorder:
    """Stands in for publishers, and keeps what they were given."""

    def __init__(
        self, folder: Path, schemas: Mapping[str, Any] | Path | str | None, prefix: str, environment: str
    ) -> None:
        self.published: list[Published] = []
        self.misfits: list[str] = []
        self._heads: dict[str, int] = {}
        self._lock = threading.Lock()
        self.settings = _settings(folder, schemas, prefix, environment)
        self.schemas: Schemas | None = None
        if schemas is not None:
            from fedbus.config.schemas import open_schemas

            self.schemas = open_schemas(self.settings)[0]

    def replace(self, stack: ExitStack) -> None:
        """Until *stack* is left, let all publishers of this process record."""
        from fedbus.bus import Bus
        from fedbus.transport.publisher import Publisher
        from fedbus.transport.relay_client import RelayPublisher

        recorder, really_open = self, Bus.open.__func__  # type: ignore[attr-defined]

        def open_bus(kind: type[Bus], config: Any = None) -> Bus:
            # what happens to be in /etc of this machine is nothing that a test should depend on
            if config is None and not os.environ.get("FEDBUS_CONFIG"):
                return kind(recorder.settings)
            bus: Bus = really_open(kind, config)
            return bus

        def open_publisher(bus: Bus, endpoint: str, *, direct: bool = False) -> RecordingPublisher:
            return RecordingPublisher(recorder, bus, endpoint)

        def enqueue(publisher: Any, topic: str, body: dict[str, Any], **more: Any) -> _Done:
            naming = publisher._naming
            schemas = getattr(publisher, "_schemas", None)
            return recorder.take(
                publisher.endpoint.name, naming, publisher._limits, publisher._may_publish, schemas, topic, body, **more
            )

        def publish(publisher: Any, topic: str, body: dict[str, Any], *, wait: bool = True, **more: Any) -> Any:
            pending = enqueue(publisher, topic, body, **more)
            return pending.result() if wait else pending

        stack.enter_context(mock.patch.object(Bus, "open", classmethod(open_bus)))
        stack.enter_context(mock.patch.object(Bus, "publisher", open_publisher))
        for kind in (Publisher, RelayPublisher):
            stack.enter_context(mock.patch.object(kind, "enqueue", enqueue))
            stack.enter_context(mock.patch.object(kind, "publish", publish))

    def take(
        self,
        endpoint: str,
        naming: Any,
        limits: Any,
        may_publish: Callable[[str], None] | None,
        schemas: Schemas | None,
        topic: str,
        body: Any,
        *,
        timeout: float = 30.0,
        dataschema: str | None = None,
        traceparent: str | None = None,
    ) -> _Done:
        """Check a message as a publisher would, and record it.

        Raises:
            MessageError, TrustError, SchemaError: As a publisher; nothing is recorded.
        """
        from fedbus.model.topic import check_topic, service_of_endpoint
        from fedbus.wire import strict
        from fedbus.wire.envelope import optional_attributes

        name = topic if topic.startswith(naming.root + ".") else naming.expand(service_of_endpoint(endpoint), topic)
        check_topic(name)
        if may_publish is not None:
            may_publish(name)
        data = strict.encode(body, limits)
        if dataschema is not None or traceparent is not None:
            optional_attributes(dataschema=dataschema, traceparent=traceparent)
        chosen = self.schemas if self.schemas is not None else schemas
        check = None if chosen is None else chosen.publishing(name)
        if check is not None:
            try:
                check(body)
            except SchemaError as error:
                self.misfits.append(str(error))
                raise
        message = Published(
            topic=name,
            body=json.loads(data),
            endpoint=endpoint,
            said=topic,
            root=naming.root,
            dataschema=dataschema,
            traceparent=traceparent,
        )
        with self._lock:
            sequence = self._heads[endpoint] = self._heads.get(endpoint, 0) + 1
            self.published.append(message)
        return _Done(_receipt(message, sequence))

    def head(self, endpoint: str) -> int:
        """How many messages of *endpoint* were recorded."""
        return self._heads.get(endpoint, 0)


class _Done:
    """What `enqueue` returns: a message whose fate is known."""

    done = True

    def __init__(self, receipt: Receipt) -> None:
        self._receipt = receipt

    def result(self, timeout: float | None = 30.0) -> Receipt:
        """Return the receipt."""
        return self._receipt

    settle = result


class RecordingPublisher:
    """What ``bus.publisher(endpoint)`` returns meanwhile; it is used like a :class:`~fedbus.Publisher`."""

    failure = None
    problem = ""

    def __init__(self, recorder: _Recorder, bus: Bus, endpoint: str) -> None:
        """Raises ConfigError where the bus has a configuration, and the endpoint is not in it."""
        self.name = endpoint
        self.epoch = EPOCH
        self.closed = False
        self._recorder = recorder
        self._bus = bus
        self._own = bus.settings is recorder.settings  # there is no configuration
        if not self._own:
            self.endpoint = bus.settings.endpoint(endpoint)

    @property
    def head(self) -> int:
        """The last sequence; 0 before the first message."""
        return self._recorder.head(self.name)

    @property
    def position(self) -> tuple[str, int]:
        """Epoch and head."""
        return (self.epoch, self.head)

    def publish(self, topic: str, body: dict[str, Any], *, wait: bool = True, **more: Any) -> Receipt | _Done:
        """Record a message; see `Publisher.publish`."""
        pending = self.enqueue(topic, body, **more)
        return pending.result() if wait else pending

    def enqueue(self, topic: str, body: dict[str, Any], **more: Any) -> _Done:
        """Record a message; see `Publisher.enqueue`."""
        if self.closed:
            from fedbus.errors import PublisherClosed

            raise PublisherClosed(f"the publisher of {self.name!r} is closed; open a new one")
        settings = self._bus.settings
        may = None if self._own else lambda name: self._bus._check_policy(self.name, name)
        return self._recorder.take(
            self.name, settings.naming, settings.limits, may, self._bus.schemas, topic, body, **more
        )

    def publish_json(self, topic: str, data: bytes, **more: Any) -> Receipt:
        """Record a message whose body is JSON; see `RelayPublisher.publish_json`."""
        return self.enqueue(topic, json.loads(data), **more).result()

    def flush(self, timeout: float = 30.0) -> None:
        """Nothing is on its way."""

    def wait_for_subscribers(self, count: int = 1, timeout: float = 10.0) -> bool:
        """Say that they are there."""
        return True

    def close(self, timeout: float = 30.0) -> None:
        """Publish nothing more."""
        self.closed = True

    def __enter__(self) -> RecordingPublisher:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _receipt(message: Published, sequence: int) -> Receipt:
    from uuid_utils import uuid7

    from fedbus.clock import SystemClock
    from fedbus.model.receipt import Receipt
    from fedbus.wire.envelope import rfc3339

    return Receipt(
        topic=message.topic,
        endpoint=message.endpoint,
        epoch=EPOCH,
        sequence=sequence,
        id=str(uuid7()),
        time=rfc3339(SystemClock().wall()),
    )


def _settings(folder: Path, schemas: Mapping[str, Any] | Path | str | None, prefix: str, environment: str) -> Settings:
    """Return the settings of a bus without endpoints."""
    from fedbus.config.settings import Settings

    document: dict[str, Any] = {"topic_prefix": prefix, "environment": environment}
    # a configuration has to have one; nothing is connected to it
    document["endpoints"] = {"none.host01": {"publish": "tcp://127.0.0.1:1", "replay": "tcp://127.0.0.1:2"}}
    if isinstance(schemas, Mapping):
        document["schemas"] = {"topics": {topic: dict(schema) for topic, schema in schemas.items()}}
    elif schemas is not None:
        document["schemas"] = {"folder": str(Path(schemas).absolute())}
    path = folder / "10-bus.yaml"
    path.write_text(json.dumps(document), "utf-8")
    path.chmod(0o600)
    return replace(Settings.load(folder, {}), endpoints={}, journals={})
