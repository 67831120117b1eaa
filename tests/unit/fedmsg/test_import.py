"""Configurations of fedmsg are translated, and nothing in them is ever run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as some

from fedbus.cli import main
from fedbus.config.settings import Settings
from fedbus.fedmsg.evaluate import FILE_BYTES, Folder, Found, Unknown, evaluate, read_folder
from fedbus.fedmsg.keys import HAND, NONE, TRANSLATED
from fedbus.fedmsg.translate import translate

SITE = '''
"""A site."""
import socket
hostname = socket.gethostname().split(".", 1)[0]
suffix = "example.org"
config = dict(
    topic_prefix="org.fedoraproject",
    environment="prod",
    endpoints={
        "relay_outbound": ["tcp://hub.%s:4001" % suffix],
        "bodhi.bodhi01": ["tcp://bodhi01.%s:30%02i" % (suffix, number) for number in range(3)],
        "fas.Fas01": "tcp://fas01." + suffix + ":3000",
        "me.here": ["tcp://{}:3000".format(hostname)],
    },
    ssldir="/etc/pki/fedmsg",
    certnames={"bodhi.bodhi01": f"bodhi-bodhi01.{suffix}"},
    ca_cert_location="/etc/pki/fedmsg/ca.crt",
    crl_location="/etc/pki/fedmsg/crl.pem",
    routing_policy={"org.fedoraproject.prod.bodhi.update.comment": ["bodhi-bodhi01.%s" % suffix]},
    high_water_mark=5000,
    zmq_linger=2000,
    myown={"a": 1},
)
config["routing_nitpicky"] = True
config.update(sign_messages=True)
'''


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def value(source: str) -> Any:
    found, _, _ = evaluate(f"config = {{'a': {source}}}".encode())
    return found["a"]


def test_a_folder_becomes_a_configuration_of_ours_that_loads(tmp_path: Path) -> None:
    found = translate(read_folder(write(tmp_path / "fedmsg.d", base=SITE, more="config = {'io_threads': 2}")))
    folder = tmp_path / "bus"
    folder.mkdir(mode=0o700)
    file = folder / "20-fedmsg.yaml"
    file.touch(mode=0o600)
    file.write_text(found.yaml())
    settings = Settings.load(folder, {})
    assert settings.naming.root == "org.fedoraproject.production"
    assert settings.fedmsg.root == "org.fedoraproject.prod"
    assert {name: one.publish for name, one in settings.endpoints.items()} == {
        "relay_outbound.hub": "tcp://hub.example.org:4001",
        "bodhi.bodhi01": "tcp://bodhi01.example.org:3000",
        "bodhi.bodhi01-2": "tcp://bodhi01.example.org:3001",
        "bodhi.bodhi01-3": "tcp://bodhi01.example.org:3002",
        "fas.fas01": "tcp://fas01.example.org:3000",
    }
    assert {one.wire for one in settings.endpoints.values()} == {"fedmsg"}
    assert settings.endpoint("bodhi.bodhi01-3").key == Path("/etc/pki/fedmsg/bodhi-bodhi01.example.org.key")
    assert settings.fedmsg.routing_policy == {
        "org.fedoraproject.prod.bodhi.update.comment": ("bodhi-bodhi01.example.org",)
    }
    assert settings.fedmsg.routing_nitpicky and settings.fedmsg.receive_hwm == 5000
    status = {row.key: row.status for row in found.rows}
    assert status["zmq_linger"] == status["sign_messages"] == status["io_threads"] == NONE
    assert status["routing_policy"] == status["certnames"] == status["ca_cert_location"] == TRANSLATED
    assert status["endpoints.me.here"] == status["myown"] == HAND
    (row,) = [row for row in found.rows if row.key == "endpoints.me.here"]
    assert "cannot be translated: line 4: socket.gethostname" in row.text


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("[1, -2, 3.5, True, None, 'x']", [1, -2, 3.5, True, None, "x"]),
        ("dict(a=1, **{'b': 2})", {"a": 1, "b": 2}),
        ("'a' 'b' + 'c'", "abc"),
        ("'%s:%d%%' % ('x', 3)", "x:3%"),
        ("'%(a)s' % {'a': 'z'}", "z"),
        ("'{} {1} {a}'.format('x', 'y', a=2)", "x y 2"),
        ("','.join(['a', 'b'])", "a,b"),
        ("[f'{n}-' for n in [1, 2]]", ["1-", "2-"]),
        ("60 * 60", 3600),
        ("['a'][0]", "a"),
    ],
)
def test_what_is_plain_is_evaluated(source: str, expected: object) -> None:
    assert value(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "open('/etc/passwd').read()",
        "__import__('os').system('true')",
        "(lambda: 1)()",
        "'{0.__class__}'.format('x')",
        "'{:999999999}'.format(1)",
        "'%999999999d' % 3",
        "'x' * 10**9",
        "[1] * 10**9",
        "2 ** 10**9",
        "[n for n in range(10**12)]",
        "list(range(10**12))",
        "9" * 400,
        "b'bytes'",
        "x if y else z",
        "1 if True else 2",
        "os.environ['HOME']",
        "{n for n in [1]}",
        "not_known",
    ],
)
def test_whatever_else_stands_there_is_named_with_its_line_and_not_run(source: str) -> None:
    found = value(source)
    assert isinstance(found, Unknown) and found.line == 1


HOSTILE = {
    "brackets": "config = " + "[" * 150 + "]" * 150,
    "more brackets": "config = " + "(" * 100_000,
    "a sum": "config = {'a': 1" + "+1" * 300_000 + "}",
    "signs": "config = " + "-" * 100_000 + "1",
    "dots": "config = a" + ".b" * 100_000,
    "doubling": "a = ['x']\n" + "a = [a, a]\n" * 80 + "config = {'a': a, 'endpoints': a}",
    "doubling text": "a = 'x'\n" + "a = a + a\n" * 200 + "config = {'a': a}",
    "doubling dict": "config = {}\n" + "config['a'] = dict(b=config, c=config)\n" * 80,
    "itself": "config = {}\nconfig['a'] = config\nconfig.update(config)",
    "loops": "a = [1]\n" + "a = [a for n in range(20000)]\n" * 5 + "config = {'a': a}",
    "NUL": "config = {}\0",
    "not UTF-8": "\udcff",
    "lambda": "config = " + "lambda:" * 50_000 + "1",
    "digits": "config = {'a': " + "9" * 5000 + "}",
    "code": "import os\nos.system('touch executed')\nconfig = {'a': open('executed', 'w')}\nraise SystemExit",
    "large": "config = {}\n#" + "x" * FILE_BYTES,
    "empty": "",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_file_however_hostile_does_more_than_be_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "fedmsg.d"
    folder.mkdir()
    (folder / "bad.py").write_bytes(HOSTILE[name].encode("utf-8", "surrogateescape"))
    (folder / "good.py").write_text("config = {'environment': 'prod', 'endpoints': {'a.b': ['tcp://h:1']}}")
    # in a process of its own, so that a crash, endless memory or endless time show
    program = (
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
        "from pathlib import Path\nfrom fedbus.fedmsg.evaluate import read_folder\n"
        "from fedbus.fedmsg.translate import translate\nprint(translate(read_folder(Path(sys.argv[1]))).yaml())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["environment"] == "production"
    assert not (tmp_path / "executed").exists()


plain = some.recursive(
    some.none() | some.booleans() | some.integers(-(2**70), 2**70) | some.floats() | some.text(max_size=20),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
KEYS = (
    "endpoints",
    "certnames",
    "ssldir",
    "routing_policy",
    "routing_nitpicky",
    "topic_prefix",
    "environment",
    "ca_cert_location",
    "crl_location",
    "high_water_mark",
    "irc",
    "logging",
)
keys = some.sampled_from(KEYS) | some.text(max_size=12)


@given(some.dictionaries(keys, plain, max_size=6))
def test_any_configuration_is_translated_to_yaml_that_loads_as_yaml(values: dict[str, Any]) -> None:
    found = translate(Folder({key: Found(one, "x.py:1") for key, one in values.items()}))
    loaded = yaml.safe_load(found.yaml())
    assert set(loaded) - {"endpoints"} == {"topic_prefix", "environment", "fedmsg"}
    assert loaded.get("endpoints", True)  # our own loader refuses an empty section
    told = {row.key.split(".")[0] for row in found.rows} | {row.key for row in found.rows}
    assert all(key in told or key.split(".")[0] in told for key in values)


def test_a_folder_without_endpoints_becomes_a_file_that_loads_beside_one_that_has_them(
    tmp_path: Path, capfd: Any
) -> None:
    folder = write(tmp_path / "fedmsg.d", base="config = {'environment': 'prod', 'topic_prefix': 'org.x'}")
    assert main.run(main.fedbus_command, "fedbus", ["config", "import-fedmsg", str(folder)]) == 1
    out, err = capfd.readouterr()
    assert "endpoints" not in yaml.safe_load(out)
    assert "# There are no endpoints in that folder" in out
    assert "there are none, so nobody is read; name them" in err
    assert "our own loader refuses it" not in err
    bus = tmp_path / "bus"
    bus.mkdir(mode=0o700)
    for name, text in (("10.yaml", "endpoints: {a.b: {publish: 'tcp://h:1', wire: fedmsg}}\n"), ("20.yaml", out)):
        (bus / name).touch(mode=0o600)
        (bus / name).write_text(text)
    assert list(Settings.load(bus, {}).endpoints) == ["a.b"]


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("config = {\n 'a': 1,\n **{\n  'b': 2,\n  'c': 3},\n}", {"a": 2, "b": 4, "c": 5}),
        ("config = {'a': 1,\n **{'b': 1,\n 'a': 2}}", {"a": 3, "b": 2}),
        ("config = dict(\n a=1,\n **{\n 'b': 2})", {"a": 2, "b": 4}),
        ("config = dict({\n 'a': 1},\n b=2)", {"a": 2, "b": 3}),
        ("other = {'a': 1}\nconfig = other", {"a": 2}),
        ("other = {'a': 1}\nconfig = {\n **other,\n 'b': 2}", {"a": 2, "b": 4}),
        ("config = {}\nconfig.update({\n 'a': 1},\n b=2)\nconfig['c'] = 3", {"a": 3, "b": 4, "c": 5}),
    ],
)
def test_each_key_is_told_with_the_line_where_it_stands(source: str, lines: dict[str, int]) -> None:
    assert evaluate(source.encode())[1] == lines


def test_one_of_something_is_told_in_the_singular() -> None:
    values = {
        "endpoints": {"a.b": ["tcp://h:1"]},
        "certnames": {"a.b": "x"},
        "routing_policy": {"org.x.dev.a.b": ["x"]},
    }
    found = translate(Folder({key: Found(one, "x.py:1") for key, one in values.items()}))
    text = {row.key: row.text for row in found.rows}
    assert text["endpoints"] == "1 endpoint, marked `wire: fedmsg`"
    assert text["certnames"].startswith("certificate and key of 1 endpoint;")
    assert text["routing_policy"] == "fedmsg.routing_policy: 1 topic"


@given(some.text(max_size=200))
def test_any_text_is_evaluated_or_refused(text: str) -> None:
    try:
        evaluate(text.encode("utf-8", "surrogatepass"))
    except ValueError:
        pass


def test_the_command_prints_yaml_reports_each_key_and_tells_by_its_exit_code(tmp_path: Path, capfd: Any) -> None:
    folder = write(tmp_path / "fedmsg.d", base=SITE)
    arguments = ["config", "import-fedmsg", str(folder)]
    assert main.run(main.fedbus_command, "fedbus", arguments) == 1
    out, err = capfd.readouterr()
    assert yaml.safe_load(out)["environment"] == "production"
    assert "needs a hand   myown" in err
    assert "no counterpart zmq_linger" in err
    assert main.run(main.fedbus_command, "fedbus", [*arguments, "--json"]) == 1
    shown = json.loads(capfd.readouterr().out)
    assert yaml.safe_load(shown["yaml"]) == yaml.safe_load(out)
    assert {"key", "status", "text", "origin"} == set(shown["keys"][0])
    target = tmp_path / "20-fedmsg.yaml"
    assert main.run(main.fedbus_command, "fedbus", [*arguments, "--write", str(target)]) == 1
    assert target.read_text() == out and target.stat().st_mode & 0o777 == 0o600
    assert main.run(main.fedbus_command, "fedbus", [*arguments, "--write", str(target)]) == 1
    assert "File exists" in capfd.readouterr().err
    clean = write(
        tmp_path / "clean",
        base="config = {'topic_prefix': 'org.x', 'environment': 'dev', 'endpoints': {'a.b': ['tcp://h:1']},"
        "'ca_cert_location': '/a', 'crl_location': '/b'}",
    )
    assert main.run(main.fedbus_command, "fedbus", ["config", "import-fedmsg", str(clean)]) == 0
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main.run(main.fedbus_command, "fedbus", ["config", "import-fedmsg", str(empty)]) == 3
    assert list(empty.iterdir()) == []
