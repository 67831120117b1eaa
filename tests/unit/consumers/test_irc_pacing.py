"""How much is said and when: the rate, the queue of a channel, and the pauses between connections."""

from __future__ import annotations

from collections import Counter

import pytest
from fedbus_consumers.irc_parts.pacing import Backlog, Bucket, Pauses, cause_of
from fedbus_consumers.irc_parts.settings import NetworkOptions
from fedbus_consumers.irc_parts.text import Entry
from hypothesis import given
from hypothesis import strategies as st


def entry(number: int, service: str = "koji") -> Entry:
    return Entry("org.x.dev.koji", service, str(number), "", 4)


def options(**more: object) -> NetworkOptions:
    return NetworkOptions("n", {"server": "s", "nick": "n", "channels": {}, **more}, "")


@given(st.floats(0.1, 50), st.integers(1, 20), st.lists(st.floats(0, 5), max_size=100))
def test_a_bucket_never_gives_more_than_its_burst_and_its_rate(rate: float, burst: int, steps: list[float]) -> None:
    bucket, now, given_out = Bucket(rate, burst), 0.0, 0
    for step in steps:
        now += step
        while bucket.take(now):
            given_out += 1
        assert given_out <= burst + rate * now + 1e-6


def test_a_bucket_tells_when_the_next_token_comes() -> None:
    bucket = Bucket(0.5, 1)
    assert bucket.take(10.0)
    assert bucket.wait(10.0) == pytest.approx(2.0)
    assert bucket.take(12.0)


def test_what_could_not_wait_is_waited_for_later_but_not_for_ever() -> None:
    bucket = Bucket(1.0, 4)
    for _ in range(10):
        bucket.spend(0.0)
    assert bucket.wait(0.0) == pytest.approx(7.0)
    for _ in range(1000):
        bucket.spend(0.0)
    assert bucket.wait(0.0) == pytest.approx(11.0)


@given(st.integers(1, 10), st.lists(st.one_of(st.none(), st.integers(0, 3)), max_size=200))
def test_every_message_is_said_waits_or_is_counted_in_a_summary(most: int, steps: list[int | None]) -> None:
    backlog, now, put, said, told = Backlog(most), 0.0, 0, [], 0
    for step in steps:
        now += 0.5
        if step is None:
            taken = backlog.take(now)
            if isinstance(taken, str):
                told += int(taken.split()[2])
            elif taken is not None:
                said.append(int(taken.summary))
        else:
            put += 1
            backlog.put(entry(put, f"s{step}"), now)
        assert len(backlog) <= most
    while (taken := backlog.take(now)) is not None:
        now += 5.0
        if isinstance(taken, str):
            told += int(taken.split()[2])
        else:
            said.append(int(taken.summary))
    assert said == sorted(said)
    assert len(said) + told == put
    assert backlog.left_out == told


def test_after_a_burst_the_summary_stands_where_messages_are_missing() -> None:
    backlog = Backlog(3)
    for number in range(2000):
        backlog.put(entry(number), 100.0)
    assert backlog.take(102.5) == "… and 1997 more (koji)"
    assert [one.summary for one in iter(lambda: backlog.take(102.5), None)] == ["1997", "1998", "1999"]


def test_under_lasting_load_summaries_are_rare() -> None:
    backlog, now, found = Backlog(5), 0.0, Counter[str]()
    for number in range(3000):
        now += 0.1
        backlog.put(entry(number), now)
        if number % 20 == 0:
            taken = backlog.take(now)
            found["summary" if isinstance(taken, str) else "message"] += 1
    assert found["summary"] <= 31
    assert found["message"] > 110


def test_a_summary_names_the_services_with_the_most() -> None:
    backlog = Backlog(1)
    for number, service in enumerate(["git"] * 14 + ["koji"] * 200 + ["a", "b", "c", "d"]):
        backlog.put(entry(number, service), 0.0)
    assert backlog.take(9.0) == "… and 217 more (koji 200, git 14, a 1, b 1, others)"


def test_a_muted_channel_is_told_afterwards_how_many_there_were() -> None:
    backlog = Backlog(5)
    backlog.put(entry(0), 0.0)
    backlog.mute(0.0, 60.0)
    for number in range(36):
        backlog.put(entry(number), 30.0)
    assert backlog.take(59.0) is None
    assert backlog.take(61.0) == "… and 37 more (koji)"
    assert backlog.take(61.0) is None


def test_what_could_not_be_said_comes_first_again_unless_the_queue_is_full() -> None:
    backlog = Backlog(2)
    backlog.put(entry(2), 0.0)
    backlog.give_back(entry(1))
    assert backlog.take(0.0) == entry(1)
    backlog.put(entry(3), 0.0)
    backlog.give_back(entry(0))
    assert len(backlog) == 2
    assert backlog.left_out == 1


@pytest.mark.fault("F19")
def test_pauses_grow_and_are_long_where_we_are_not_wanted() -> None:
    pauses = Pauses(options(), chance=lambda: 0.0)
    assert [pauses.after("lost", 1.0) for _ in range(9)] == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert Pauses(options(), chance=lambda: 0.0).after("flood", 1.0) == 60
    banned = Pauses(options(), chance=lambda: 0.0)
    assert [banned.after("banned", 1.0) for _ in range(4)] == [900, 1800, 3600, 3600]
    assert Pauses(options(), chance=lambda: 1.0).after("lost", 0.0) == 6.25


@pytest.mark.fault("F19")
@given(
    st.lists(
        st.tuples(st.sampled_from(["lost", "killed", "flood", "banned", "login", "tls"]), st.floats(0, 60)), min_size=1
    )
)
def test_a_server_that_never_keeps_us_for_long_sees_us_ever_more_rarely(ends: list[tuple[str, float]]) -> None:
    pauses, last = Pauses(options(), chance=lambda: 0.0), 0.0
    for cause, lived in ends:
        pause = pauses.after(cause, lived)
        assert 5.0 <= pause <= 3600.0
        assert pause >= last
        last = pause


def test_a_connection_that_lived_long_begins_anew() -> None:
    pauses = Pauses(options(), chance=lambda: 0.0)
    for _ in range(8):
        pauses.after("lost", 1.0)
    assert pauses.after("lost", 500.0) == 300.0
    assert pauses.after("lost", 601.0) == 5.0


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("Closing Link: bot[127.0.0.1] (Excess Flood)", "flood"),
        ("Closing link: (bot@127.0.0.1) [RecvQ exceeded]", "flood"),
        ("Closing Link: x (K-Lined)", "banned"),
        ("Closing link: (u@h) [K:Lined: go away]", "banned"),
        ("Closing link: (u@h) [Z-Lined: go away]", "banned"),
        ("You are banned from this server", "banned"),
        ("Trying to reconnect too fast.", "flood"),
        ("Closing link: (u@h) [Killed (oper (bye))]", "killed"),
        ("Server going down", "lost"),
        ("skilled clined", "lost"),
    ],
)
def test_what_a_server_says_at_the_end_tells_why(text: str, cause: str) -> None:
    assert cause_of(text) == cause
