"""Are the fragments on disk what the manifests say? Size, header, and with `full` every byte.

A fragment is judged alone, in a thread: hashing and reading release the interpreter. Knows no tensor beyond its
header, and never interprets a number.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from shardmerge.common import safetensors_header
from shardmerge.common.errors import CorruptFileError, ShardmergeError
from shardmerge.common.manifest import FragmentFile
from shardmerge.common.rectangle import fragment_key, place
from shardmerge.common.safetensors_header import Header

from .checksums import Advance, checksums, in_threads, wrong_bytes
from .graft import REFERENCE
from .ledger import DTYPES, Ledger
from .rows import IntArray, Rows


@dataclass(frozen=True, slots=True, eq=False)
class Fragment:
    """A file that a manifest names: where it lies and which rows of the ledger it holds, in the order of bytes.

    Rank REFERENCE: a file of the reference, all of which is grafted.
    """

    rank: int
    number: int
    path: Path
    file: FragmentFile
    rows: IntArray

    @property
    def data_bytes(self) -> int:
        """Bytes of its tensors."""
        return self.file.num_bytes - self.file.header_bytes


def fragments(ledger: Ledger) -> list[Fragment]:
    """All fragments, in the order of ranks, then whole files of the reference."""
    rows = ledger.rows
    order = _by_bytes(rows)
    changed = np.flatnonzero(np.diff(rows.rank[order]) | np.diff(rows.file[order])) + 1
    parts = np.split(order, changed) if len(order) else []
    by_file = {(int(rows.rank[part[0]]), int(rows.file[part[0]])): part for part in parts}
    none = np.zeros(0, np.int64)
    dumped = [
        Fragment(
            head.manifest.rank,
            number,
            head.directory / file.name,
            file,
            by_file.get((head.manifest.rank, number), none),
        )
        for head in ledger.heads
        for number, file in enumerate(head.manifest.files)
    ]
    return dumped + [
        Fragment(REFERENCE, number, one.path, one.file, by_file[REFERENCE, number])
        for number, one in enumerate(ledger.grafted)
        if one.whole
    ]


def _by_bytes(rows: Rows) -> IntArray:
    """Written rows by rank, file and place in it. Manifests list them so: sorting ten million again takes seconds."""
    written = np.flatnonzero(rows.written)
    keys = [column[written] for column in (rows.rank, rows.file, rows.begin, rows.end)]
    tied = np.ones(max(len(written) - 1, 0), bool)
    for key in keys:
        step = np.diff(key)
        if (tied & (step < 0)).any():
            return written[np.lexsort(keys[::-1])]
        tied &= step == 0
    return written


def check_headers(ledger: Ledger, every: Sequence[Fragment]) -> list[ShardmergeError]:
    """Size, checksum of the header, and every entry against the manifest's columns."""
    dumped = [one for one in every if one.rank != REFERENCE]  # what is grafted was read just now
    return in_threads(lambda one: _problem(lambda: _check_header(ledger, one), one), dumped)


def check_bytes(ledger: Ledger, every: Sequence[Fragment], advance: Advance) -> list[ShardmergeError]:
    """Read every rectangle once and compare its checksum."""
    return in_threads(lambda one: _problem(lambda: _check_bytes(ledger, one, advance), one), every)


def _problem(check: Callable[[], None], one: Fragment) -> ShardmergeError | None:
    try:
        check()
    except CorruptFileError as error:
        return CorruptFileError(error.path, error.reason, one.rank)
    except FileNotFoundError:
        return CorruptFileError(str(one.path), "it is missing, though the manifest names it", one.rank)
    return None


def _check_header(ledger: Ledger, one: Fragment) -> None:
    """The manifest places rectangles without holes; if the fragment may become a shard, its header agrees on each."""
    prefix, size = _prefix(one)
    _check_places(ledger, one)
    if _is_entire(ledger, one):
        _check_entries(ledger, one, safetensors_header.decode(prefix, size, one.path))


def _prefix(one: Fragment) -> tuple[bytes, int]:
    """Everything before the data, and the size of the file, both as the manifest has them."""
    with open(one.path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size != one.file.num_bytes:
            raise CorruptFileError(
                str(one.path), f"it has {size:,} bytes, the manifest says {one.file.num_bytes:,}"
            )
        prefix = file.read(8)
        prefix += file.read(safetensors_header.header_length(prefix, size, one.path))
    if len(prefix) != one.file.header_bytes or xxhash.xxh3_128_hexdigest(prefix) != one.file.header_xxh3_128:
        raise CorruptFileError(str(one.path), "its header is not the one that the manifest describes")
    return prefix, size


def _check_places(ledger: Ledger, one: Fragment) -> None:
    """Rectangles lie one behind the other, from the header to the end of the file."""
    edges = np.empty((len(one.rows) + 1, 2), np.int64)  # where one ends, and where the next begins
    edges[0, 0], edges[-1, 1] = one.file.header_bytes, one.file.num_bytes
    edges[:-1, 1], edges[1:, 0] = ledger.rows.begin[one.rows], ledger.rows.end[one.rows]
    for end, begin in edges[edges[:, 0] != edges[:, 1]][:1].tolist():
        raise CorruptFileError(
            str(one.path), f"the manifest has nothing or twice between bytes {end:,} and {begin:,}"
        )


def _is_entire(ledger: Ledger, one: Fragment) -> bool:
    """True if it holds entire tensors only. Readers will see its header then; others are read by the manifest."""
    of = ledger.rows
    pairs = zip(of.local_shape, of.global_shape, strict=True)
    return all(bool((local[one.rows] == whole[one.rows]).all()) for local, whole in pairs)


def _check_entries(ledger: Ledger, one: Fragment, header: Header) -> None:
    got = [
        (e.name, e.dtype, e.shape, header.data_offset + e.begin, header.data_offset + e.end)
        for e in header.entries
    ]
    for held, want in zip(
        sorted(got, key=_by_place), sorted(_wanted(ledger, one.rows), key=_by_place), strict=False
    ):
        if held != want:
            raise CorruptFileError(str(one.path), f"its header has {_tell(held)}, the manifest {_tell(want)}")
    if len(got) != len(one.rows):
        raise CorruptFileError(
            str(one.path), f"it holds {len(got)} tensors, the manifest names {len(one.rows)}"
        )
    if header.metadata.get("format") != "pt":
        raise CorruptFileError(
            str(one.path), 'its header lacks __metadata__ {"format": "pt"}, which readers require'
        )


def _wanted(ledger: Ledger, rows: IntArray) -> Iterator[tuple[Any, ...]]:
    """The header's entries as the manifest's columns give them. Plain lists: this is the longest loop of a check."""
    of = ledger.rows
    flat = (column[rows].tolist() for column in (of.name, of.dtype, of.ndim, of.begin, of.end))
    boxes = (
        zip(*(column[rows].tolist() for column in dims), strict=True)
        for dims in (of.global_shape, of.global_offset, of.local_shape)
    )
    for name, dtype, ndim, begin, end, whole, offset, shape in zip(*flat, *boxes, strict=True):
        key = fragment_key(ledger.names[name], whole[:ndim], offset[:ndim], shape[:ndim])
        yield key, DTYPES[dtype], shape[:ndim], begin, end


def _by_place(entry: tuple[Any, ...]) -> tuple[int, int, str]:
    return entry[3], entry[4], entry[0]


def _tell(entry: tuple[Any, ...]) -> str:
    name, dtype, shape, begin, end = entry
    return f"{name} {dtype} {list(shape)} at bytes {begin}:{end}"


def _check_bytes(ledger: Ledger, one: Fragment, advance: Advance) -> None:
    rows = ledger.rows
    spans = zip(rows.begin[one.rows].tolist(), rows.end[one.rows].tolist(), strict=True)
    for row, got in zip(one.rows, checksums(one.path, spans, advance), strict=True):
        if got != rows.checksum(row):
            what = f"{_name(ledger, row)} {place(*rows.box(row))}"
            raise CorruptFileError(str(one.path), wrong_bytes(what, got, rows.checksum(row)))


def _name(ledger: Ledger, row: int) -> str:
    return ledger.names[int(ledger.rows.name[row])]
