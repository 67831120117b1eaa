"""What the author of a consumer meets."""

from __future__ import annotations

import pytest

import fedbus
from fedbus.hub.consumer import MARK, check_name, name_of


def test_a_marked_function_stays_the_function_that_it_was():
    @fedbus.consumer("koji.package.build", name="announce", since="10m")
    def on_build(message):
        return message

    assert on_build("x") == "x"
    declaration = getattr(on_build, MARK)
    assert (declaration.name, declaration.topics, declaration.since) == ("announce", ("koji.package.build",), "10m")


def test_a_marked_function_without_a_name_is_called_as_itself():
    @fedbus.consumer("koji", "bodhi")
    def announce_builds(message):
        pass

    assert getattr(announce_builds, MARK).name == "announce_builds"


def test_the_decorator_without_topics_says_how_to_write_it():
    with pytest.raises(TypeError, match="name the topics"):

        @fedbus.consumer
        def on_build(message):
            pass

    with pytest.raises(TypeError, match=r'@consumer\("#"\) for all'):
        fedbus.consumer()


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", "-a", "a" * 65, "a.b", "é"])
def test_a_name_that_cannot_be_that_of_a_cursor_is_refused(name):
    with pytest.raises(ValueError, match="consumer name"):
        check_name(name)


@pytest.mark.parametrize(
    ("written", "called"),
    [("AnnounceBuilds", "announce-builds"), ("IRC", "irc"), ("IRCRelay", "irc-relay"), ("Log2Disk", "log2-disk")],
)
def test_a_class_without_a_name_is_called_as_itself_in_words(written, called):
    assert name_of(type(written, (fedbus.Consumer,), {})) == called


@pytest.mark.parametrize("after", [-1.0, float("nan"), float("inf")])
def test_a_pause_that_never_ends_is_no_retry(after):
    with pytest.raises(ValueError, match="0 or more"):
        fedbus.Retry(after=after)


@pytest.mark.parametrize("code", [-1, 256])
def test_halt_takes_exit_codes_only(code):
    with pytest.raises(ValueError, match="between 0 and 255"):
        fedbus.Halt(exit_code=code)


def test_a_class_needs_no_init_of_the_base():
    class Announce(fedbus.Consumer):
        def __init__(self, channel):
            self.channel = channel

    consumer = Announce("#builds")
    assert consumer.start() is None
    assert consumer.stop() is None
    with pytest.raises(NotImplementedError, match="Announce has no consume"):
        consumer.consume(None)
