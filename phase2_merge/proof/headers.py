"""Are the fragments' sizes and headers what the manifests say? No byte of a tensor is read.

Columns are compared for all fragments at once; a header that is, byte for byte, the one that its rows would get needs
no parsing, and any other is parsed by the strictest parser there is, which says what is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import orjson
import xxhash

from shardmerge.common import safetensors_header
from shardmerge.common.dtypes import DTYPES
from shardmerge.common.errors import CorruptFileError, ShardmergeError
from shardmerge.common.safetensors_header import METADATA, Header

from ..disk.read_many import announced, read_many
from ..ledger.fragments import Fragment, as_problem
from ..ledger.graft import REFERENCE_RANK
from ..ledger.rows import BoolArray, IntArray
from ..ledger.table import Ledger


@dataclass(frozen=True, slots=True)
class Head:
    """How a file begins, as far as its data, and its size; or why it could not be read."""

    prefix: bytes = b""
    num_bytes: int = 0
    error: OSError | None = None


def check_headers(ledger: Ledger, every: Sequence[Fragment]) -> list[ShardmergeError]:
    """Size, checksum of the header, and every entry against the manifest's columns."""
    dumped = [one for one in every if one.rank != REFERENCE_RANK]  # what is grafted was read just now
    kinds = _kinds(ledger, dumped)
    heads = read_many(_head, dumped, lambda one: announced(one.path, one.file.header_bytes))
    found = zip(heads, kinds.entire.tolist(), kinds.holed.tolist(), strict=True)
    checks = (
        as_problem(one, partial(_check, ledger, one, head, entire, holed))
        for (one, head), entire, holed in found
    )
    return [problem for problem in checks if problem]


@dataclass(frozen=True, slots=True)
class Kinds:
    """Of each fragment: whether it holds entire tensors only, and whether its rectangles leave holes or overlap."""

    entire: BoolArray
    holed: BoolArray


def _kinds(ledger: Ledger, every: Sequence[Fragment]) -> Kinds:
    of, counts = ledger.rows, np.array([len(one.rows) for one in every], np.int64)
    rows = np.concatenate([np.zeros(0, np.int64), *(one.rows for one in every)])
    stop = np.cumsum(counts)
    start, some = stop - counts, counts > 0
    header, size = np.array([(one.file.header_bytes, one.file.num_bytes) for one in every]).reshape(-1, 2).T
    before = np.roll(of.end[rows], 1)
    before[start[some]] = header[some]
    last = header.copy()
    last[some] = of.end[rows[stop[some] - 1]]
    wrong = _any_of(of.begin[rows] != before, start, stop) | (last != size)
    return Kinds(~_any_of(~of.whole()[rows], start, stop), wrong)


def _any_of(flags: BoolArray, start: IntArray, stop: IntArray) -> BoolArray:
    """Whether any flag from start to stop is set, for each pair; of none, none is."""
    count = np.concatenate([[0], np.cumsum(flags)])
    found: BoolArray = count[stop] > count[start]
    return found


def _head(one: Fragment) -> Head:
    try:
        file = os.open(one.path, os.O_RDONLY)
        try:
            size = os.fstat(file).st_size
            return Head(os.pread(file, max(8, min(one.file.header_bytes, size)), 0), size)
        finally:
            os.close(file)
    except OSError as error:
        return Head(error=error)


def _check(ledger: Ledger, one: Fragment, head: Head, entire: bool, holed: bool) -> None:
    """Raise CorruptFileError if anything is not as the manifest has it, and what reading raised.

    If the fragment may become a shard, its header agrees on each tensor. Others are read by the manifest, and nobody
    will see their headers.
    """
    if head.error:
        raise head.error
    _check_file(one, head)
    if holed:
        _tell_hole(ledger, one)
    if entire and not _is_as_written(ledger, one, head.prefix):
        _check_entries(ledger, one, safetensors_header.decode(head.prefix, head.num_bytes, one.path))


def _check_file(one: Fragment, head: Head) -> None:
    """Size, and the header's length and checksum."""
    path, want = str(one.path), one.file
    if head.num_bytes != want.num_bytes:
        raise CorruptFileError(path, f"it has {head.num_bytes:,} bytes, the manifest says {want.num_bytes:,}")
    length = 8 + safetensors_header.header_length(head.prefix, head.num_bytes, one.path)
    if length != want.header_bytes or xxhash.xxh3_128_hexdigest(head.prefix) != want.header_xxh3_128:
        raise CorruptFileError(path, "its header is not the one that the manifest describes")


def _tell_hole(ledger: Ledger, one: Fragment) -> None:
    """Raise CorruptFileError: rectangles do not lie one behind the other, from the header to the end of the file."""
    ends = [one.file.header_bytes, *ledger.rows.end[one.rows].tolist()]
    begins = [*ledger.rows.begin[one.rows].tolist(), one.file.num_bytes]
    end, begin = next((end, begin) for end, begin in zip(ends, begins, strict=True) if end != begin)
    raise CorruptFileError(
        str(one.path), f"the manifest has nothing or twice between bytes {end:,} and {begin:,}"
    )


def _is_as_written(ledger: Ledger, one: Fragment, prefix: bytes) -> bool:
    """True if the header is what `safetensors_header.build` gives for the rows of this fragment, all entire tensors."""
    at = len(prefix)
    wanted: dict[str, Any] = {
        name: {"data_offsets": (begin - at, end - at), "dtype": dtype, "shape": shape}
        for name, dtype, shape, begin, end in _wanted(ledger, one.rows)
    }
    wanted["__metadata__"] = METADATA
    return prefix[8:].rstrip(b" ") == orjson.dumps(wanted, option=orjson.OPT_SORT_KEYS)


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
    name, dtype, ndim, begin, end = (
        column[rows].tolist() for column in (of.name, of.dtype, of.ndim, of.begin, of.end)
    )
    sizes = zip(*(column[rows].tolist() for column in of.global_shape), strict=True)
    shapes = [size[:dims] for size, dims in zip(sizes, ndim, strict=True)]
    names, dtypes = [ledger.names[at] for at in name], [DTYPES[code] for code in dtype]
    return zip(names, dtypes, shapes, begin, end, strict=True)


def _by_place(entry: tuple[Any, ...]) -> tuple[int, int, str]:
    return entry[3], entry[4], entry[0]


def _tell(entry: tuple[Any, ...]) -> str:
    name, dtype, shape, begin, end = entry
    return f"{name} {dtype} {list(shape)} at bytes {begin}:{end}"
