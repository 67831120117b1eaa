"""A history beside a plain list: whatever is written in whatever order, by whom, both find the same."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fedbus import Fenced, HistoryQuery, HistoryStore, Message, TopicFilter
from fedbus.history.places import DAY_MS, HOUR_MS, is_over, partition_of, stated_ms
from fedbus.history.words import parse_text, split, text_of
from tests.unit.history.press import BODHI, KOJI, NAMING, WALL, Press
from tests.unit.history.stores import opener

WORDS = ("bash", "build", "Éclair", "x86_64", "5.2-1", "naïve", "is", "42")
PEOPLE = ("ralph", "zoë", "Ralph", "a.b")
PACKAGES = ("bash", "python-requests", "python-requests-oauthlib")
TOPICS = ("package.build.start", "package.build.complete", "tag.add")
BODY = st.fixed_dictionaries(
    {"text": st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)},
    optional={
        "user": st.sampled_from(PEOPLE),
        "package": st.sampled_from(PACKAGES),
        "build": st.fixed_dictionaries({"id": st.integers(0, 3), "ok": st.booleans()}),
    },
)
FILTERS = ("koji", "koji.package", "*.package.build", "#.add", "bodhi.tag", "nobody", "#")
_PLACES = st.one_of(st.none(), st.integers(-3 * DAY_MS, DAY_MS).map(lambda away: int(WALL * 1000) + away))


class HistoryMachine(RuleBasedStateMachine):
    press: Press

    @initialize(period=st.sampled_from(["day", "month"]))
    def begin(self, period: str) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.press = Press(self.folder / "keys")
        start = opener(str(self.folder / "history"), self.press.clock)
        self.open = lambda: start(period=period)
        self.period = period
        self.stores: list[HistoryStore] = [self.open(), self.open()]
        self.sent: list[Message] = []
        self.kept: dict[object, Message] = {}
        self.token = 0

    def teardown(self) -> None:
        if hasattr(self, "stores"):
            for store in self.stores:
                store.close()
            shutil.rmtree(self.folder)

    @rule(
        bodies=st.lists(st.tuples(BODY, st.sampled_from(TOPICS)), min_size=1, max_size=6),
        endpoint=st.sampled_from([KOJI, BODHI]),
        hours=st.integers(-60, 20),
    )
    def publish(self, bodies: list[tuple[dict[str, object], str]], endpoint: str, hours: int) -> None:
        texts, topics = zip(*bodies, strict=True)
        self.sent += self.press.batch(texts, topics, endpoint=endpoint, wall=WALL + 3600 * hours, parcel_messages=2)

    @rule(data=st.data(), which=st.integers(0, 1), older=st.booleans(), step=st.integers(0, 1))
    def write(self, data: st.DataObject, which: int, older: bool, step: int) -> None:
        if not self.sent:
            return
        chosen = data.draw(st.lists(st.sampled_from(self.sent), max_size=12))
        if older and self.token:
            try:
                self.stores[which].write(chosen, token=self.token - 1)
            except Fenced:
                return
            raise AssertionError("a lower token was taken")
        self.token += step
        new = {message.key: message for message in chosen if message.key not in self.kept}
        written = self.stores[which].write(chosen, token=self.token)
        assert (written.new, written.known) == (len(new), len(chosen) - len(new))
        self.kept.update(new)

    @rule(which=st.integers(0, 1))
    def open_again(self, which: int) -> None:
        self.stores[which].close()
        self.stores[which] = self.open()

    @rule(days=st.integers(0, 4))
    def drop(self, days: int) -> None:
        before = int(WALL * 1000) - days * DAY_MS
        self.stores[0].drop_before(before, token=self.token)
        for key, message in list(self.kept.items()):
            if is_over(partition_of(stated_ms(message.time), self.period), before):
                del self.kept[key]

    @rule(
        which=st.integers(0, 1),
        filters=st.lists(st.sampled_from(FILTERS), max_size=2),
        text=st.lists(st.sampled_from((*WORDS, "bui*", '"is 42"', "none")), max_size=2),
        user=st.one_of(st.none(), st.sampled_from((*PEOPLE, "nobody"))),
        package=st.one_of(st.none(), st.sampled_from((*PACKAGES, "nothing"))),
        field=st.one_of(st.none(), st.sampled_from([("build.id", "2"), ("build.ok", "true"), ("package", "bash")])),
        endpoint=st.sampled_from([None, KOJI, BODHI]),
        since=_PLACES,
        until=_PLACES,
        newest=st.booleans(),
        limit=st.integers(0, 4),
    )
    def look(
        self,
        which: int,
        filters: list[str],
        text: list[str],
        user: str | None,
        package: str | None,
        field: tuple[str, str] | None,
        endpoint: str | None,
        since: int | None,
        until: int | None,
        newest: bool,
        limit: int,
    ) -> None:
        chosen = tuple(TopicFilter.parse(one, NAMING) for one in filters)
        query = HistoryQuery(
            filters=chosen,
            text=" ".join(text),
            users=(user,) if user else (),
            packages=(package,) if package else (),
            fields=(field,) if field else (),
            endpoints=(endpoint,) if endpoint else (),
            since_ms=since,
            until_ms=until,
            newest=newest,
            limit=limit,
        )

        def fits(message: Message) -> bool:
            body, when = message.body, stated_ms(message.time)
            words = split(text_of(body))
            return (
                (not chosen or any(one.matches(message.topic) for one in chosen))
                and (endpoint is None or message.endpoint == endpoint)
                and (since is None or when >= since)
                and (until is None or when < until)
                and all(one.within(words) for one in (parse_text(query.text) if query.text else ()))
                and (user is None or body.get("user", "").lower() == user.lower())
                and (package is None or body.get("package") == package)
                and (field is None or _plain(body, field[0]) == field[1])
            )

        expected = [message for message in self.kept.values() if fits(message)]
        store = self.stores[which]
        found = [one.message() for one in store.find(query)]
        times = [stated_ms(message.time) for message in found]
        assert times == sorted(times, reverse=newest)
        if limit:
            assert len(found) == min(limit, len(expected))
            assert {message.key for message in found} <= {message.key for message in expected}
        else:
            assert sorted(message.key for message in found) == sorted(message.key for message in expected)
        assert store.count(query) == len(expected)
        counts: dict[tuple[str, int], int] = {}
        for message in expected:
            where = (message.topic, stated_ms(message.time) // HOUR_MS)
            counts[where] = counts.get(where, 0) + 1
        assert store.statistics(query) == counts

    @invariant()
    def all_that_is_kept_is_there_with_its_bytes(self) -> None:
        if not hasattr(self, "stores"):
            return
        found = {one.key: one.envelope for one in self.stores[1].find(HistoryQuery())}
        assert found == {key: message.envelope for key, message in self.kept.items()}


def _plain(body: dict[str, object], path: str) -> str:
    value: object = body
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return str(value).lower()


TestHistory = HistoryMachine.TestCase
TestHistory.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
