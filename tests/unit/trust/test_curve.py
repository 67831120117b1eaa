"""Files of CURVE keys, and the text of keys."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis.strategies import binary, text
from zmq.auth import create_certificates
from zmq.utils import z85

from fedbus.errors import KeysError
from fedbus.trust import curve


@given(binary(min_size=32, max_size=32))
def test_a_key_is_the_z85_form_of_its_bytes(data):
    key = z85.encode(data).decode("ascii")
    assert curve.is_key(key)
    assert curve.raw(key) == data


@given(text(max_size=60))
def test_any_text_is_a_key_or_none_and_nothing_else_happens(anything):
    assert curve.is_key(anything) in (True, False)


@pytest.mark.parametrize("bad", ["", "0" * 39, "0" * 41, "%" * 40, "0" * 39 + "~", "0" * 39 + "\n", "ü" * 40, "#" * 40])
def test_what_is_no_key_is_none(bad):
    assert not curve.is_key(bad)


def test_a_pair_comes_back_as_it_was_written_and_is_secret(tmp_path):
    pair = curve.make()
    curve.write_pair(tmp_path / "a.curve", pair, "a test with ümlauts")
    assert stat.S_IMODE((tmp_path / "a.curve").stat().st_mode) == 0o600
    assert curve.load_pair(tmp_path / "a.curve") == pair
    assert pair.secret not in repr(pair)


def test_a_pair_made_by_pyzmq_can_be_used(tmp_path):
    _, secret = create_certificates(str(tmp_path), "host")
    Path(secret).chmod(0o600)
    assert curve.is_key(curve.load_pair(Path(secret)).public)


def test_a_file_with_an_exchanged_public_key_is_refused(tmp_path):
    one, other = curve.make(), curve.make()
    curve.write_pair(tmp_path / "a.curve", curve.CurvePair(other.public, one.secret), "a test")
    with pytest.raises(KeysError, match="not that of its secret key"):
        curve.load_pair(tmp_path / "a.curve")


@pytest.mark.parametrize("content", [b"", b"public-key = 1\n", b"\xff\xfe\0", b'    public-key = "%b"\n' % (b"a" * 40)])
def test_a_file_without_a_pair_is_refused_by_its_name(tmp_path, content):
    path = tmp_path / "a.curve"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeysError, match=r"a\.curve.*-key"):
        curve.load_pair(path)


@pytest.mark.badinput("B45")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_pair_that_others_can_read_is_refused(tmp_path, mode):
    path = tmp_path / "a.curve"
    curve.write_pair(path, curve.make(), "a test")
    path.chmod(mode)
    with pytest.raises(KeysError, match="chmod 600"):
        curve.load_pair(path)


def test_a_list_of_clients_holds_keys_names_and_comments(tmp_path):
    one, other = curve.make().public, curve.make().public
    (tmp_path / "clients").write_text(f"# who\n\n{one}  web 01 \n#\n  {other}\tübung\n")
    (tmp_path / "clients").chmod(0o600)
    assert curve.load_clients(tmp_path / "clients") == {curve.raw(one): "web 01", curve.raw(other): "übung"}


@pytest.mark.parametrize("line", ["rubbish", "a" * 39 + " name", "a" * 40, "a" * 40 + " na\x1bme", "a" * 40 + "b name"])
def test_a_line_that_is_no_client_is_refused_with_its_number(tmp_path, line):
    (tmp_path / "clients").write_text(f"# who\n{line}\n")
    (tmp_path / "clients").chmod(0o600)
    with pytest.raises(KeysError, match=r"clients:2: "):
        curve.load_clients(tmp_path / "clients")


def test_a_new_key_needs_no_care_in_a_file_of_ours():
    for _ in range(200):
        public = curve.make().public
        assert "${" not in public and not public.startswith("#") and '"' not in public and "\\" not in public
