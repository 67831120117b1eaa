"""The consumer for desktops, with a real session bus and a real notification server, whose history tells all."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fedbus_consumers import desktop
from fedbus_consumers.desktop import Desktop

from fedbus import Message, Retry, Text, Texts
from tests.services.desktop import Desktop as Session
from tests.support import open_folder, wait_until
from tests.unit.consumers.messages import message


class Given(Texts):
    """The body of a message is its text."""

    def of(self, message: Any) -> Text:
        return Text(**message.body)


PATIENCE = 60.0


@pytest.fixture
def session() -> Iterator[Session]:
    with open_folder("fedbus-desktop-") as folder:
        one = Session(folder)
        yield one
        one.close()


@pytest.fixture
def notifier(session: Session, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Desktop]]:
    """Make and start consumers for the session; all are stopped at the end."""
    monkeypatch.setattr(desktop, "_PATIENCE", PATIENCE)  # for a bus and a server on a busy machine
    made: list[Desktop] = []

    def make(**settings: Any) -> Desktop:
        settings = {"bus": session.address, "newest": 0, **settings}
        jsonschema.validate(settings, Desktop.schema)
        one = Desktop(**settings)
        one.texts = Given(root="org.example.dev")
        one.start()
        made.append(one)
        return one

    yield make
    for one in made:
        one.stop()


def text(title: str, summary: str = "", **more: Any) -> Message:
    return message({"title": title, "summary": summary, **more})


NASTY = {
    "title": "<b>koji</b> & \x1b]0;x\x07",
    "summary": "a <a href='x'>b</a> &amp; <img src=x>\u202e\x00\r\nc" + "d" * 10_000,
}
SHOWN_TITLE = "<b>koji</b> & ]0;x"
SHOWN_BODY = "a <a href='x'>b</a> &amp; <img src=x> c" + "d" * 360 + "…"


@pytest.mark.badinput("B41")
@pytest.mark.parametrize("markup", ["full", "no"])
def test_what_is_shown_is_the_text_whether_the_server_knows_markup_or_not(session, notifier, markup):
    session.start_bus()
    session.start_server(markup=markup)
    rules = [{"topics": ["koji"], "urgency": "critical", "icon": "face-smile", "expire": "60s"}]
    notifier(rules=rules).consume(message(NASTY))
    (entry,) = session.history()
    assert entry["appname"] == "fedbus"
    assert entry["summary"] == SHOWN_TITLE
    assert entry["timeout"] == 60_000_000
    if markup == "full":
        assert entry["body"] == desktop.markup(SHOWN_BODY)
    else:
        assert entry["body"] == SHOWN_BODY


def test_rules_say_how_urgent_messages_are(session, notifier):
    session.start_bus()
    session.start_server()
    one = notifier(
        rules=[
            {"topics": ["koji.package.build.fail"], "urgency": "critical"},
            {"topics": ["koji.*.start"], "urgency": "low"},
            {"topics": ["bodhi"], "show": False},
        ]
    )
    for topic in ("koji.package.build.fail", "koji.build.start", "koji.tag.add", "bodhi.update.create"):
        one.consume(message({"title": topic, "summary": ""}, f"org.example.dev.{topic}"))
    # the server gives each urgency a time of its own, in microseconds
    shown = {entry["summary"]: entry["timeout"] // 1_000_000 for entry in session.history()}
    assert shown == {"koji.package.build.fail": 103, "koji.build.start": 101, "koji.tag.add": 102}


def test_what_comes_too_fast_is_counted_and_told_together(session, notifier):
    session.start_bus()
    session.start_server()
    one = notifier(burst=3, every=600)
    for number in range(15):
        one.consume(text("build" if number % 3 else "tag", f"number {number}"))
    one.stop()  # tells of the rest, as time would
    shown = [(entry["summary"], entry["body"]) for entry in session.history()]
    assert shown == [
        ("tag", "number 0"),
        ("build", "number 1"),
        ("build", "number 2"),
        ("… and 12 more", "8 build, 4 tag"),
    ]


def test_while_the_count_is_on_the_screen_it_grows_and_no_second_one_comes(session, notifier):
    session.start_bus()
    session.start_server()
    one = notifier(burst=1, every=0.05, newest="1h")
    assert time.time() - one.newest > 0
    one.consume(text("old"))  # their time is long ago, so all are counted
    wait_until(lambda: session.count() == 1, PATIENCE)
    for _ in range(4):
        one.consume(text("old"))
    wait_until(lambda: one._told["old"] == 5 and one._summary.done(), PATIENCE, "the server to know of all")
    assert [(entry["summary"], entry["body"]) for entry in session.history()] == [("… and 5 more", "5 old")]
    wait_until(lambda: not one._told, PATIENCE, "the news that it was closed")
    one.consume(text("old"))
    wait_until(lambda: session.count() == 1, PATIENCE)
    assert [entry["summary"] for entry in session.history()][-1] == "… and 1 more"


@pytest.mark.badinput("B35")
def test_a_click_opens_the_link_as_one_argument(session, notifier, tmp_path):
    session.start_bus()
    session.start_server()
    opener = tmp_path / "opener"
    opened = tmp_path / "opened"
    opener.write_text(f'#!/bin/sh\nfor one; do echo "$one" >> {opened}.new; done\nmv {opened}.new {opened}\n')
    opener.chmod(0o700)
    one = notifier(open=[str(opener), "--new-window"])
    link = "https://example.org/$(touch%20x);`x`'&a=1"
    one.consume(text("build", "done", link=link))
    # the server has taken it, and shows it when nobody calls
    wait_until(lambda: session.count() == 1, PATIENCE, "the notification")
    session.click()
    wait_until(opened.exists, PATIENCE, "the opened link")
    assert opened.read_text().splitlines() == ["--new-window", link]


def test_a_session_that_comes_later_and_servers_that_come_and_go_lose_nothing(session, notifier, monkeypatch):
    one = notifier(burst=100)
    with pytest.raises(Retry, match="no session bus at unix:path="):
        one.consume(text("1"))
    session.start_bus()
    with pytest.raises(Retry, match=r"GetCapabilities of org\.freedesktop\.Notifications failed: .*ServiceUnknown"):
        one.consume(text("1"))
    session.start_server()
    deliver(one, text("1"))
    assert [entry["summary"] for entry in session.history()] == ["1"]
    session.stop("dunst")
    with pytest.raises(Retry):
        one.consume(text("2"))
    session.start_server()
    deliver(one, text("2"))
    assert [entry["summary"] for entry in session.history()] == ["2"]
    session.send("dunst", signal.SIGSTOP)
    with monkeypatch.context() as impatient, pytest.raises(Retry, match="TimeoutError"):
        impatient.setattr(desktop, "_PATIENCE", 0.3)
        one.consume(text("3"))
    session.send("dunst", signal.SIGCONT)
    deliver(one, text("3"))
    session.stop("dunst")
    session.stop("dbus-daemon")
    with pytest.raises(Retry):
        one.consume(text("4"))
    session.start_bus()
    session.start_server()
    deliver(one, text("4"))
    assert [entry["summary"] for entry in session.history()] == ["4"]


def deliver(one: Desktop, what: Message) -> None:
    """Give *what* until it is taken, as a hub does."""

    def taken() -> bool:
        try:
            one.consume(what)
        except Retry:
            return False
        return True

    wait_until(taken, PATIENCE, "a notification that is shown")


def test_a_hub_shows_messages_on_the_desktop(session, spawn, fedbus, bus_folder: Path):
    session.start_bus()
    session.start_server()
    settings = {"bus": session.address}
    consumers = {"desktop": {"use": "fedbus_consumers.desktop", "topics": ["koji"], "settings": settings}}
    (bus_folder / "60-desktop.yaml").write_text(json.dumps({"consumers": consumers}))
    (bus_folder / "60-desktop.yaml").chmod(0o600)
    hub = spawn("hub", config=bus_folder)
    hub.wait_for("ready")
    fedbus("publish", "package.build.complete", '{"package": "bash", "owner": "ralph"}', "--as", "koji.build01")
    wait_until(lambda: session.count() == 1, PATIENCE, "the notification")
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0, hub.err
    (entry,) = session.history()
    assert "build" in entry["summary"] and "bash" in entry["body"]
