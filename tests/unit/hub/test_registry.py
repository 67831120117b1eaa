"""Where consumers come from, and what keeps one from being loaded."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from fedbus.errors import ConfigError
from fedbus.hub.options import ConsumerSettings
from fedbus.hub.registry import enable, find

CLASS = """
from fedbus import Consumer

class Announce(Consumer):
    topics = ("koji.package",)
    schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {"channel": {"type": "string"}, "limits": {"type": "array", "items": {"type": "integer"}}},
    }
    def __init__(self, channel="#all", limits=()):
        self.channel = channel
    def consume(self, message):
        pass
"""
CALLBACKS = """
import fedbus
from fedbus import Consumer  # not defined here, so not offered

@fedbus.consumer("koji.package.build", name="builds", since="beginning")
def on_build(message): ...

@fedbus.consumer("bodhi")
def updates(message): ...
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "consumers"
    place.mkdir(mode=0o700)
    (place / "announce.py").write_text(CLASS)
    (place / "callbacks.py").write_text(CALLBACKS)
    for file in place.iterdir():
        file.chmod(0o600)
    return place


def wanted(name: str = "announce", **fields: object) -> dict[str, ConsumerSettings]:
    values = {"use": name, "origin": "40-hub.yaml:7", **fields}
    return {name: ConsumerSettings(name=name, **values)}  # type: ignore[arg-type]


@pytest.mark.parametrize("use", ["announce", "announce:Announce", "announce.py", "announce.py:Announce"])
def test_a_consumer_in_the_folder_is_found_however_it_is_named(folder, use):
    found = find(wanted(use=use, settings={"channel": "#builds"}), folder=folder)
    assert found.problems == []
    (enabled,) = found.consumers
    assert (enabled.name, enabled.topics, enabled.since) == ("announce", ("koji.package",), "now")
    assert enabled.consumer.channel == "#builds"


def test_the_configuration_has_the_last_word_on_topics_since_and_attempts(folder):
    found = find(wanted(topics=("bodhi",), since="1h", attempts=9), folder=folder)
    (enabled,) = found.consumers
    assert (enabled.topics, enabled.since, enabled.attempts) == (("bodhi",), "1h", 9)
    assert find(wanted(since="1h"), folder=folder, since="now").consumers[0].since == "now"


def test_a_callback_is_run_under_the_name_that_the_configuration_gives_it(folder):
    (enabled,) = find(wanted("mine", use="callbacks:on_build"), folder=folder).consumers
    assert (enabled.name, enabled.since) == ("mine", "beginning")
    (enabled,) = find(wanted("updates", use="callbacks.py"), folder=folder).consumers
    assert enabled.topics == ("bodhi",)


def test_an_entry_point_is_found_by_its_name(folder, tmp_path, monkeypatch):
    package = tmp_path / "site"
    (package / "acme-1.dist-info").mkdir(parents=True)
    (package / "acme_consumers.py").write_text(CLASS)
    (package / "acme-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\n")
    (package / "acme-1.dist-info" / "entry_points.txt").write_text(
        "[fedbus.consumers]\n"
        "acme = acme_consumers:Announce\nacme-module = acme_consumers\nwrong = acme_consumers:Consumer\n"
    )
    monkeypatch.syspath_prepend(str(package))
    assert importlib.metadata.entry_points(group="fedbus.consumers")
    assert find(wanted(use="acme")).consumers[0].topics == ("koji.package",)
    assert find(wanted(use="acme-module")).consumers[0].topics == ("koji.package",)
    assert "is no consumer" in find(wanted(use="wrong")).problems[0]
    sys.modules.pop("acme_consumers")


@pytest.mark.badinput("B48")
def test_of_two_packages_with_one_entry_point_neither_is_taken_for_the_other(folder, tmp_path, monkeypatch):
    for name in ("acme", "other", "acme-again"):  # the last is the first once more, as an editable installation leaves
        module = name.removesuffix("-again") + "_consumers"
        info = tmp_path / name / f"{name.replace('-', '_')}-1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[fedbus.consumers]\nbuilds = {module}:Announce\n")
        (tmp_path / name / f"{module}.py").write_text(CLASS)
    monkeypatch.syspath_prepend(str(tmp_path / "acme"))
    monkeypatch.syspath_prepend(str(tmp_path / "acme-again"))
    assert [one.topics for one in find(wanted(use="builds")).consumers] == [("koji.package",)]
    monkeypatch.syspath_prepend(str(tmp_path / "other"))
    (problem,) = find(wanted(use="builds")).problems
    assert "several packages have an entry point 'builds': acme_consumers:Announce, other_consumers:Ann" in problem
    assert [one.topics for one in find(wanted(use="other_consumers:Announce")).consumers] == [("koji.package",)]
    for module in ("acme_consumers", "other_consumers"):
        sys.modules.pop(module)


def test_a_disabled_consumer_is_not_even_imported(folder):
    (folder / "bad.py").write_text("raise SystemExit(9)")
    found = find({**wanted(), **wanted("bad", enabled=False)}, folder=folder)
    assert [one.name for one in found.consumers] == ["announce"]
    assert found.problems == []


@pytest.mark.badinput("B48")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("def broken(:", "SyntaxError"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("1/0", "ZeroDivisionError: division by zero"),
        ("x = 1", "it holds no consumer"),
        (CLASS + "class Other(Consumer):\n  topics = ('a',)\n", "several consumers; add :NAME, one of Announce, Other"),
        (CLASS.replace('("koji.package",)', "()"), "it names no topics"),
        (CLASS.replace('("koji.package",)', '"koji.package"'), "write a tuple"),
        (CLASS.replace("self.channel = channel", "raise OSError('no server')"), "OSError: no server"),
        ("", "it holds no consumer"),
        (CLASS.replace("def consume", "def consumes"), "Announce does nothing with messages; define consume(message)"),
        (CLASS.replace("(self, message)", "(self)"), "Announce.consume() is called with one message: too many"),
        (CLASS.replace("def consume", "def consume_batch").replace("(self, message)", "(self, a, b)"), "'b'"),
        (CLASS.replace("def consume", "batch = 5\n    def consume_batch"), "write batch = fedbus.Batch(messages=500"),
        (CALLBACKS.replace("(message)", "(message, more)").partition('@fedbus.consumer("bodhi')[0], "on_build(message"),
    ],
)
def test_a_consumer_that_cannot_be_loaded_leaves_the_others_alone(folder, text, said):
    (folder / "bad.py").write_text(text)
    found = find({**wanted("bad"), **wanted()}, folder=folder)
    assert [one.name for one in found.consumers] == ["announce"]
    (problem,) = found.problems
    assert problem.startswith("40-hub.yaml:7: consumer 'bad'")
    assert said in problem


@pytest.mark.badinput("B48")
def test_settings_are_checked_against_the_schema_of_the_consumer_and_every_fault_has_its_line(folder):
    origins = {"consumers.announce.settings.channel": "a.yaml:12", "consumers.announce.settings.limits[1]": "a.yaml:14"}
    configured = wanted(settings={"channel": 5, "limits": [1, "x"], "more": 1})
    found = find(configured, folder=folder, origins=origins)
    assert found.consumers == []
    assert len(found.problems) == 3
    assert "a.yaml:12: consumers.announce.settings.channel: 5 is not of type 'string'" in found.problems
    assert "a.yaml:14: consumers.announce.settings.limits[1]: 'x' is not of type 'integer'" in found.problems
    assert any("'more' was unexpected" in problem for problem in found.problems)


def test_settings_without_a_schema_must_fit_the_constructor(folder):
    (folder / "announce.py").write_text(CLASS.replace("schema", "not_looked_at"))
    (problem,) = find(wanted(settings={"colour": "red"}), folder=folder).problems
    assert "its settings do not fit Announce: got an unexpected keyword argument 'colour'" in problem
    (problem,) = find(wanted("builds", use="callbacks.py", settings={"a": 1}), folder=folder).problems
    assert "a callback takes no settings" in problem


@pytest.mark.badinput("B48")
@pytest.mark.parametrize("use", ["../outside.py", "/tmp/outside.py", "link.py", "link"])
def test_a_file_outside_the_folder_is_not_loaded(folder, use):
    outside = folder.parent / "outside.py"
    outside.write_text(CLASS)
    (folder / "link.py").symlink_to(outside)
    (problem,) = find(wanted(use=use), folder=folder).problems
    assert "is outside" in problem


@pytest.mark.badinput("B48")
def test_a_file_is_not_loaded_without_a_folder():
    (problem,) = find(wanted(use="announce.py")).problems
    assert "hub.folder is not set" in problem


@pytest.mark.badinput("B48")
@pytest.mark.parametrize("use", ["a/b", "os.system('x')", "..", "a b", "$(reboot)"])
def test_what_is_no_name_of_a_module_is_not_tried(folder, use):
    (problem,) = find(wanted(use=use), folder=folder).problems
    assert "correct `use`" in problem


@pytest.mark.badinput("B48")
@pytest.mark.parametrize("what", ["announce.py", "."])
def test_a_file_that_others_can_change_is_not_run(folder, what):
    (folder / what).chmod(0o777)
    (problem,) = find(wanted(), folder=folder).problems
    assert "has mode 0777, so others can change what the hub runs" in problem


@pytest.mark.badinput("B48")
def test_two_consumers_with_one_name_do_not_both_run(folder):
    file = folder.parent / "mine.py"
    file.write_text(CLASS)
    found = find(wanted(), folder=folder, files=[str(file)])
    assert [one.origin for one in found.consumers] == [f"--consumer {file}"]
    assert "is also in a file named with --consumer" in found.problems[0]


@pytest.mark.badinput("B48")
def test_of_two_consumers_of_a_file_with_one_name_neither_is_taken_for_the_other(folder):
    mark = 'from fedbus import consumer\n@consumer("koji", name="same")\ndef first(message): ...\n'
    (folder / "same.py").write_text(mark + '@consumer("bodhi", name="same")\ndef second(message): ...\n')
    found = find(wanted(use="same.py:same"), folder=folder)
    assert found.consumers == []
    assert "several consumers with that name: first, second; name one of these instead" in found.problems[0]
    # how it is called in the file says which one is meant, even where another one has that for a name
    (folder / "same.py").write_text(mark + '@consumer("bodhi", name="other")\ndef same(message): ...\n')
    (one,) = find(wanted(use="same.py:same"), folder=folder).consumers
    assert one.topics == ("bodhi",)


def test_all_consumers_of_a_file_named_by_hand_run_or_the_one_that_is_named(folder):
    file = str(folder / "callbacks.py")
    assert [one.name for one in find({}, files=[file]).consumers] == ["builds", "updates"]
    assert [one.name for one in find({}, files=[f"{file}:updates"]).consumers] == ["updates"]
    assert [one.name for one in find({}, files=[f"{file}:on_build"]).consumers] == ["builds"]
    assert [one.name for one in find({}, files=[f"{file}:builds", f"{file}:updates"]).consumers] == [
        "builds",
        "updates",
    ]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["nowhere.py"], "cannot read nowhere.py: No such file"),
        (["callbacks.py:nobody"], "it holds no consumer 'nobody'; there are: on_build, updates"),
        (["callbacks.py", "callbacks.py:updates"], "a consumer named 'updates' is in"),
        (["broken.py"], "ZeroDivisionError"),
        (["."], "is not a regular file"),
    ],
)
def test_what_was_asked_for_by_hand_and_cannot_run_is_an_error(folder, monkeypatch, files, said):
    (folder / "broken.py").write_text("1/0")
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError) as caught:
        find(wanted(), folder=folder, files=files)
    assert said in str(caught.value)


def test_only_those_that_are_named_run(folder):
    configured = {**wanted(), **wanted("builds", use="callbacks.py")}
    assert [one.name for one in find(configured, folder=folder, only=["builds"]).consumers] == ["builds"]
    with pytest.raises(ConfigError, match="there is no such consumer; there are: announce, builds"):
        find(configured, folder=folder, only=["bilds"])


def test_when_none_of_those_that_are_named_can_be_loaded_there_is_nothing_to_run(folder):
    configured = {**wanted(settings={"channel": 7}), **wanted("builds", use="callbacks.py")}
    with pytest.raises(ConfigError) as caught:
        find(configured, folder=folder, only=["announce"])
    (problem,) = caught.value.problems
    assert problem.startswith("--only: nothing that it names can be loaded: 40-hub.yaml:7: ")
    assert problem.endswith("consumers.announce.settings.channel: 7 is not of type 'string'")
    # beside another one it is a problem of its own
    found = find(configured, folder=folder, only=["announce", "builds"])
    assert [one.name for one in found.consumers] == ["builds"]
    assert len(found.problems) == 1
    # and where it is changed while nothing else runs, those that run go on
    with pytest.raises(ConfigError, match="--only"):
        find(configured, folder=folder, only=["announce"], running={"announce": "something else"})


def test_a_hub_without_any_consumer_says_how_to_get_one():
    with pytest.raises(ConfigError, match="there is no consumer to run"):
        find({})


def test_a_program_can_hand_over_objects_and_marked_functions(folder):
    (found,) = find({}, files=[str(folder / "announce.py")]).consumers
    assert enable(found.consumer).topics == ("koji.package",)
    with pytest.raises(ConfigError, match="is no consumer"):
        enable(print)
