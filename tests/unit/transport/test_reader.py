"""What a reader makes of loss, damage, refusals, new epochs, clones and journals that went backwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streams import PARCEL_BYTES, ROOT, ModelPublisher, ModelSubscriber, new_verifier

from fedbus.clock import ManualClock
from fedbus.errors import Reason, TrustError, WireError
from fedbus.journal.segment import list_segments
from fedbus.model.position import Position
from fedbus.transport.state import Mode, Since
from fedbus.trust.verifier import Verifier
from fedbus.wire import beat, parcel, replay
from tests.vectors import make

START, STOP, TAG = f"{ROOT}.koji.build.start", f"{ROOT}.koji.build.stop", f"{ROOT}.koji.tag.add"
ALIEN = f"{ROOT}.bodhi.update.new"  # koji.build01 may not say this


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(make.NOW)


@pytest.fixture
def verifier(tmp_path: Path, clock: ManualClock) -> Verifier:
    return new_verifier(tmp_path, clock)


Open = Callable[..., ModelPublisher]


@pytest.fixture
def open_publisher(tmp_path: Path, clock: ManualClock) -> Iterator[Open]:
    opened: list[ModelPublisher] = []

    def start(name: str = "journal", **options: object) -> ModelPublisher:
        opened.append(ModelPublisher(tmp_path / name, clock, **options))
        return opened[-1]

    yield start
    for one in opened:
        one.journal.close()


@pytest.fixture
def publisher(open_publisher: Open) -> ModelPublisher:
    return open_publisher()


@pytest.fixture
def reading(verifier: Verifier, clock: ManualClock) -> Callable[..., ModelSubscriber]:
    def start(*filters: str, since: Since | None = None, **options: int) -> ModelSubscriber:
        return ModelSubscriber(filters, since or Since(), verifier=verifier, clock=clock, **options)

    return start


def catch_up(subscriber: ModelSubscriber, publisher: ModelPublisher, window: int = 0) -> None:
    for _ in range(1000):
        if not subscriber.fetch(publisher, window=window):
            subscriber.consume()
            return
    raise AssertionError("the journal is read again and again")


def decoded(frame: bytes) -> parcel.Parcel:
    return parcel.decode(frame, parcel_bytes=PARCEL_BYTES)


def told(subscriber: ModelSubscriber) -> list[tuple[int, int | None, str]]:
    return [(loss.first, loss.last, loss.cause) for loss in subscriber.losses]


def test_what_retention_has_removed_is_told_with_its_numbers(open_publisher, reading):
    publisher = open_publisher(segment_bytes=1000, retain_bytes=3000)
    publisher.publish([START])
    subscriber = reading()
    catch_up(subscriber, publisher)
    for _ in range(30):
        publisher.publish([START, TAG])
    publisher.journal.retain()
    start = publisher.journal.start
    assert start > 3
    subscriber.wire.append(publisher.beat())
    subscriber.hear()
    catch_up(subscriber, publisher)
    assert told(subscriber) == [(2, start - 1, "retention")]
    assert subscriber.got == [1, *range(start, 62)]


def test_a_reader_of_a_quiet_topic_loses_nothing_when_retention_removes_what_is_not_its_own(open_publisher, reading):
    publisher = open_publisher(segment_bytes=1000, retain_bytes=3000)
    subscriber = reading(TAG)
    for _ in range(5):
        publisher.publish([START] * 3)
    catch_up(subscriber, publisher, window=10)
    for _ in range(30):
        publisher.publish([START] * 3)
        window = publisher.head
        subscriber.wire.append(publisher.beat(window))
        subscriber.hear()
        catch_up(subscriber, publisher, window=window)
    assert publisher.journal.start > 1
    publisher.publish([TAG])
    catch_up(subscriber, publisher)
    subscriber.wire.append(publisher.beat())
    subscriber.hear()
    catch_up(subscriber, publisher)
    assert (subscriber.got, subscriber.losses) == ([publisher.head], [])


def test_a_quiet_topic_costs_no_fetch_for_each_beat(publisher, reading):
    publisher.publish([START] * 3)
    subscriber = reading(TAG)
    catch_up(subscriber, publisher, window=3)
    for _ in range(20):
        subscriber.wire.append(publisher.beat(window=publisher.head))
        subscriber.hear()
        catch_up(subscriber, publisher, window=publisher.head)
    assert subscriber.fetches == 1


@pytest.mark.parametrize("beats", [0, 1])
def test_an_answer_that_hides_messages_is_found_out_by_the_chain_of_the_next_one(publisher, reading, beats):
    """A reader of a topic believes an unsigned end, but keeps in mind up to where signed words reach."""
    subscriber = reading(TAG)
    publisher.publish([START])
    publisher.publish([TAG])
    subscriber.coming = iter(
        [beat.decode(publisher.beat(window=2)), replay.Start(publisher.epoch, 0), replay.End(2, True)]
    )
    catch_up(subscriber, publisher)
    assert (subscriber.got, subscriber.reader.accounted) == ([], 2)
    for _ in range(beats):  # which are right, and speak only of what came later
        publisher.publish([START])
        subscriber.wire.append(publisher.beat(window=2))
    subscriber.hear()
    assert subscriber.reader.accounted == publisher.head
    subscriber.wire.extend(publisher.publish([TAG]))
    subscriber.hear()
    catch_up(subscriber, publisher)
    assert (subscriber.got, subscriber.losses) == ([2, publisher.head], [])


def test_what_the_journal_cannot_read_is_told_as_damage(open_publisher, reading, tmp_path):
    publisher = open_publisher(segment_bytes=1000)
    for _ in range(12):
        publisher.publish([START])
    segments = list_segments(tmp_path / "journal")
    assert len(segments) > 3, "the test needs several segments"
    publisher.journal.recheck()
    data = bytearray(segments[1].read_bytes())
    data[len(data) // 2] ^= 1
    segments[1].write_bytes(data)
    publisher.journal.recheck()
    for filters in ((), (START,)):
        subscriber = reading(*filters)
        catch_up(subscriber, publisher)
        assert {loss.cause for loss in subscriber.losses} == {"damage"}
        (loss,) = subscriber.losses
        assert sorted([*subscriber.got, *range(loss.first, loss.last + 1)]) == list(range(1, 13))
        assert subscriber.got == sorted(subscriber.got)
        subscriber.wire.append(publisher.beat())
        subscriber.hear()
        catch_up(subscriber, publisher)
        assert subscriber.fetches <= 12
        assert subscriber.reader.mode is Mode.LIVE


def test_a_refused_parcel_inside_a_batch_leaves_the_rest_and_is_told(publisher, reading, verifier):
    frames = publisher.publish([START, ALIEN, TAG, ALIEN, START])
    live, late = reading(), reading()
    catch_up(live, open_at_start(publisher, live))
    for frame in frames:
        try:
            live.reader.on_live(decoded(frame), 0.0)
        except TrustError as error:
            assert error.reason is Reason.POLICY
    for subscriber in (live, late):
        if subscriber is live:
            subscriber.wire.append(publisher.beat())
            subscriber.hear()
        refused = []
        while subscriber.coming is None and subscriber.reader.wants_fetch:
            answer = publisher.answer(subscriber.reader.fetch(1, 10_000, 0.0))
            subscriber.reader.on_fetched_beat(next(answer), 0.0)
            subscriber.reader.on_start(next(answer))
            for part in answer:
                take = subscriber.reader.on_records if isinstance(part, bytes) else subscriber.reader.on_end
                refused += take(part)
        subscriber.consume()
        assert {error.reason for error in refused} == {Reason.POLICY}
        assert subscriber.got == [1, 3, 5]
        assert told(subscriber) == [(2, 4, "refused")]


def open_at_start(publisher: ModelPublisher, subscriber: ModelSubscriber) -> ModelPublisher:
    """Let *subscriber* join at the beginning as if *publisher* had said nothing yet."""
    facts = beat.BeatFacts(publisher.who.name, publisher.epoch, 1, 0, 0, {}, 0, 1000)
    signed = beat.encode(facts, sign=publisher.who.sign, certificate=publisher.who.certificate)
    subscriber.coming = iter([beat.decode(signed), replay.Start(publisher.epoch, 0), replay.End(0, True)])
    return publisher


@pytest.mark.parametrize("cursor", range(1, 7))
def test_a_cursor_inside_a_batch_goes_on_inside_the_batch(publisher, reading, cursor):
    publisher.publish([START, TAG, STOP, START, TAG, START], most=1)
    publisher.publish([START, TAG])
    subscriber = reading(since=Since(Position(publisher.epoch, cursor)))
    catch_up(subscriber, publisher)
    assert subscriber.got == list(range(cursor + 1, 9))
    narrow = reading(TAG, since=Since(Position(publisher.epoch, cursor)))
    catch_up(narrow, publisher)
    assert narrow.got == [one for one in (2, 5, 8) if one > cursor]
    assert subscriber.losses == narrow.losses == []


def test_a_new_epoch_is_told_and_read_from_its_beginning(open_publisher, reading):
    old, new = open_publisher("old"), open_publisher("new")
    old.publish([START, START])
    subscriber = reading()
    catch_up(subscriber, old)
    new.publish([TAG])
    new.publish([TAG])
    subscriber.wire.append(new.beat())
    subscriber.hear()
    catch_up(subscriber, new)
    assert subscriber.got == [1, 2, 1, 2]
    (loss,) = subscriber.losses
    assert (loss.epoch, loss.first, loss.last, loss.cause) == (old.epoch, 3, None, "epoch")
    assert subscriber.reader.position == Position(new.epoch, 2)


def test_what_waits_of_an_ended_epoch_does_not_move_the_cursor_of_the_next(open_publisher, reading):
    old, new = open_publisher("old"), open_publisher("new")
    for _ in range(5):
        old.publish([START])
    subscriber = reading()
    while subscriber.fetch(old):
        pass
    new.publish([TAG])
    new.publish([TAG])
    subscriber.wire.append(new.beat())
    subscriber.hear()
    while subscriber.fetch(new):
        pass
    seen = []
    while subscriber.ready:
        subscriber.consume(1)
        seen.append(subscriber.reader.position)
    assert subscriber.got == [1, 2, 3, 4, 5, 1, 2]
    assert seen == [Position(new.epoch, one) for one in (0, 0, 0, 0, 0, 0, 1, 2)]


@pytest.mark.badinput("B29")
def test_old_copies_of_an_epoch_that_was_left_are_dropped_quietly(open_publisher, reading):
    old, new = open_publisher("old"), open_publisher("new")
    copies = [*old.publish([START]), old.beat()]
    subscriber = reading()
    catch_up(subscriber, old)
    new.publish([START])
    subscriber.wire.append(new.beat())
    subscriber.hear()
    catch_up(subscriber, new)
    fetches = subscriber.fetches
    subscriber.wire.extend(copies)
    subscriber.hear()
    catch_up(subscriber, new)
    assert (subscriber.got, subscriber.fetches) == ([1, 1], fetches)
    with pytest.raises(WireError) as caught:
        answer = old.answer(replay.Fetch(id=1, budget=1000, after=0))
        subscriber.reader.on_fetched_beat(next(answer), 0.0)
        subscriber.reader.on_start(next(answer))
    assert caught.value.reason is Reason.EPOCH


@pytest.mark.badinput("B30")
def test_a_journal_that_went_backwards_is_quarantined(publisher, open_publisher, reading, verifier):
    subscriber = reading(since=Since(Position(publisher.epoch, 5)))
    publisher.publish([START])
    catch_up(subscriber, publisher)
    assert "journal ends at 1" in subscriber.reader.quarantined
    assert verifier.rejections[Reason.CONFLICT] == 1
    subscriber.wire.extend(publisher.publish([START] * 9))
    subscriber.hear()
    subscriber.consume()
    assert (subscriber.got, subscriber.reader.wants_fetch) == ([], False)


@pytest.mark.badinput("B30")
@pytest.mark.parametrize(
    ("first", "topics"),
    [
        (3, [START, START]),  # the same numbers, another body
        (3, [START]),  # fewer
        (4, [START]),  # inside
        (4, [START, START]),  # across the end
        (2, [START, START]),  # across the beginning
        (3, [START, START, START]),  # and beyond
    ],
)
def test_a_clone_is_quarantined_whichever_numbers_it_takes(publisher, reading, verifier, first, topics):
    subscriber = reading()
    catch_up(subscriber, publisher)
    for batch in ([START, START], [START, START]):
        subscriber.wire.extend(publisher.publish(batch))
    subscriber.hear()
    subscriber.consume()
    with pytest.raises(TrustError) as caught:
        subscriber.reader.on_live(decoded(with_prior(publisher, topics, first)), 0.0)
    assert caught.value.reason is Reason.CONFLICT
    assert subscriber.reader.quarantined
    assert verifier.rejections[Reason.CONFLICT] == 1
    subscriber.consume()
    assert subscriber.got == [1, 2, 3, 4]


def with_prior(publisher: ModelPublisher, topics: list[str], first: int) -> bytes:
    """One parcel that claims the numbers from *first* on, with a chain that fits them."""
    envelopes = [publisher.envelope(topic, first + place, b'{"by":"a clone"}') for place, topic in enumerate(topics)]
    block = make.group(topics[0], envelopes, prior=first - 1)
    epoch = bytes.fromhex(publisher.epoch.replace("-", ""))
    return make.seal(publisher.who, [block], first, epoch=epoch)[0]


@pytest.mark.badinput("B30")
def test_parcels_of_two_batches_with_the_same_first_are_never_mixed(publisher, reading):
    subscriber = reading()
    catch_up(subscriber, publisher)
    clone = publisher.seal([START, TAG], 1, data=b'{"by":"a clone"}')
    real = publisher.publish([START, TAG])
    subscriber.reader.on_live(decoded(real[0]), 0.0)
    with pytest.raises(TrustError) as caught:
        subscriber.reader.on_live(decoded(clone[1][2]), 0.0)
    assert caught.value.reason is Reason.CONFLICT
    subscriber.consume()
    assert subscriber.got == []


def test_copies_of_every_frame_are_dropped_without_suspicion(publisher, reading):
    subscriber = reading()
    catch_up(subscriber, publisher)
    for _ in range(200):
        subscriber.wire.extend(frame for frame in publisher.publish([START, TAG, START]) for _ in range(2))
    every = list(subscriber.wire)
    subscriber.hear()
    subscriber.wire.extend(every)
    subscriber.hear()
    subscriber.consume()
    assert subscriber.got == list(range(1, 601))
    assert not subscriber.reader.quarantined
    assert subscriber.reader.stats.duplicates >= 600


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (["start"], Reason.MALFORMED),  # without a beat
        (["end"], Reason.MALFORMED),  # without a start
        (["records"], Reason.MALFORMED),
        (["beat", "end"], Reason.MALFORMED),
        (["beat", "other epoch"], Reason.EPOCH),
        (["beat", "behind the head"], Reason.MALFORMED),
        (["beat", "not the beginning"], Reason.MALFORMED),
        (["beat of another", "start"], Reason.ENDPOINT_MISMATCH),
        (["forged beat", "start"], Reason.SIGNATURE),
    ],
)
def test_an_answer_must_prove_where_it_begins(publisher, reading, parts, reason):
    for _ in range(3):
        publisher.publish([START])
    subscriber = reading()
    reader = subscriber.reader
    reader.fetch(1, 1000, 0.0)
    signed = publisher.beat()
    acts = {
        "beat": lambda: reader.on_fetched_beat(beat.decode(signed), 0.0),
        "forged beat": lambda: reader.on_fetched_beat(beat.decode(make.flipped(signed, 40)), 0.0),
        "beat of another": lambda: reader.on_fetched_beat(
            beat.decode(make.beat_of(make.BODHI, topics={}, window=0, start=1)), 0.0
        ),
        "start": lambda: reader.on_start(replay.Start(publisher.epoch, 0)),
        "other epoch": lambda: reader.on_start(replay.Start(make.EPOCH, 0)),
        "behind the head": lambda: reader.on_start(replay.Start(publisher.epoch, 9)),
        "not the beginning": lambda: reader.on_start(replay.Start(publisher.epoch, 2)),
        "records": lambda: reader.on_records(publisher.journal.read(0, 1000).data),
        "end": lambda: reader.on_end(replay.End(3, True)),
    }
    with pytest.raises((WireError, TrustError)) as caught:
        for part in parts:
            acts[part]()
    assert caught.value.reason is reason
    catch_up(subscriber, publisher)
    assert subscriber.got == [1, 2, 3]
    assert subscriber.losses == []


def test_a_record_of_another_epoch_inside_an_answer_is_refused(open_publisher, reading):
    old, new = open_publisher("old"), open_publisher("new")
    for _ in range(9):
        old.publish([START])
    new.publish([START])
    subscriber = reading()
    reader = subscriber.reader
    answer = new.answer(reader.fetch(1, 1000, 0.0))
    reader.on_fetched_beat(next(answer), 0.0)
    reader.on_start(next(answer))
    assert [error.reason for error in reader.on_records(old.journal.read(8, 1).data)] == [Reason.EPOCH]
    catch_up(subscriber, new)
    assert (subscriber.got, subscriber.losses) == ([1], [])


def test_an_answer_that_breaks_off_is_continued_where_it_was(publisher, reading):
    for _ in range(20):
        publisher.publish([START, TAG])
    subscriber = reading()
    for _ in range(6):
        subscriber.fetch(publisher, budget=10**6)
    subscriber.break_off()
    reached = subscriber.reader.accounted
    assert 0 < reached < 40
    assert subscriber.reader.fetch(1, 1000, 0.0).after == reached
    catch_up(subscriber, publisher)
    assert subscriber.got == list(range(1, 41))


def test_the_first_beat_that_is_heard_tells_the_skew_though_the_journal_was_quicker(publisher, reading, clock):
    publisher.publish([START])
    subscriber = reading()
    publisher.clock = ManualClock(clock.wall() + 3600.0)
    catch_up(subscriber, publisher)  # with a beat that says the same
    assert subscriber.reader.stats.skew == 0.0
    subscriber.wire.append(publisher.beat())
    subscriber.hear()
    assert subscriber.reader.stats.skew == pytest.approx(3600.0, abs=1.0)


@given(
    ahead=st.sampled_from([-3600.0, -20.0, -0.5, 0.0, 0.5, 20.0, 3600.0]),
    there=st.floats(0.0, 0.4),
    back=st.floats(0.0, 0.4),
    age=st.floats(0.0, 100.0),
    waited=st.floats(0.0, 100.0),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_joining_by_age_leaves_out_nothing_that_came_while_the_request_was_on_its_way(
    publisher, reading, clock, ahead, there, back, age, waited
):
    reader = reading(f"{ROOT}.koji", since=Since(age=(age, clock.monotonic()))).reader
    theirs = ManualClock(clock.wall() + ahead)
    wanted = theirs.wall() - age  # by the publisher's clock
    publisher.clock = theirs

    def passes(seconds: float) -> None:
        clock.advance(seconds)
        theirs.advance(seconds)

    passes(waited)
    asked_at = clock.monotonic()
    first = reader.fetch(1, 1000, asked_at)
    assert first.age_ms is not None
    assert first.age_ms >= (age + waited) * 1000 - 0.01
    passes(there)
    answer = beat.decode(publisher.beat())
    passes(back)
    assert reader.joins_by_age
    reader.compare_clocks(answer, asked_at, clock.monotonic(), clock.wall())
    begin = reader.fetch(2, 1000, clock.monotonic())
    assert begin.age_ms is None
    assert not reader.joins_by_age
    assert begin.time_ms <= wanted * 1000 + 0.01
    if ahead == 0.0:
        assert begin.time_ms >= wanted * 1000 - 1.001  # on one machine it is exact, or what was there before comes too
    else:
        assert begin.time_ms >= (wanted - back) * 1000 - 2.001
    reader.forget_clock()
    assert reader.joins_by_age
