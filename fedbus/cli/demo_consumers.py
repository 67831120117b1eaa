"""Two consumers for `fedbus demo`, as anyone would write them: a class with a state, and a function."""

from __future__ import annotations

from collections import Counter

import orjson

from fedbus.cli.escaping import escape
from fedbus.hub.consumer import Consumer, consumer
from fedbus.model.message import Message


class CountTopics(Consumer):
    """Count the messages of each topic, and print the counts at the end."""

    topics = ("#",)
    since = "beginning"

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def consume(self, message: Message) -> None:
        self.counts[message.topic] += 1

    def stop(self) -> None:
        print(orjson.dumps({"counts": dict(self.counts)}).decode(), flush=True)


@consumer("koji.package.build.complete", since="beginning")
def announce_builds(message: Message) -> None:
    """Tell people which builds have finished."""
    body = message.body
    print(escape(f"{body.get('package')}-{body.get('version')} is built ({body.get('owner')})"), flush=True)
