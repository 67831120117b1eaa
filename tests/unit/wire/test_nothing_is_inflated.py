"""Nothing is compressed, so nothing small becomes large by being read."""

from __future__ import annotations

import ast
import gzip
import zlib
from pathlib import Path

import pytest

from fedbus.errors import WireError
from fedbus.wire import beat, parcel, replay
from tests.vectors import make

ROOT = Path(__file__).resolve().parents[3]
INFLATERS = {"gzip", "bz2", "lzma", "zipfile", "tarfile", "zstandard", "brotli", "lz4", "snappy"}
BOMB = bytes(64 * 2**20)


@pytest.mark.badinput("B17")
def test_no_module_can_inflate_anything() -> None:
    wrong = []
    for path in sorted((ROOT / "fedbus").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [one.name for one in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Attribute) and node.attr.startswith("decompress"):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
            if any(name.partition(".")[0] in INFLATERS for name in names):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong


@pytest.mark.badinput("B17")
@pytest.mark.parametrize("squeeze", [zlib.compress, gzip.compress], ids=["zlib", "gzip"])
def test_what_is_compressed_is_refused_as_it_is(squeeze: type[bytes]) -> None:
    small = bytes(squeeze(BOMB))
    for frame in (small, make.ROOT.encode() + b"\0" + small):
        with pytest.raises(WireError):
            parcel.decode(frame, parcel_bytes=2**20)
    with pytest.raises(WireError):
        beat.decode(beat.MARK + b"koji.build01\0" + small)
    with pytest.raises(WireError):
        replay.decode_fetch(small)
