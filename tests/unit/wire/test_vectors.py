"""The test vectors: fedbus and a client written from doc/wire.rst alone come to the verdict that stands in them."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedbus.errors import Refused
from fedbus.journal.journal import split_records
from fedbus.model.limits import Limits
from fedbus.trust.proof import verify_beat, verify_parcel
from fedbus.trust.verifier import Verifier
from fedbus.wire import beat, parcel, replay
from tests.support import open_parcel
from tests.vectors import check as other_client
from tests.vectors import make

CHECK = make.HERE / "check.py"
FILES = sorted(make.HERE.glob("*.json"))


def cases() -> list[Any]:
    found = []
    for path in FILES:
        if path.stem == "replay-order":
            continue  # in what order parts may come is decided where they come in
        for case in json.loads(path.read_bytes())["cases"]:
            found.append(pytest.param(case, id=f"{path.stem}: {case['name']}"))
    return found


def take_parcel(frame: bytes, verifier: Verifier) -> dict[str, Any]:
    one = parcel.decode(frame, parcel_bytes=2**22)
    identity = verify_parcel(verifier, one)
    messages, refused = open_parcel(one, identity.name, Limits())
    if refused:
        raise refused[0]
    levels = one.topic.count(".") + 2
    return {
        "topic": one.topic,
        "endpoint": identity.name,
        "epoch": one.epoch,
        "first": one.first,
        "size": one.size,
        "start": one.start,
        "chain": [list(one.level(depth)) for depth in range(1, levels)],
        "messages": [message.attributes for message in messages],
    }


def take(case: dict[str, Any], verifier: Verifier) -> dict[str, Any]:
    if case["kind"] == "parcel":
        return take_parcel(bytes.fromhex(case["frame"]), verifier)
    if case["kind"] == "beat":
        one = beat.decode(bytes.fromhex(case["frame"]))
        verify_beat(verifier, one)
        return dict(json.loads(one.payload))
    if case["kind"] == "request":
        replay.decode_fetch(bytes.fromhex(case["frame"]))
        return dict(json.loads(bytes.fromhex(case["frame"])))
    found: dict[str, Any] = {"messages": []}
    for header, payload in case["parts"]:
        kind, _ = replay.decode_header(bytes.fromhex(header))
        data = bytes.fromhex(payload)
        if kind is replay.Kind.BEAT:
            verify_beat(verifier, beat.decode(data))
        elif kind is replay.Kind.RECORDS:
            for record in split_records(data):
                found["messages"] += take_parcel(record.payload, verifier)["messages"]
        else:
            replay.decode_fact(kind, data)
            found[kind.name.lower()] = json.loads(data)
    return found


def contains(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return all(contains(found[key], value) for key, value in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(contains, found, expected))
    return bool(found == expected)


@pytest.mark.parametrize("case", cases())
def test_fedbus_comes_to_the_verdict_of_the_vector(case: dict[str, Any], verifier: Verifier) -> None:
    found: dict[str, Any] = {}
    try:
        found = take(case, verifier)
        verdict = "ok"
    except Refused as error:
        verdict = error.reason.value
    assert verdict == case["expect"]
    if verdict == "ok":
        assert contains(found, case.get("holds", {}))


def check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # -I: neither this folder, nor the environment, nor what is installed for the user can lend it anything
    return subprocess.run(
        [sys.executable, "-I", str(CHECK), *map(str, arguments)], capture_output=True, text=True, timeout=180
    )


def test_a_client_that_knows_only_the_page_comes_to_every_verdict_too() -> None:
    done = check()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("pass  ") == sum(len(json.loads(path.read_bytes())["cases"]) for path in FILES)


def test_the_checker_imports_nothing_of_fedbus(tmp_path: Path) -> None:
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import runpy, sys\n"
        f"sys.argv = [{str(CHECK)!r}]\n"
        "try:\n"
        f"    runpy.run_path({str(CHECK)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not names & {'fedbus', 'zmq', 'orjson', 'msgspec'}, names\n"
    )
    done = subprocess.run([sys.executable, "-I", str(probe)], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    imported = set()
    for node in ast.walk(ast.parse(CHECK.read_bytes())):
        if isinstance(node, ast.Import):
            imported |= {one.name.partition(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported <= {*sys.stdlib_module_names, "cryptography", "zmq"}


@pytest.mark.badinput("B21")
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_the_checker_refuses_every_single_bit_flip_too() -> None:
    authorities = (make.HERE / "ca.crt").read_bytes()
    for judge, frame in (
        (other_client.check_parcel, make.seven(make.KOJI)[1]),
        (other_client.check_beat, make.beat_of(make.BODHI)),
    ):
        judge(frame, other_client.Trust(authorities, make.NOW))
        for bit in range(8 * len(frame)):
            with pytest.raises(other_client.Refused):
                judge(make.flipped(frame, bit // 8, bit % 8), other_client.Trust(authorities, make.NOW))


def test_the_checker_tells_a_wrong_verdict(tmp_path: Path) -> None:
    vectors = json.loads((make.HERE / "beats.json").read_bytes())
    (tmp_path / "ca.crt").write_bytes((make.HERE / "ca.crt").read_bytes())
    for name, change in (("verdict", {"expect": "malformed"}), ("content", {"holds": {"head": 5}})):
        wrong = {**vectors, "cases": [{**vectors["cases"][0], **change}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(wrong))
        done = check(tmp_path / f"{name}.json")
        assert done.returncode == 4
        assert done.stdout.startswith("FAIL")


@pytest.mark.parametrize("form", ["hexadecimal", "binary"])
def test_the_checker_reads_frames_from_a_file_and_prints_a_line_for_each_message(tmp_path: Path, form: str) -> None:
    good = [*make.seven(make.KOJI), make.beat_of(make.KOJI)]
    bad = make.flipped(make.single(make.KOJI), -3)

    def write(frames: list[bytes]) -> Path:
        path = tmp_path / "frames"
        if form == "binary":
            path.write_bytes(b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames))
        else:
            path.write_text("".join(frame.hex() + "\n" for frame in frames))
        return path

    options = ("--ca", make.HERE / "ca.crt", "--now", str(make.NOW), "--frames")
    done = check(*options, write(good))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("message  koji.build01 ") == 7
    assert done.stdout.count("beat     koji.build01 ") == 1
    done = check(*options, write([*good, bad]))
    assert done.returncode == 4
    assert done.stdout.count("refused  signature: ") == 1


def test_making_the_vectors_again_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "HERE", tmp_path)
    make.main()
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (CHECK.parent / path.name).read_bytes(), path.name
