from __future__ import annotations

import json
import os
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import pytest
import zmq
from click.testing import CliRunner, Result

from fedbus.bus import Bus
from fedbus.cli.check import check
from fedbus.cli.config import config
from fedbus.cli.init import init
from fedbus.clock import SystemClock
from fedbus.config.init import create
from fedbus.config.settings import Settings
from fedbus.errors import ConfigError
from fedbus.journal.journal import Journal
from fedbus.trust.authority import Authority
from tests.services.fedmsg_site import Pki


def run(command: click.Command, *arguments: str, folder: Path | None = None, stdin: str | None = None) -> Result:
    if command is check and (not arguments or arguments[0].startswith("--")) and "--timeout" not in arguments:
        arguments = ("--timeout", "60", *arguments)  # for what answers, on a machine that may be busy
    return CliRunner().invoke(command, arguments, obj={"config": str(folder) if folder else None}, input=stdin)


def shown(result: Result) -> Any:
    return json.loads(result.stdout)


@pytest.fixture
def bus(tmp_path: Path) -> Path:
    create(tmp_path / "bus", ["koji.build01", "bodhi.web01"])
    return tmp_path / "bus"


def test_init_writes_a_set_up_and_says_what_to_try_next(tmp_path):
    result = run(init, str(tmp_path / "a bus"), "--endpoint", "koji.build01", "--environment", "stg")
    assert result.exit_code == 0
    assert f"export FEDBUS_CONFIG='{tmp_path}/a bus'" in result.output
    assert "--as koji.build01" in result.output
    assert Settings.load(tmp_path / "a bus", {}).environment == "stg"


def test_init_can_say_what_it_wrote_as_json(tmp_path):
    report = shown(run(init, str(tmp_path / "bus"), "--endpoint", "koji.build01", "--json"))
    assert report["directory"] == str(tmp_path / "bus")
    assert report["endpoints"]["koji.build01"]["publish"].startswith("tcp://127.0.0.1:")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "no endpoint is named; add --endpoint"),
        (("--endpoint", "Koji.build01"), "write it in lower case: koji.build01"),
        (("--endpoint", "a.b", "--endpoint", "a.b"), "is named twice"),
        (("--endpoint", "a.b", "--prefix", "org"), "two or more lower-case labels"),
    ],
)
def test_init_takes_what_cannot_be_made_for_an_error_of_usage(tmp_path, arguments, says):
    result = run(init, str(tmp_path / "bus"), *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not (tmp_path / "bus").exists()


def test_init_takes_an_endpoint_that_is_a_service_alone(tmp_path):
    assert run(init, str(tmp_path / "bus"), "--endpoint", "archive").exit_code == 0
    settings = Settings.load(tmp_path / "bus", {})
    assert settings.endpoint("archive").service == "archive"
    settings.policy.check("archive", "org.example.dev.archive.file.add")
    assert run(check.commands["keys"], folder=tmp_path / "bus").exit_code == 0


def test_init_refuses_a_folder_in_use(bus):
    assert isinstance(run(init, str(bus), "--endpoint", "koji.build01").exception, ConfigError)


def test_config_shows_each_value_with_its_file_and_line(bus):
    result = run(config, folder=bus)
    assert result.exit_code == 0
    lines = {line.partition(": ")[0]: line for line in result.output.splitlines()}
    assert lines["environment"].split() == ["environment:", "dev", "#", "10-bus.yaml:5"]
    assert lines["endpoints.koji.build01.publish"].endswith("# 20-endpoints.yaml:7")
    assert "journal.sync" not in lines


def test_config_of_one_key_prints_the_bare_value_set_or_not(bus):
    assert run(config, "environment", folder=bus).output == "dev\n"
    assert run(config, "journal.sync", folder=bus).output == "always\n"
    assert run(config, "limits.nesting", folder=bus).output == "64\n"


def test_config_can_show_defaults_too(bus):
    output = run(config, "--all", folder=bus).output
    assert "publisher.signature_burst: 32 " in output
    assert "# default" in output


def test_config_shows_durations_and_sizes_with_their_units_and_json_as_numbers(bus):
    path = bus / "40-more.yaml"
    own = "journal: {retain_age: 7200, segment_bytes: 1048576}"
    path.write_text(f"endpoints: {{git.host01: {{publish: 'ipc://run/p', replay: 'ipc://run/r', {own}}}}}\n")
    path.chmod(0o600)
    lines = {line.partition(": ")[0]: line.split()[1] for line in run(config, "--all", folder=bus).output.splitlines()}
    assert lines["journal.retain_age"] == "7d"
    assert lines["journal.sync_interval"] == "50ms"
    assert lines["publisher.queue_bytes"] == "64MiB"
    assert lines["publisher.queue_messages"] == "10000"
    assert lines["publisher.signatures_per_second"] == "2000.0"
    assert lines["endpoints.git.host01.journal.retain_age"] == "2h"
    assert lines["endpoints.git.host01.journal.segment_bytes"] == "1MiB"
    assert run(config, "journal.retain_age", folder=bus).output == "7d\n"
    report = shown(run(config, "journal", "--json", folder=bus))
    assert (report["journal"]["retain_age"], report["journal"]["segment_bytes"]) == (604800.0, 67108864)


def test_config_as_json_is_nested_as_the_files_are(bus):
    path = bus / "40-more.yaml"
    path.write_text("policy:\n  - {signer: koji.*, topics: [a, b]}\n")
    path.chmod(0o600)
    report = shown(run(config, "--json", folder=bus))
    assert report["policy"] == [{"signer": "koji.*", "topics": ["a", "b"]}]
    assert set(report["endpoints"]) == {"koji.build01", "bodhi.web01"}
    report = shown(run(config, "environment", "--json", "--origins", folder=bus))
    assert report == {"environment": {"value": "dev", "origin": f"{bus}/10-bus.yaml:5"}}


def test_config_suggests_the_key_that_was_meant(bus):
    error = run(config, "endpoints.koji.build01.publis", folder=bus).exception
    assert isinstance(error, ConfigError)
    assert "did you mean 'endpoints.koji.build01.publish'?" in str(error)


def test_config_never_shows_a_secret(bus, monkeypatch):
    monkeypatch.setenv("WORD", "hunter2")
    path = bus / "40-more.yaml"
    path.write_text(
        "consumers: {irc: {settings: {password: hunter2, sasl: {api_token: '${WORD}'}, nick: '${WORD}x'}}}\n"
    )
    path.chmod(0o600)
    output = run(config, folder=bus).output + run(config, "--json", folder=bus).output
    assert output.count("********") == 4
    assert "hunter2x" in output
    assert "hunter2\n" not in output.replace("hunter2x", "")
    assert "(${WORD}x)" in output


def test_control_characters_in_values_are_shown_escaped(bus):
    path = bus / "40-more.yaml"
    path.write_text('consumers: {irc: {settings: {motd: "\\e[31mred"}}}\n')
    path.chmod(0o600)
    output = run(config, folder=bus).output
    assert "\x1b" not in output
    assert "\\u001b[31mred" in output


@pytest.mark.badinput("B47")
@pytest.mark.parametrize("command", [(config,), (check,), (check, "config"), (check, "keys"), (check, "topics")])
def test_every_command_names_all_faults_of_a_bad_configuration(bus, command):
    path = bus / "40-more.yaml"
    path.write_text("limit: 1\nlog: {level: no}\n")
    path.chmod(0o600)
    error = run(*command, folder=bus).exception
    assert isinstance(error, ConfigError)
    assert [problem.removeprefix(str(bus)).split(": ")[0] for problem in error.problems] == [
        "/40-more.yaml:1",
        "/40-more.yaml:2",
    ]


def test_check_config_says_so_when_all_is_well(bus):
    assert "is fit for use: org.example.dev, 2 endpoints" in run(check, "config", folder=bus).output
    assert shown(run(check, "config", "--json", folder=bus)) == {"ok": True, "problems": [], "directory": str(bus)}


def test_check_config_lists_the_faults_as_json(bus):
    (bus / "10-bus.yaml").chmod(0o666)
    result = run(check, "config", "--json", folder=bus)
    assert result.exit_code == 3
    assert "has mode 0666" in shown(result)["problems"][0]


def test_one_of_something_is_told_in_the_singular(tmp_path):
    create(tmp_path / "bus", ["koji.build01"])
    path = tmp_path / "bus/40-more.yaml"
    path.write_text("policy:\n  - {signer: koji.*, topics: [a]}\n")
    path.chmod(0o600)
    output = run(check, "config", folder=tmp_path / "bus").output
    assert output.endswith("org.example.dev, 1 endpoint, 1 policy rule, 0 consumers\n")


def listen(bus: Path, stack: ExitStack) -> None:
    context = stack.enter_context(zmq.Context())
    for endpoint in Settings.load(bus, {}).endpoints.values():
        for kind, address in ((zmq.XPUB, endpoint.publish), (zmq.ROUTER, endpoint.replay)):
            server = stack.enter_context(context.socket(kind))
            server.linger = 0
            server.bind(address)


def test_check_of_a_sound_bus_with_all_endpoints_up_is_ok(bus):
    with Bus.open(bus) as opened, opened.publisher("koji.build01"), opened.publisher("bodhi.web01"):
        result = run(check, folder=bus)
        assert result.exit_code == 0, result.output
        verdicts, _, table = result.output.partition("\n\n")
        assert {line.split()[0] for line in verdicts.splitlines()} == {"OK"}
        assert [line.split()[0] for line in table.splitlines()] == ["ENDPOINT", "koji.build01", "bodhi.web01"]
        result = run(check, "--nagios", folder=bus)
        assert result.exit_code == 0
        figures = (
            r"checks=\1 bad=0 lag=0;10000;100000;0 free=\d+\.\d%;10:;5:;0;100 dead=0;;;0 beat=\d+\.\ds;5;30;0 lost=0c"
        )
        assert re.fullmatch(rf"FEDBUS OK - (\d+) checks passed \| {figures}\n", result.output)


def test_check_finds_that_what_answers_is_no_publisher(bus):
    with ExitStack() as stack:
        listen(bus, stack)
        result = run(check, "--timeout", "3", folder=bus)
    assert result.exit_code == 1
    assert "CRITICAL  koji.build01 takes connections, but no beat that verifies came within 3 s" in result.output


def test_check_right_after_init_only_warns_that_nothing_is_running(bus):
    result = run(check, folder=bus)
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.splitlines()].count("WARNING") == 4
    assert "is not running" in result.output
    assert run(check, "--nagios", folder=bus).exit_code == 1


def test_check_of_an_endpoint_whose_publisher_was_stopped_warns(bus):
    with Bus.open(bus) as opened, opened.publisher("koji.build01") as koji:
        koji.publish("package.build.complete", {})
        states = {one["name"]: one["state"] for one in shown(run(check, "--json", folder=bus))["results"]}
        assert states["koji.build01 publish"] == states["koji.build01 replay"] == "ok"
    states = {one["name"]: one["state"] for one in shown(run(check, "--json", folder=bus))["results"]}
    assert states["koji.build01 publish"] == states["koji.build01 replay"] == "warning"


def test_check_tells_which_endpoint_that_should_answer_does_not(bus):
    (bus / "keys/bodhi.web01.key").unlink()  # it lives on another host, then
    settings = Settings.load(bus, {})
    # its publisher runs, or hangs, and does not have its ports
    with Journal.open(settings.journal_for("koji.build01"), endpoint="koji.build01", clock=SystemClock()):
        result = run(check, "--json", folder=bus)
    assert result.exit_code == 5
    report = shown(result)
    assert report["state"] == "critical"
    assert {one["name"] for one in report["results"] if one["state"] == "critical"} == {
        f"{name} {role}" for name in ("koji.build01", "bodhi.web01") for role in ("publish", "replay")
    }


def test_check_for_nagios_has_its_exit_codes_and_one_line(bus):
    (bus / "keys/koji.build01.key").unlink()
    result = run(check, "--nagios", folder=bus)
    assert result.exit_code == 2
    assert result.output.startswith("FEDBUS CRITICAL - koji.build01 publish tcp://")
    (bus / "10-bus.yaml").chmod(0o666)
    result = run(check, "--nagios", folder=bus)
    assert result.exit_code == 3
    assert result.output.startswith("FEDBUS UNKNOWN - ")
    assert result.output.count("\n") == 1


@pytest.mark.badinput("B45")
def test_check_keys_finds_a_key_that_others_can_read(bus):
    assert run(check, "keys", folder=bus).exit_code == 0
    (bus / "keys/koji.build01.key").chmod(0o644)
    result = run(check, "keys", folder=bus)
    assert result.exit_code == 4
    assert "0644" in result.output


@pytest.mark.parametrize("part", [(), ("config",), ("keys",)])
def test_a_configuration_that_cannot_be_used_is_told_as_json_too(bus, part):
    (bus / "90-more.yaml").write_text("bogus: 1\n")
    result = run(check, *part, "--json", folder=bus)
    assert result.exit_code == 3
    assert "unknown key 'bogus'" in json.dumps(shown(result))


def test_check_says_what_its_user_may_not_look_at_and_goes_on(bus, monkeypatch):
    folder = Settings.load(bus, {}).journal_for("koji.build01").directory
    folder.mkdir(parents=True)
    hidden = (folder, bus / "state/cursors.db", bus / "state/dead.db", bus / "state/spool")
    real_stat, real_listing, real_access = Path.stat, Path.iterdir, os.access

    def refused(path):
        return any(path == one or one in path.parents for one in hidden)

    def stat(path, **more):
        if refused(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real_stat(path, **more)

    def listing(path):
        if refused(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real_listing(path)

    monkeypatch.setattr(Path, "stat", stat)
    monkeypatch.setattr(Path, "iterdir", listing)
    monkeypatch.setattr(os, "access", lambda path, mode: not refused(Path(path)) and real_access(path, mode))
    found = {one["name"]: one for one in shown(run(check, "--json", folder=bus))["results"]}
    assert found["journal koji.build01"]["state"] == "warning"
    assert "cannot be looked at by this user" in found["journal koji.build01"]["text"]
    assert found["disk"]["state"] != "unknown"


def test_check_keys_finds_certificates_that_readers_refuse(bus, tmp_path):
    Authority.open(bus / "keys").revoke("koji.build01")
    other = Authority.create(tmp_path / "other", common_name="Another CA")
    other.issue("bodhi.web01")
    for suffix in ("crt", "key"):
        (tmp_path / f"other/bodhi.web01.{suffix}").replace(bus / f"keys/bodhi.web01.{suffix}")
    result = run(check, "keys", "--json", folder=bus)
    assert result.exit_code == 4
    found = {one["name"]: one for one in shown(result)["results"]}
    for name, why in (("koji.build01", "was revoked"), ("bodhi.web01", "is not issued by a trusted CA")):
        one = found[f"certificate {name}"]
        assert one["state"] == "critical"
        assert f"readers refuse what {name} signs" in one["text"] and why in one["text"]


def test_check_keys_looks_only_at_the_keys_of_this_host(bus):
    (bus / "keys/koji.build01.key").unlink()
    (bus / "keys/koji.build01.crt").unlink()
    result = run(check, "keys", "--json", folder=bus)
    assert result.exit_code == 0
    assert "certificate koji.build01" not in {one["name"] for one in shown(result)["results"]}


def test_check_keys_looks_at_what_fedmsg_is_read_with_and_signed_for(bus, tmp_path):
    pki = Pki(tmp_path / "pki")
    pki.issue("out")
    entry = {"publish": "tcp://127.0.0.1:1", "wire": "fedmsg"}
    pair = {"certificate": str(pki.folder / "out.crt"), "key": str(pki.folder / "out.key")}
    (bus / "40-fedmsg.yaml").write_text(
        json.dumps(
            {
                "fedmsg": {"ca": str(pki.folder / "ca.crt"), "crl": str(pki.folder / "crl.pem")},
                "endpoints": {"far.away": entry, "fedmsg.out": {**entry, "publish": "tcp://127.0.0.1:2", **pair}},
            }
        )
    )

    def found() -> dict[str, str]:
        result = run(check, "keys", "--json", folder=bus)
        return {one["name"]: one["text"] for one in shown(result)["results"] if "fedmsg" in one["name"]}

    names = (
        f"fedmsg CA certificate CN=test CA in {pki.folder}/ca.crt",
        f"fedmsg revocation list of CN=test CA: {pki.folder}/crl.pem",
        "fedmsg certificate fedmsg.out",
    )
    texts = found()
    assert tuple(texts) == names
    assert all("expires in" in text for text in texts.values())
    pki.write_list(after=-1)
    (pki.folder / "out.key").chmod(0o644)
    texts = found()
    assert "has expired at" in texts[names[1]]
    assert "0644" in texts[names[2]]
    (pki.folder / "crl.pem").unlink()
    texts = found()
    assert "cannot read fedmsg revocation list" in texts["fedmsg ca"]
    assert run(check, "keys", folder=bus).exit_code == 4


def test_check_topics_reports_what_the_naming_rules_say(bus):
    result = run(check, "topics", "package.builds.complete", "koji.package.build.start", folder=bus)
    assert result.exit_code == 1
    assert result.output == "package.builds.complete: plural: 'builds' is a plural; objects are singular: 'build'\n"
    result = run(check, "topics", "-", "--json", folder=bus, stdin="# mine\npackage.build.completed\n\n")
    assert [one["suggestion"] for one in shown(result)["findings"]] == ["complete"]
    assert run(check, "topics", "a.cherrypick", "--verb", "cherrypick", folder=bus).exit_code == 0


def test_check_topics_without_names_looks_into_the_journals_of_this_host(bus):
    assert run(check, "topics", "--json", folder=bus).output == '{\n  "checked": 0,\n  "findings": []\n}\n'
    with Bus.open(bus) as opened, opened.publisher("koji.build01") as koji:
        koji.publish("package.build.complete", {})
        koji.publish("packages.build.complete", {})
    report = shown(run(check, "topics", "--json", folder=bus))
    assert report["checked"] == 2
    assert [(one["topic"], one["rule"]) for one in report["findings"]] == [
        ("org.example.dev.koji.packages.build.complete", "plural"),
        ("org.example.dev.koji.packages.build.complete", "near-duplicate"),
    ]
    # a new name is held against those in use
    (finding,) = shown(run(check, "topics", "koji.package.biuld.complete", "--json", folder=bus))["findings"]
    assert finding["suggestion"] == "build"


def test_check_topics_shows_what_it_is_given_escaped(bus):
    result = run(check, "topics", "a\x1b[31m.b", folder=bus)
    assert "\x1b" not in result.output


@pytest.mark.parametrize("command", [init, config, check, *check.commands.values()], ids=lambda one: one.name)
def test_every_help_has_examples(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Examples:\n" in result.output
