from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import jsonschema
import pytest

from fedbus.config.settings import ConfigWatcher, Settings, schema
from fedbus.errors import ConfigError
from fedbus.hub.options import HubOptions
from fedbus.journal.journal import JournalOptions, SyncPolicy
from fedbus.model.limits import Limits
from fedbus.monitor.options import MetricsOptions
from fedbus.schemas.options import SchemaOptions
from fedbus.transport.publisher import PublisherOptions
from fedbus.transport.subscriber import SubscriberOptions
from fedbus.trust.keyring import KeyringOptions

ROOT = Path(__file__).parents[3]
GOOD = """\
topic_prefix: org.example
environment: dev
state: state
endpoints:
  koji.build01:
    publish: tcp://127.0.0.1:3000
    replay: tcp://127.0.0.1:3001
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "fedbus.d"
    made.mkdir(mode=0o755)
    write(made, "10-bus.yaml", GOOD)
    return made


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(text)
    path.chmod(0o644)


def faults(folder: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    """The problems that *text* as a second file causes, without the path of the folder."""
    write(folder, "20-more.yaml", text)
    with pytest.raises(ConfigError) as caught:
        Settings.load(folder, environ or {})
    return [problem.removeprefix(f"{folder}/") for problem in caught.value.problems]


def test_the_smallest_configuration_gives_the_defaults(folder):
    settings = Settings.load(folder, {})
    assert settings.naming.root == "org.example.dev"
    assert settings.environment == "dev"
    assert settings.state == folder / "state"
    assert settings.keys == folder / "keys"
    assert settings.keyring == KeyringOptions(ca=folder / "keys/ca.crt", crl=folder / "keys/crl.pem", crl_grace=0.0)
    assert settings.journal == JournalOptions(directory=folder / "state/journal")
    assert settings.journal_for("koji.build01") == JournalOptions(directory=folder / "state/journal/koji.build01")
    assert settings.publisher == PublisherOptions()
    assert settings.subscriber == SubscriberOptions()
    assert settings.limits == Limits()
    assert settings.cursors == folder / "state/cursors.db"
    assert settings.consumers == {}
    koji = settings.endpoint("koji.build01")
    assert (koji.publish, koji.replay, koji.wire) == ("tcp://127.0.0.1:3000", "tcp://127.0.0.1:3001", "native")
    assert (koji.certificate, koji.key) == (folder / "keys/koji.build01.crt", folder / "keys/koji.build01.key")
    assert koji.origin == f"{folder}/10-bus.yaml:5"


def test_every_section_fills_the_options_of_its_part(folder):
    write(
        folder,
        "20-more.yaml",
        """\
keys: {directory: /etc/pki/fedbus, ca: ca.pem, crl: false, crl_grace: 2h}
journal: {sync: interval, sync_interval: 20ms, segment_bytes: 1MiB, retain_age: 30d, retain_bytes: 0, topics: 7}
publisher: {signatures_per_second: 500, queue_bytes: 1GiB, beat_interval: 0.5}
subscriber: {receive_hwm: 10, fetch_bytes: 1MiB}
limits: {message_bytes: 2MiB, nesting: 32}
hub: {folder: consumers, http: "127.0.0.1:9140", drain_timeout: 3s}
log: {level: debug, format: json}
policy:
  - signer: bodhi.*
    topics: [koji.package.tag]
consumers:
  announce:
    use: announce:AnnounceBuilds
    topics: [koji.package]
    workers: 3
    timeout: 5m
    settings: {channel: "#builds", nested: {a: [1]}}
""",
    )
    settings = Settings.load(folder, {})
    assert settings.keyring == KeyringOptions(ca=folder / "ca.pem", crl=None, crl_grace=7200.0)
    assert settings.endpoint("koji.build01").key == Path("/etc/pki/fedbus/koji.build01.key")
    journal = settings.journal_for("koji.build01")
    assert (journal.sync, journal.sync_interval, journal.segment_bytes) == (SyncPolicy.INTERVAL, 0.02, 2**20)
    assert (journal.retain_age, journal.retain_bytes, journal.topics) == (30 * 86400.0, 0, 7)
    assert settings.publisher == PublisherOptions(signatures_per_second=500, queue_bytes=2**30, beat_interval=0.5)
    assert settings.subscriber == SubscriberOptions(receive_hwm=10, fetch_bytes=2**20)
    assert settings.limits == Limits(message_bytes=2**21, nesting=32)
    assert settings.hub == HubOptions(folder=folder / "consumers", http="127.0.0.1:9140", drain_timeout=3.0)
    assert (settings.log.level, settings.log.format) == ("debug", "json")
    assert settings.policy.permits("bodhi.web01", "org.example.dev.koji.package.tag")
    assert not settings.policy.permits("bodhi.web01", "org.example.dev.koji.package.untag")
    assert settings.policy.rules[0].origin == f"{folder}/20-more.yaml:9"
    announce = settings.consumers["announce"]
    assert (announce.use, announce.topics, announce.workers) == ("announce:AnnounceBuilds", ("koji.package",), 3)
    assert (announce.timeout, announce.settings) == (300.0, {"channel": "#builds", "nested": {"a": [1]}})
    assert announce.origin == f"{folder}/20-more.yaml:12"
    assert settings.origins["journal.sync"] == f"{folder}/20-more.yaml:2"


def test_an_endpoint_can_have_journal_settings_of_its_own(folder):
    write(
        folder,
        "20-more.yaml",
        "journal: {retain_age: 1d, topics: 5}\n"
        "endpoints: {bodhi.web: {publish: 'ipc://run/p', replay: 'ipc://run/r', journal: {retain_age: 2d}}}\n",
    )
    settings = Settings.load(folder, {})
    own = settings.journal_for("bodhi.web")
    assert (own.directory, own.retain_age, own.topics) == (folder / "state/journal/bodhi.web", 172800.0, 5)
    assert settings.journal_for("koji.build01").retain_age == 86400.0
    assert settings.endpoint("bodhi.web").publish == f"ipc://{folder}/run/p"


def test_an_endpoint_that_speaks_fedmsg_has_no_journal_and_so_nothing_that_goes_with_it(folder):
    text = "endpoints: {old.host: {publish: 'tcp://old.example.org:3010', wire: fedmsg%s}}"
    write(folder, "20-more.yaml", text % "")
    endpoint = Settings.load(folder, {}).endpoint("old.host")
    assert (endpoint.wire, endpoint.replay) == ("fedmsg", "")
    (fault,) = faults(folder, text % ", replay: 'tcp://old.example.org:3011'")
    assert "20-more.yaml:1: endpoint 'old.host' speaks fedmsg, which has no 'replay'; remove the key" in fault
    (fault,) = faults(folder, text % ", relay: true")
    assert "which has no 'relay'" in fault


def test_asking_for_an_unknown_endpoint_suggests_a_known_one(folder):
    with pytest.raises(ConfigError, match=r"no endpoint 'koji.build02'; did you mean 'koji.build01'\?"):
        Settings.load(folder, {}).endpoint("koji.build02")


def test_a_section_whose_lines_are_all_commented_out_counts_as_absent(folder):
    write(folder, "20-more.yaml", "hub:\n#  http: x\nconsumers:\npolicy:\n")
    assert Settings.load(folder, {}).hub == HubOptions()


@pytest.mark.badinput("B47")
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("topic_prefx: a.b", "20-more.yaml:1: unknown key 'topic_prefx'; did you mean 'topic_prefix'?"),
        ("x: 1\nlimits: {nestin: 3}", "20-more.yaml:2: unknown key 'limits.nestin'; did you mean 'nesting'?"),
        ("retain_age: 7d", "20-more.yaml:1: unknown key 'retain_age'; it belongs below journal"),
        ("environment: prod", "20-more.yaml:1: environment must be one of dev, stg, production, not 'prod'"),
        ("log: {level: inf}", "log.level must be one of debug, info, warning, error, not 'inf'; did you mean 'info'?"),
        ("topic_prefix: org", "20-more.yaml:1: topic_prefix must be two or more labels"),
        (
            "state: 5",
            "20-more.yaml:1: state must be a path; a relative one is taken below the configuration folder, not 5",
        ),
        ("endpoints: [a]", "20-more.yaml:1: endpoints must be a mapping, not a list"),
        ("endpoints: {}\nstate: 1", "20-more.yaml:2: state must be a path"),
        ("journal: {retain_age: soon}", "journal.retain_age must be a number of seconds, or text such as 50ms"),
        (
            "journal: {retain_age: 999999999w}",
            "journal.retain_age: '999999999w' is not a duration between 0 and 100 years",
        ),
        ("journal: {segment_bytes: 1.5}", "journal.segment_bytes must be a number of bytes"),
        ("journal: {topics: 0}", "journal.topics must be at least 1, not 0"),
        ("journal: {topics: true}", "journal.topics must be a whole number, not true"),
        ("keys: {crl: true}", "keys.crl must be the path of a revocation list, or false for none"),
        (
            "environment: stg\nkeys: {crl: false}",
            "20-more.yaml:2: keys.crl: revocation can be left unchecked in dev only",
        ),
        ("metrics: {http: 'localhost:0'}", "metrics.http: the port of 'localhost:0' must be between 1 and 65535"),
        ("hub: {http: 'localhost:70000'}", "hub.http: the port of 'localhost:70000' must be between 1 and 65535"),
        ("endpoints: {link: {publish: 'tcp://h:1', replay: 'tcp://h:2'}}", "'link' is that of another file"),
        ("endpoints: {koji.: {publish: 'tcp://h:1', replay: 'tcp://h:2'}}", "joined by dots, such as koji.build01"),
        ("endpoints: {Koji.B: {publish: 'tcp://h:1', replay: 'tcp://h:2'}}", "write it in lower case: koji.b"),
        ("endpoints: {b.c: {replay: 'tcp://h:2'}}", "20-more.yaml:1: endpoints.b.c lacks the key 'publish'"),
        ("endpoints: {b.c: {publish: 'tcp://h:2'}}", "20-more.yaml:1: endpoint 'b.c' lacks the key 'replay'"),
        ("endpoints: {b.c: {publish: 'tcp://h', replay: 'tcp://h:2'}}", "address 'tcp://h' has no port"),
        (
            "endpoints: {b.c: {kafka: {bootstrap: k, topic: t}}}",
            "lives in Kafka, which this release of fedbus cannot use",
        ),
        (
            "policy: [{signer: a.b, topics: ['A']}]",
            "20-more.yaml:1: policy[0].topics[0]: 'org.example.dev.A' is not a topic",
        ),
        ("policy: [{signer: 'KOJI', topics: ['a']}]", "policy[0].signer: signer 'KOJI' is no endpoint's name"),
        ("policy: [{signer: a.b}]", "20-more.yaml:1: policy[0] lacks the key 'topics'"),
        ("consumers: {a: {topics: ['b', 'C']}}", "consumers.a.topics[1]: 'org.example.dev.C' is not a topic filter"),
        ("consumers: {A: {use: b}}", "consumer name 'A' must be"),
        ("log: {level: '${UNSET}'}", "the environment variable UNSET is not set"),
    ],
)
def test_a_setting_that_cannot_be_used_is_reported_with_file_line_and_key(folder, text, problem):
    found = faults(folder, text)
    assert any(problem in one for one in found), found


@pytest.mark.badinput("B47")
def test_two_endpoints_cannot_have_one_address_however_it_is_written(folder):
    found = faults(folder, "endpoints:\n  b.c:\n    publish: tcp://LOCALHOST:1\n    replay: tcp://localhost:1\n")
    assert found == [
        "20-more.yaml:4: endpoints.b.c.replay: tcp://localhost:1 is in use already: endpoints.b.c.publish "
        f"({folder}/20-more.yaml:3); choose another port"
    ]
    (found_other,) = faults(folder, "endpoints: {b.c: {publish: 'tcp://127.0.0.1:3000', replay: 'tcp://h:1'}}")
    assert "is in use already: endpoints.koji.build01.publish" in found_other


@pytest.mark.badinput("B47")
def test_all_faults_of_all_files_and_of_all_kinds_are_reported_at_once_in_order(folder):
    write(folder, "15-first.yaml", "limits: {nesting: many}\nlog: {level: no}\n")
    write(folder, "30-open.yaml", "a: 1\n")
    (folder / "30-open.yaml").chmod(0o666)
    found = faults(folder, "endpoints:\n  b.c: {publish: 5, replay: '${UNSET}'}\n  d.e: {publish: 'tcp://*:1'}\n")
    assert [one.split(": ")[0] for one in found] == [
        "15-first.yaml:1",
        "15-first.yaml:2",
        "20-more.yaml:2",
        "20-more.yaml:2",
        "20-more.yaml:3",
        "20-more.yaml:3",
        "30-open.yaml",
    ]


def test_a_file_that_cannot_be_read_does_not_make_its_keys_count_as_missing(folder):
    write(folder, "10-bus.yaml", "topic_prefix: [")
    with pytest.raises(ConfigError) as caught:
        Settings.load(folder, {})
    assert len(caught.value.problems) == 1
    assert "is not YAML" in caught.value.problems[0]


def test_what_is_missing_altogether_is_named(folder):
    write(folder, "10-bus.yaml", "state: x\n")
    with pytest.raises(ConfigError) as caught:
        Settings.load(folder, {})
    lacking = [one.partition(" lacks the key ")[2].split(";")[0] for one in caught.value.problems]
    assert sorted(lacking) == ["'endpoints'", "'environment'", "'topic_prefix'"]


@pytest.mark.fault("F11")
def test_a_bad_new_configuration_is_refused_whole_and_the_old_stays_in_force(folder):
    watcher = ConfigWatcher(folder, {})
    before = watcher.settings
    assert not watcher.changed()
    write(folder, "20-more.yaml", "log: {level: debug}\nlimits: {nesting: many}\n")
    assert watcher.changed()
    with pytest.raises(ConfigError, match=r"20-more\.yaml:2: limits\.nesting"):
        watcher.reload()
    assert watcher.settings is before
    assert not watcher.changed()
    write(folder, "20-more.yaml", "log: {level: debug}\n")
    assert watcher.changed()
    assert watcher.reload().log.level == "debug"
    assert watcher.settings.log.level == "debug"
    assert not watcher.changed()


@pytest.mark.fault("F11")
def test_a_folder_that_vanishes_leaves_the_old_settings_in_force(folder):
    watcher = ConfigWatcher(folder, {})
    folder.rename(folder.with_name("gone"))
    assert watcher.changed()
    with pytest.raises(ConfigError):
        watcher.reload()
    assert watcher.settings.log.level == "info"
    folder.with_name("gone").rename(folder)
    assert watcher.changed()
    assert watcher.reload().endpoints


@pytest.mark.fault("F21")
def test_a_process_that_may_open_no_file_keeps_its_settings_and_looks_again_when_it_may(folder, monkeypatch):
    watcher = ConfigWatcher(folder, {})
    write(folder, "20-more.yaml", "log: {level: debug}\n")

    def refuse(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr("fedbus.config.settings.load_folder", refuse)
        with pytest.raises(ConfigError, match="cannot be read now: Too many open files"):
            watcher.reload()
    assert watcher.settings.log.level == "info"
    assert watcher.changed()
    assert watcher.reload().log.level == "debug"


# --- the schema


def test_the_schema_is_valid_and_closed_everywhere_but_in_the_settings_of_a_consumer():
    jsonschema.Draft202012Validator.check_schema(schema())
    opened = []

    def walk(part: object, path: str) -> None:
        if isinstance(part, dict):
            if part.get("type") == "object" and "additionalProperties" not in part:
                opened.append(path)
            for key, inner in part.items():
                walk(inner, f"{path}/{key}")

    walk(schema(), "")
    assert opened == [
        "/properties/consumers/additionalProperties/properties/settings",
        "/properties/schemas/properties/topics/additionalProperties",  # a JSON Schema
    ]


@pytest.mark.parametrize(
    ("section", "options", "computed"),
    [
        ("publisher", PublisherOptions, set()),
        ("subscriber", SubscriberOptions, set()),
        ("limits", Limits, set()),
        ("metrics", MetricsOptions, set()),
        ("hub", HubOptions, set()),
        ("schemas", SchemaOptions, set()),
        ("journal", JournalOptions, {"directory"}),
    ],
)
def test_every_option_of_a_part_can_be_set_and_nothing_else(section, options, computed):
    part = schema()["$defs" if section == "journal" else "properties"][section]
    assert set(part["properties"]) == {field.name for field in dataclasses.fields(options)} - computed


def test_the_example_that_ships_passes_its_own_check(tmp_path):
    for path in (ROOT / "etc/fedbus.d").glob("*.yaml"):
        write(tmp_path, path.name, path.read_text())
    tmp_path.chmod(0o755)
    settings = Settings.load(tmp_path, {})
    assert set(settings.endpoints) == {"koji.build01", "bodhi.web01"}
    assert settings.journal_for("koji.build01") == JournalOptions(
        directory=Path("/var/lib/fedbus/journal/koji.build01")
    )
    assert settings.publisher == PublisherOptions()
    assert settings.limits == Limits()


def test_the_values_commented_out_in_the_example_are_the_defaults(tmp_path):
    for path in (ROOT / "etc/fedbus.d").glob("*.yaml"):
        lines = path.read_text().splitlines()
        text = "\n".join(line.replace("#", "", 1) if line.startswith("  #") else line for line in lines)
        write(tmp_path, path.name, text)
    tmp_path.chmod(0o755)
    settings = Settings.load(tmp_path, {})
    assert settings.publisher == PublisherOptions()
    assert settings.subscriber == SubscriberOptions()
    assert set(settings.endpoints) == {"koji.build01", "bodhi.web01"}
    assert {"announce", "reindex", "hook", "desktop"} <= set(settings.consumers)
