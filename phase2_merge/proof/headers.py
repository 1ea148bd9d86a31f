"""Are the fragments' sizes and headers what the manifests say? Reads no byte of a tensor.

Columns are compared for all fragments at once. A header that is, byte for byte, the one that its rows would get needs
no parsing. Any other is parsed by the strictest parser there is, which says what is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import orjson
import xxhash

from shardmerge.common import durable, regular_files, safetensors_header
from shardmerge.common.dtypes import DTYPES
from shardmerge.common.errors import CorruptFileError, Findings
from shardmerge.common.errors.wording import counted
from shardmerge.common.safetensors_header import METADATA, Header

from ..disk.read_many import announced, read_many
from ..ledger.fragments import Fragment
from ..ledger.graft import REFERENCE_RANK
from ..ledger.rows import BoolArray, IntArray
from ..ledger.table import Ledger
from .case import Case
from .checksums import as_problem

Wanted: TypeAlias = tuple[str, str, tuple[int, ...], int, int]  # name, dtype, shape, begin, end


@dataclass(frozen=True, slots=True)
class FileStart:
    """How a file begins, as far as its data, and its size; or why it could not be read."""

    prefix: bytes = b""
    num_bytes: int = 0
    error: OSError | CorruptFileError | None = None


def check(case: Case) -> Findings:
    """Compare size, checksum of the header, and every entry with the manifest's columns."""
    # what is grafted was read just now
    dumped = [fragment for fragment in case.fragments if fragment.rank != REFERENCE_RANK]
    kinds = _kinds(case.ledger, dumped)
    starts = read_many(_start, dumped, lambda fragment: announced(fragment.path, fragment.file.header_bytes))
    read = zip(starts, kinds.entire.tolist(), kinds.holed.tolist(), strict=True)
    problems = (
        as_problem(fragment, partial(_compare, case.ledger, fragment, start, entire, holed))
        for (fragment, start), entire, holed in read
    )
    return Findings(tuple(problem for problem in problems if problem))


@dataclass(frozen=True, slots=True)
class Kinds:
    """Of each fragment: whether it holds entire tensors only, and whether its rectangles leave holes or overlap."""

    entire: BoolArray
    holed: BoolArray


def _kinds(ledger: Ledger, fragments: Sequence[Fragment]) -> Kinds:
    """Classify fragments, all of them at once."""
    columns, counts = ledger.rows, np.array([len(fragment.rows) for fragment in fragments], np.int64)
    rows = np.concatenate([np.zeros(0, np.int64), *(fragment.rows for fragment in fragments)])
    stop = np.cumsum(counts)
    start, some = stop - counts, counts > 0
    header, size = (
        np.array([(each.file.header_bytes, each.file.num_bytes) for each in fragments]).reshape(-1, 2).T
    )
    before = np.roll(columns.end[rows], 1)
    before[start[some]] = header[some]
    last = header.copy()
    last[some] = columns.end[rows[stop[some] - 1]]
    wrong = _any_of(columns.begin[rows] != before, start, stop) | (last != size)
    return Kinds(~_any_of(~columns.whole()[rows], start, stop), wrong)


def _any_of(flags: BoolArray, start: IntArray, stop: IntArray) -> BoolArray:
    """For each range [start, stop): is any flag set? False for an empty range."""
    count = np.concatenate([[0], np.cumsum(flags)])
    any_set: BoolArray = count[stop] > count[start]
    return any_set


def _start(fragment: Fragment) -> FileStart:
    """Read how a fragment begins."""
    try:
        file = regular_files.open_for_reading(fragment.path, fragment.root)
        try:
            with durable.naming(fragment.path):
                size = os.fstat(file).st_size
                return FileStart(
                    regular_files.read_at(file, max(8, min(fragment.file.header_bytes, size)), 0), size
                )
        finally:
            os.close(file)
    except (OSError, CorruptFileError) as error:
        return FileStart(error=error)


def _compare(ledger: Ledger, fragment: Fragment, start: FileStart, entire: bool, holed: bool) -> None:
    """Raise CorruptFileError if anything is not as the manifest has it, and what reading raised.

    If the fragment may become a shard, its header agrees on each tensor. Others are read by the manifest, and nobody
    will see their headers.
    """
    if start.error:
        raise start.error
    _check_file(fragment, start)
    if holed:
        _raise_hole(ledger, fragment)
    if entire and not _is_as_written(ledger, fragment, start.prefix):
        _check_entries(
            ledger, fragment, safetensors_header.decode(start.prefix, start.num_bytes, fragment.path)
        )


def _check_file(fragment: Fragment, start: FileStart) -> None:
    """Raise CorruptFileError unless size, and the header's length and checksum, are what the manifest says."""
    path, want = str(fragment.path), fragment.file
    if start.num_bytes != want.num_bytes:
        raise CorruptFileError(
            path, f"it has {start.num_bytes:,} bytes, the manifest says {want.num_bytes:,}"
        )
    length = 8 + safetensors_header.header_length(start.prefix, start.num_bytes, fragment.path)
    if length != want.header_bytes or xxhash.xxh3_128_hexdigest(start.prefix) != want.header_xxh3_128:
        raise CorruptFileError(path, "its header is not the one that the manifest describes")


def _raise_hole(ledger: Ledger, fragment: Fragment) -> None:
    """Raise CorruptFileError for rectangles that do not lie one behind the other, from the header to the end."""
    ends = [fragment.file.header_bytes, *ledger.rows.end[fragment.rows].tolist()]
    begins = [*ledger.rows.begin[fragment.rows].tolist(), fragment.file.num_bytes]
    end, begin = next((end, begin) for end, begin in zip(ends, begins, strict=True) if end != begin)
    raise CorruptFileError(
        str(fragment.path), f"the manifest has nothing or twice between bytes {end:,} and {begin:,}"
    )


def _is_as_written(ledger: Ledger, fragment: Fragment, prefix: bytes) -> bool:
    """Whether a header is, byte for byte, the one that the rows of this fragment get, all of them entire tensors."""
    return prefix[8:].rstrip(b" ") == header_json(_wanted(ledger, fragment.rows), len(prefix))


def header_json(wanted: Iterable[Wanted], data_offset: int) -> bytes:
    """Return the JSON of the header that `safetensors_header.build` gives these tensors, many times as fast.

    Args:
        wanted: the tensors of a file, `begin` and `end` counted from the start of the file.
        data_offset: where the first tensor begins.

    Returns:
        The JSON without padding.
    """
    header: dict[str, Any] = {
        name: {"data_offsets": (begin - data_offset, end - data_offset), "dtype": dtype, "shape": shape}
        for name, dtype, shape, begin, end in wanted
    }
    header["__metadata__"] = METADATA
    return orjson.dumps(header, option=orjson.OPT_SORT_KEYS)


def _check_entries(ledger: Ledger, fragment: Fragment, header: Header) -> None:
    """Raise CorruptFileError for the first entry, in the order of bytes, that is not what the manifest has there."""
    path, start = str(fragment.path), header.data_offset
    got = [(e.name, e.dtype, e.shape, start + e.begin, start + e.end) for e in header.entries]
    wanted = sorted(_wanted(ledger, fragment.rows), key=_by_place)
    for held, want in zip(sorted(got, key=_by_place), wanted, strict=False):
        if held != want:
            raise CorruptFileError(
                path, f"its header has {_described(held)}, the manifest {_described(want)}"
            )
    if len(got) != len(fragment.rows):
        raise CorruptFileError(
            path, f"it holds {counted(len(got), 'tensor')}, the manifest names {len(fragment.rows)}"
        )
    if header.metadata.get("format") != "pt":
        raise CorruptFileError(path, 'its header lacks __metadata__ {"format": "pt"}, which readers require')


def _wanted(ledger: Ledger, rows: IntArray) -> Iterator[Wanted]:
    """Yield the header's entries as the manifest's columns give them. From plain lists, since many are made."""
    columns = ledger.rows
    name, dtype, ndim, begin, end = (
        column[rows].tolist()
        for column in (columns.name, columns.dtype, columns.ndim, columns.begin, columns.end)
    )
    sizes = zip(*(column[rows].tolist() for column in columns.global_shape), strict=True)
    shapes = [size[:dims] for size, dims in zip(sizes, ndim, strict=True)]
    names, dtypes = [ledger.names[number] for number in name], [DTYPES[code] for code in dtype]
    return zip(names, dtypes, shapes, begin, end, strict=True)


def _by_place(entry: Wanted) -> tuple[int, int, str]:
    return entry[3], entry[4], entry[0]


def _described(entry: Wanted) -> str:
    name, dtype, shape, begin, end = entry
    return f"{name} {dtype} {list(shape)} at bytes {begin}:{end}"
