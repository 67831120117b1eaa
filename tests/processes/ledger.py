"""The ledger: a process that is no part of fedbus and decides whether something was lost, repeated or reordered.

All that publish and all that consume report to it over one pipe, in lines of at most PIPE_BUF bytes, which the kernel
keeps whole and which outlive whoever wrote them. It imports nothing of fedbus.

Every message has an identity in its body, (source, n), where the n of one source only grow. The lines::

    ack SOURCE ENDPOINT EPOCH SEQUENCE N COUNT             receipts for n, n+1, … with sequences that count on alike
    spooled SOURCE N COUNT                                 promised without a sequence: must appear, once
    no SOURCE N COUNT                                      refused with an error: must never appear
    maybe SOURCE N COUNT                                   neither receipt nor refusal: may appear, at most once
    live CONSUMER LIFE DIVISOR                             a consumer starts; it wants each n that DIVISOR divides
    got CONSUMER LIFE ENDPOINT EPOCH SEQUENCE SOURCE N COUNT
    lossy ENDPOINT                                         its retention is so short that losses are no fault
    lost CONSUMER LIFE ENDPOINT FIRST LAST                 it was told of a loss
    ask TOKEN                                              answered on stdout, in JSON

What a consumer gets it keys by (endpoint, epoch, sequence), so that a message that comes again in a new life, from
before its cursor, is recognised. Everything else is a fault: a hole, a step back within one life, one key with two
messages, one message under two keys, a refused message that was published, a second epoch.

``python -m tests.processes.ledger --log FILE`` judges as it reads stdin and keeps the lines in FILE; fed such a file on
stdin, it judges the same again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from array import array
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_N_BITS = 40
SPOOLER = "~"  # what the names of sources begin with that may be promised something without a sequence
_SHOWN = 40  # faults kept with their text; the others are counted
_LOG_BYTES = 256 * 2**20  # of one log file; the one before is kept too


class Fault(Exception):
    """Something that may not be."""


@dataclass
class Stream:
    """The messages of one endpoint, as consumers have seen them."""

    endpoint: str
    epoch: str
    content: array[int] = field(default_factory=lambda: array("Q"))  # identity of 1, 2, 3, …; 0: lost
    pending: dict[int, int] = field(default_factory=dict)  # receipts for what no consumer has seen yet
    confirmed: bytearray = field(default_factory=bytearray)
    acked: int = 0
    head: int = 0  # the highest sequence with a receipt
    last_n: dict[int, int] = field(default_factory=dict)


@dataclass
class Place:
    """Where a consumer is in one stream."""

    through: int = 0  # all up to here was got at least once
    last: int = 0  # the last one in this life; 0: none yet
    waiting: deque[tuple[int, int]] = field(default_factory=deque)


@dataclass
class Consumer:
    """What one consumer has got, over all its lives."""

    name: str
    divisor: int = 1
    life: int = 0
    lives: int = 0
    got: int = 0
    repeats: int = 0
    places: dict[str, Place] = field(default_factory=dict)


class Ledger:
    """Takes lines, keeps what is needed to judge them, and judges."""

    def __init__(self) -> None:
        self.sources: dict[str, int] = {}
        self.names: list[str] = []
        self.streams: dict[str, Stream] = {}
        self.consumers: dict[str, Consumer] = {}
        self.refused: set[int] = set()
        self.lossy: set[str] = set()
        self.promised: set[int] = set()  # spooled, and not seen yet
        self.unclaimed: set[int] = set()  # seen, and no receipt yet, of sources that may spool
        self.counts = {"acked": 0, "spooled": 0, "refused": 0, "maybe": 0, "lost": 0, "lines": 0}
        self.fault_count = 0
        self.faults: list[str] = []

    # --- lines

    def take(self, line: str) -> None:
        """Note one line; a fault is counted, and shown among the first."""
        self.counts["lines"] += 1
        words = line.split()
        try:
            kind, *rest = words
            if kind == "got":
                consumer, life, endpoint, epoch, sequence, source, n, count = rest
                self._got(consumer, int(life), endpoint, epoch, int(sequence), self._code(source, int(n)), int(count))
            elif kind == "ack":
                source, endpoint, epoch, sequence, n, count = rest
                self._ack(endpoint, epoch, int(sequence), self._code(source, int(n)), int(count))
            elif kind == "no":
                first, count = self._code(rest[0], int(rest[1])), rest[2]
                self.counts["refused"] += int(count)
                self.refused.update(range(first, first + int(count)))
            elif kind == "spooled":
                first, count = self._code(rest[0], int(rest[1])), rest[2]
                self.counts["spooled"] += int(count)
                codes = set(range(first, first + int(count)))
                self.promised |= codes - self.unclaimed
                self.unclaimed -= codes
            elif kind == "maybe":
                self.counts["maybe"] += int(rest[2])
            elif kind == "live":
                name, life, divisor = rest
                consumer_ = self.consumers.setdefault(name, Consumer(name))
                consumer_.life, consumer_.divisor = int(life), int(divisor)
                consumer_.lives += 1
                for place in consumer_.places.values():
                    if consumer_.divisor == 1:
                        place.last = 0
                    else:
                        place.waiting.append((0, 0))
            elif kind == "lost":
                self._lost(rest[0], rest[2], int(rest[3]), int(rest[4]))
            elif kind == "lossy":
                self.lossy.add(rest[0])
            else:
                raise Fault("no such line")
        except (Fault, ValueError, KeyError) as error:
            self.fault_count += 1
            if len(self.faults) < _SHOWN:
                self.faults.append(f"{error}: {line.strip()[:300]}")

    def _code(self, source: str, n: int) -> int:
        number = self.sources.get(source)
        if number is None:
            number = self.sources[source] = len(self.names) + 1
            self.names.append(source)
        return number << _N_BITS | n

    def _text(self, code: int) -> str:
        return f"{self.names[(code >> _N_BITS) - 1]}:{code & ((1 << _N_BITS) - 1)}" if code else "nothing"

    def _stream(self, endpoint: str, epoch: str) -> Stream:
        stream = self.streams.get(endpoint)
        if stream is None:
            stream = self.streams[endpoint] = Stream(endpoint, epoch)
        elif stream.epoch != epoch:
            raise Fault(f"a second epoch, after {stream.epoch}")
        return stream

    # --- judgement

    def _ack(self, endpoint: str, epoch: str, sequence: int, code: int, count: int) -> None:
        stream = self._stream(endpoint, epoch)
        for at in range(sequence, sequence + count):
            if at <= len(stream.content):
                self._confirm(stream, at, code)
            elif stream.pending.setdefault(at, code) != code:
                raise Fault(f"sequence {at} was given out twice, before to {self._text(stream.pending[at])}")
            stream.acked += 1
            self.counts["acked"] += 1
            code += 1
        stream.head = max(stream.head, sequence + count - 1)

    def _confirm(self, stream: Stream, sequence: int, code: int) -> None:
        seen = stream.content[sequence - 1] or code
        if seen != code:
            raise Fault(f"receipt and message differ: {sequence} is {self._text(seen)}, not {self._text(code)}")
        if stream.confirmed[sequence - 1]:
            raise Fault(f"a second receipt for {sequence}")
        stream.confirmed[sequence - 1] = 1
        self.unclaimed.discard(code)

    def _see(self, stream: Stream, sequence: int, code: int) -> None:
        """A consumer has got *code* as *sequence*, which is at most the next one that nobody has seen."""
        content = stream.content
        if sequence <= len(content):
            if not content[sequence - 1]:
                content[sequence - 1] = code  # lost for another consumer
            if content[sequence - 1] != code:
                raise Fault(f"{sequence} was {self._text(content[sequence - 1])} before, is {self._text(code)} now")
            return
        if sequence > len(content) + 1:
            raise Fault(f"nobody has seen what lies between {len(content)} and {sequence}")
        content.append(code)
        stream.confirmed.append(0)
        source = code >> _N_BITS
        before = stream.last_n.get(source, -1)
        stream.last_n[source] = code
        if code <= before:
            raise Fault(f"{self._text(code)} comes after {self._text(before)}: repeated or out of order")
        if code in self.refused:
            raise Fault(f"{self._text(code)} was refused and appears as {sequence}")
        receipt = stream.pending.pop(sequence, None)
        if receipt is not None:
            self._confirm(stream, sequence, receipt)
        elif code in self.promised:
            self.promised.discard(code)
        elif self.names[source - 1].startswith(SPOOLER):
            self.unclaimed.add(code)

    def _got(self, name: str, life: int, endpoint: str, epoch: str, sequence: int, code: int, count: int) -> None:
        consumer = self.consumers[name]
        if life != consumer.life:
            raise Fault(f"life {consumer.life} has begun already")
        stream = self._stream(endpoint, epoch)
        place = consumer.places.setdefault(endpoint, Place())
        if not place.through and sequence > 1 and endpoint in self.lossy:
            self._pass_over(stream, place, sequence - 1)  # the beginning is what is still kept
        for at in range(sequence, sequence + count):
            consumer.got += 1
            if consumer.divisor == 1:
                self._take_next(consumer, stream, place, at, code)
            else:
                place.waiting.append((at, code))
            code += 1
        for other in self.consumers.values():
            if other.divisor > 1 and endpoint in other.places:
                self._take_waiting(other, stream, other.places[endpoint])

    def _lost(self, name: str, endpoint: str, first: int, last: int) -> None:
        self.counts["lost"] += 1
        place = self.consumers[name].places.setdefault(endpoint, Place())
        if endpoint not in self.lossy:
            raise Fault("told of a loss")
        if first != place.last + 1 if place.last else first > place.through + 1:
            raise Fault(f"told of another loss than the one behind {place.last or place.through}")
        self._pass_over(self.streams[endpoint], place, last)

    @staticmethod
    def _pass_over(stream: Stream, place: Place, last: int) -> None:
        place.last = last
        place.through = max(place.through, last)
        while len(stream.content) < last:
            stream.content.append(0)
            stream.confirmed.append(0)
            stream.pending.pop(len(stream.content), None)

    def _take_next(self, consumer: Consumer, stream: Stream, place: Place, sequence: int, code: int) -> None:
        last, through = place.last, place.through
        place.last = sequence
        place.through = max(through, sequence)
        if last and sequence != last + 1:
            raise Fault(f"{sequence} follows {last}" + (": a step back" if sequence <= last else ": a hole"))
        if not last and sequence > through + 1:
            raise Fault(f"a life begins with {sequence}, and {through} was the last before: a hole")
        if sequence <= through:
            consumer.repeats += 1
        self._see(stream, sequence, code)

    def _take_waiting(self, consumer: Consumer, stream: Stream, place: Place) -> None:
        """What a filtered consumer has got, once others have seen what lies before."""
        content = stream.content
        while place.waiting and place.waiting[0][0] <= len(content):
            sequence, code = place.waiting.popleft()
            if not sequence:  # here a new life began
                place.last = 0
                continue
            last, through = place.last, place.through
            place.last = sequence
            place.through = max(through, sequence)
            if sequence <= last:
                raise Fault(f"{consumer.name} got {sequence} after {last}: a step back")
            if content[sequence - 1] != code:
                raise Fault(f"{consumer.name} got {self._text(code)} as {sequence}")
            missed = self._missed(consumer, stream, last or min(through, sequence - 1), sequence - 1)
            if missed:
                raise Fault(f"{consumer.name} missed {missed} between {last or through} and {sequence}")
            consumer.repeats += sequence <= through

    @staticmethod
    def _missed(consumer: Consumer, stream: Stream, after: int, through: int) -> int:
        """How many messages for *consumer* lie behind *after*, up to *through*."""
        mask = (1 << _N_BITS) - 1
        return sum(1 for code in stream.content[after:through] if (code & mask) % consumer.divisor == 0)

    # --- answers

    def status(self) -> dict[str, Any]:
        """All counters, the faults, and what is still missing of what was acknowledged."""
        missing: dict[str, int] = {}
        for stream in self.streams.values():
            for consumer in self.consumers.values():
                place = consumer.places.get(stream.endpoint, Place())
                if consumer.divisor == 1:
                    behind = max(0, stream.head - place.through)
                else:
                    unseen = max(0, stream.head - len(stream.content))
                    behind = sum(1 for sequence, _ in place.waiting if sequence) + unseen
                    if not behind and place.through < stream.head:
                        behind = self._missed(consumer, stream, place.through, stream.head)
                if behind:
                    missing[f"{consumer.name} {stream.endpoint}"] = behind
        if self.promised:
            missing["spooled"] = len(self.promised)
        return {
            **self.counts,
            "streams": {
                one.endpoint: {"epoch": one.epoch, "acked": one.acked, "head": one.head, "seen": len(one.content)}
                for one in self.streams.values()
            },
            "consumers": {
                one.name: {
                    "lives": one.lives,
                    "got": one.got,
                    "repeats": one.repeats,
                    "through": {endpoint: place.through for endpoint, place in one.places.items()},
                }
                for one in self.consumers.values()
            },
            "missing": missing,
            "fault_count": self.fault_count,
            "faults": self.faults,
        }


def main() -> None:
    """Read lines until the last writer is gone, then print the judgement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()
    ledger = Ledger()
    log = arguments.log.open("ab") if arguments.log else None
    rest = b""
    while data := os.read(0, 2**20):
        lines = (rest + data).split(b"\n")
        rest = lines.pop()
        asked = []
        for line in lines:
            if line.startswith(b"ask "):
                asked.append(line[4:].decode())
            elif line:
                ledger.take(line.decode("ascii", "replace"))
        if log is not None:
            log.write(b"".join(line + b"\n" for line in lines if not line.startswith(b"ask ")))
            log.flush()
            if log.tell() > _LOG_BYTES:
                log.close()
                arguments.log.replace(arguments.log.with_suffix(".1"))
                log = arguments.log.open("ab")
        for token in asked:
            print(json.dumps({"token": token, **ledger.status()}), flush=True)
    if rest:
        ledger.take(f"cut {rest!r}")
    print(json.dumps({"token": "end", **ledger.status()}), flush=True)
    sys.exit(1 if ledger.fault_count or ledger.status()["missing"] else 0)


if __name__ == "__main__":
    main()
