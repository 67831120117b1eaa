"""An endpoint in the hands of somebody hostile: bound to its real addresses, with its real key, saying anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import zmq
from buses import KOJI, PATIENCE, Bus, take_until
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fedbus import Message
from fedbus.clock import SystemClock
from fedbus.config.settings import Settings
from fedbus.transport.subscriber import Subscriber
from fedbus.wire import beat, replay
from tests.support import wait_until
from tests.unit.transport.streams import ModelPublisher
from tests.vectors import make

START = "org.example.dev.koji.build.start"


def identity(settings: Settings, name: str) -> make.Identity:
    """The real key and certificate of the endpoint *name*."""
    key: Any = serialization.load_pem_private_key((settings.keys / f"{name}.key").read_bytes(), None)
    leaf = x509.load_pem_x509_certificate((settings.keys / f"{name}.crt").read_bytes())
    return make.Identity(name, key, leaf.public_bytes(serialization.Encoding.DER))


class Forger:
    """Binds PUB and ROUTER; what it says properly goes through a journal and a seal, everything else is up to it."""

    def __init__(self, bus: Bus, folder: Path, name: str = KOJI) -> None:
        endpoint = bus.settings.endpoint(name)
        self.context: zmq.Context[Any] = zmq.Context()
        self.pub = self.context.socket(zmq.XPUB)
        self.router = self.context.socket(zmq.ROUTER)
        for socket, address in ((self.pub, endpoint.publish), (self.router, endpoint.replay)):
            socket.linger = 0
            socket.bind(address)
        self.publisher = ModelPublisher(folder, SystemClock(), identity(bus.settings, name))
        self.answers: list[Callable[[bytes, int], list[list[bytes]]]] = []  # what to say instead, once each
        self.requests = 0

    def close(self) -> None:
        self.publisher.journal.close()
        self.context.destroy(0)

    def send(self, *frames: bytes) -> None:
        """Send one message of these frames."""
        self.pub.send_multipart(frames)

    def say(self, topic: str = START, **options: Any) -> None:
        """Publish one message properly: journal, seal, send."""
        for frame in self.publisher.publish([topic], **options):
            self.send(frame)

    def beat(self) -> None:
        self.send(self.publisher.beat())

    def serve(self) -> None:
        """Answer the requests that have come in."""
        while self.router.poll(0):
            reader, request = self.router.recv_multipart()
            fetch, _ = replay.decode_fetch(request)
            self.requests += 1
            if self.answers:
                for frames in self.answers.pop(0)(reader, fetch.id):
                    self.router.send_multipart([reader, *frames])
                continue
            for part in self.publisher.answer(fetch, frame_bytes=2**20):
                if isinstance(part, beat.Beat):
                    kind, payload = replay.Kind.BEAT, self.publisher.beat()
                elif isinstance(part, bytes):
                    kind, payload = replay.Kind.RECORDS, part
                else:
                    kind = replay.Kind.START if isinstance(part, replay.Start) else replay.Kind.END
                    payload = replay.encode_fact(part)
                self.router.send_multipart([reader, replay.answer_header(kind, fetch.id), payload])

    def read(self, subscriber: Subscriber, condition: Callable[[], object]) -> list[Message]:
        """Serve *subscriber* until *condition* is true, and return what it handed on."""

        def step() -> object:
            self.serve()
            self.beat()
            return condition()

        return take_until(subscriber, step, PATIENCE)

    def join(self, subscriber: Subscriber) -> None:
        """Serve *subscriber* until it has joined and its subscriptions, to beats and to topics, have come in."""
        reader = next(one for one in subscriber.readers() if one.endpoint == self.publisher.who.name)
        found: set[bytes] = set()

        def subscribed() -> bool:
            while self.pub.poll(0):
                found.add(self.pub.recv())
            # beats, and all topics, or one topic and all below it
            return len(found) == (3 if subscriber._prefix else 2)

        wait_until(subscribed, PATIENCE, "the subscriptions")
        assert self.read(subscriber, lambda: reader.mode.value == "live") == []

    def catch_up(self, subscriber: Subscriber) -> list[Message]:
        """Return what *subscriber* hands on until all that was said properly is accounted for.

        What else was sent has been read by then if something said properly came behind it.
        """
        reader = next(one for one in subscriber.readers() if one.endpoint == self.publisher.who.name)
        return self.read(subscriber, lambda: reader.accounted == self.publisher.head and reader.mode.value == "live")


def fact(**values: Any) -> bytes:
    return orjson.dumps(values)
