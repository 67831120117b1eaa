"""Trees against the recursive definitions of RFC 9162, section 2.1, written down as the RFC has them."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.errors import Reason, WireError
from fedbus.wire import merkle


def largest_power_below(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def mth(leaves: list[bytes]) -> bytes:
    """MTH of RFC 9162, 2.1.1, over leaf hashes."""
    if len(leaves) == 1:
        return leaves[0]
    k = largest_power_below(len(leaves))
    return sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def inclusion(m: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of RFC 9162, 2.1.3.1."""
    if len(leaves) == 1:
        return []
    k = largest_power_below(len(leaves))
    if m < k:
        return [*inclusion(m, leaves[:k]), mth(leaves[k:])]
    return [*inclusion(m - k, leaves[k:]), mth(leaves[:k])]


def numbered(size: int) -> list[bytes]:
    return [sha256(b"\0%d" % one).digest() for one in range(size)]


@st.composite
def ranges(draw: st.DrawFn, most: int = 200) -> tuple[list[bytes], int, int]:
    size = draw(st.integers(1, most))
    start = draw(st.integers(0, size - 1))
    return numbered(size), start, draw(st.integers(1, size - start))


def test_the_known_answers_of_the_rfc_construction_for_an_empty_leaf() -> None:
    # the leaf hash of the empty string, as certificate transparency's own tests have it
    (leaf,) = merkle.leaf_hashes(b"\0", [b""])
    assert leaf.hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"


def test_all_trees_up_to_seventy_leaves_have_the_root_and_the_paths_of_the_rfc() -> None:
    for size in range(1, 71):
        leaves = numbered(size)
        rows = merkle.levels(leaves)
        assert rows[-1] == [mth(leaves)]
        for index in range(size):
            path = merkle.range_path(rows, index, 1)
            assert path == inclusion(index, leaves)
            assert merkle.climb([leaves[index]], index, size, path) == rows[-1][0]


@given(ranges())
def test_every_range_climbs_to_the_root_and_every_leaf_of_it_alone(found: tuple[list[bytes], int, int]) -> None:
    leaves, start, count = found
    size = len(leaves)
    rows = merkle.levels(leaves)
    path = merkle.range_path(rows, start, count)
    part = leaves[start : start + count]
    assert merkle.climb(part, start, size, path) == mth(leaves)
    for wanted in range(start, start + count):
        single = merkle.extract_path(part, start, size, path, wanted)
        assert single == inclusion(wanted, leaves)
    all_paths = merkle.extract_paths(part, start, size, path)
    assert all_paths == [inclusion(wanted, leaves) for wanted in range(start, start + count)]


@given(ranges(40), st.data())
def test_another_place_size_or_path_never_climbs_to_the_same_root(
    found: tuple[list[bytes], int, int], data: st.DataObject
) -> None:
    leaves, start, count = found
    size = len(leaves)
    rows = merkle.levels(leaves)
    root = rows[-1][0]
    path = merkle.range_path(rows, start, count)
    part = leaves[start : start + count]

    def climbs(part: list[bytes], start: int, size: int, path: list[bytes]) -> bool:
        try:
            return merkle.climb(part, start, size, path) == root
        except WireError as error:
            assert error.reason in (Reason.SIGNATURE, Reason.MALFORMED)
            return False

    other = data.draw(st.integers(0, 50).filter(lambda one: one != start), "another start")
    assert not climbs(part, other, size, path)
    assert not climbs(part, start, size, [*path, bytes(32)])
    if path:
        assert not climbs(part, start, size, path[:-1])
        assert not climbs(part, start, size, [bytes(32), *path[1:]])
    if count > 1:
        assert not climbs(part[:-1], start, size, path)
        assert not climbs(part[::-1], start, size, path)


def test_a_range_outside_its_tree_is_refused() -> None:
    leaves = numbered(3)
    for part, start, size in ((leaves, 1, 3), (leaves, -1, 3), ([], 0, 3), (leaves[:1], 1, 1)):
        with pytest.raises(WireError) as caught:
            merkle.climb(part, start, size, [])
        assert caught.value.reason is Reason.MALFORMED
