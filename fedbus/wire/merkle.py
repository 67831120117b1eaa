"""Merkle trees over batches, shaped and hashed as in RFC 9162 section 2.1 (SHA-256, prefixes 0x00 and 0x01).

Levels are computed from the leaves up: neighbours are paired, an odd last node moves up unchanged, which gives the
tree of the RFC. A *range path* proves several neighbouring leaves at once; for one leaf it is the RFC's inclusion path.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from fedbus.errors import Reason, WireError

HASH_BYTES = 32


def leaf_hashes(prefix: bytes, envelopes: list[bytes]) -> list[bytes]:
    """Hash the leaves of *envelopes*; *prefix* is 0x00 and whatever each leaf says before its envelope."""
    begin = sha256(prefix).copy  # the prefix is hashed once for all
    hashes: list[bytes] = []
    append = hashes.append
    for envelope in envelopes:
        leaf = begin()
        leaf.update(envelope)
        append(leaf.digest())
    return hashes


def _parents(nodes: list[bytes]) -> list[bytes]:
    pairs = iter(nodes)
    above = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=False)]
    if len(nodes) & 1:
        above.append(nodes[-1])
    return above


def levels(leaves: list[bytes]) -> list[list[bytes]]:
    """Return all levels of the tree, the leaves first, the root (alone) last; at least one leaf is needed."""
    rows = [leaves]
    while len(rows[-1]) > 1:
        rows.append(_parents(rows[-1]))
    return rows


def range_path(rows: Sequence[list[bytes]], start: int, count: int) -> list[bytes]:
    """Return the hashes that lead from leaves ``start .. start+count-1`` to the root: from below, left before right."""
    path: list[bytes] = []
    low, high = start, start + count
    for row in rows[:-1]:
        if low & 1:
            low -= 1
            path.append(row[low])
        if high & 1 and high < len(row):
            path.append(row[high])
            high += 1
        low >>= 1
        high = (high + 1) >> 1
    return path


def climb(leaves: list[bytes], start: int, size: int, path: Sequence[bytes]) -> bytes:
    """Return the root of a tree of *size* leaves, given some neighbouring *leaves* from *start* on and their *path*.

    Raises:
        WireError: The range does not lie within the tree, or the path is longer or shorter than the shape demands.
    """
    if not leaves or start < 0 or start + len(leaves) > size:
        raise WireError(Reason.MALFORMED, "the messages do not lie within their batch")
    used = 0
    nodes, low, width = leaves, start, size
    while width > 1:
        if low & 1:
            if used == len(path):
                raise WireError(Reason.SIGNATURE, "the path to the root is too short")
            nodes = [path[used], *nodes]
            used += 1
            low -= 1
        high = low + len(nodes)
        if high & 1 and high < width:
            if used == len(path):
                raise WireError(Reason.SIGNATURE, "the path to the root is too short")
            nodes = [*nodes, path[used]]
            used += 1
        nodes = _parents(nodes)
        low >>= 1
        width = (width + 1) >> 1
    if used != len(path):
        raise WireError(Reason.SIGNATURE, "the path to the root is too long")
    return nodes[0]


def extract_path(leaves: list[bytes], start: int, size: int, path: Sequence[bytes], wanted: int) -> list[bytes]:
    """Return the path of the single leaf *wanted* (its index in the tree), derived from the range's leaves and path."""
    return _path_of(wanted, size, _known_rows(leaves, start, size, path))


def extract_paths(leaves: list[bytes], start: int, size: int, path: Sequence[bytes]) -> list[list[bytes]]:
    """Return the path of every leaf of a range, each as :func:`extract_path` does, for little more than one of them."""
    rows = _known_rows(leaves, start, size, path)
    return [_path_of(place, size, rows) for place in range(start, start + len(leaves))]


def _known_rows(leaves: list[bytes], start: int, size: int, path: Sequence[bytes]) -> list[tuple[int, list[bytes]]]:
    """Return of each level below the root the place of its first known node, and the nodes that are known."""
    rows: list[tuple[int, list[bytes]]] = []
    used = 0
    nodes, low, width = leaves, start, size
    while width > 1:
        if low & 1:
            nodes = [path[used], *nodes]
            used += 1
            low -= 1
        high = low + len(nodes)
        if high & 1 and high < width:
            nodes = [*nodes, path[used]]
            used += 1
        rows.append((low, nodes))
        nodes = _parents(nodes)
        low >>= 1
        width = (width + 1) >> 1
    return rows


def _path_of(place: int, size: int, rows: list[tuple[int, list[bytes]]]) -> list[bytes]:
    path: list[bytes] = []
    width = size
    for low, nodes in rows:
        sibling = place ^ 1
        if sibling < width:
            path.append(nodes[sibling - low])
        place >>= 1
        width = (width + 1) >> 1
    return path
