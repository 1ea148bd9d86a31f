"""Rows of the ledger from manifests, many ranks at a time: a few calls for thousands of rows, however few a rank has.

Judges only a manifest's form; whether ranks agree and tensors are whole is decided by others. Knows no Arrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from shardmerge.common import manifest as manifests
from shardmerge.common.dtypes import BITS
from shardmerge.common.errors import CorruptManifestError, DuplicateRankError
from shardmerge.common.manifest import Manifest, require
from shardmerge.common.manifest_facts import Health
from shardmerge.common.places import MANIFEST, rank_name

from ..disk.read_many import announced, read_many
from . import columns as manifest_columns
from . import fast_json as manifest_json
from .columns import ColumnArrays
from .graft import REFERENCE, GraftedFile
from .rank_directories import RankDirectories
from .rows import IntArray

DTYPES = tuple(sorted(BITS))
LETTERS = {"g": "global_shape", "s": "local_shape", "o": "global_offset"}  # g0, g1, ... of the ledger
ROWS_AT_ONCE = 20_000
NO_COLUMNS = asdict(manifests.columns([])[2])


@dataclass(frozen=True, slots=True)
class Head:
    """A manifest without its rectangles: where it lies, what it says of its rank, and its digest."""

    directory: Path
    manifest: Manifest
    digest: str


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some ranks: heads, and columns of the ledger, by name. Column `name` numbers `names`, where names may repeat."""

    heads: tuple[Head, ...]
    names: list[str]
    columns: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """The rectangles of a rank, and what their numbers count."""

    rank: int
    names: list[str]
    dtypes: list[str]
    num_files: int
    world_size: int
    columns: ColumnArrays
    health: Health


def batches(found: RankDirectories) -> Iterator[Batch]:
    """Read every manifest, in the order of ranks. Raises CorruptManifestError, DuplicateRankError, OSError."""
    held: list[tuple[Head, _Part]] = []
    rows = 0
    ranks = found.complete
    for rank, contents in read_many(
        lambda rank: _contents(rank, ranks[rank]), ranks, lambda rank: announced(ranks[rank][0] / MANIFEST)
    ):
        held.append(_read(rank, *contents))
        rows += len(held[-1][1].columns)
        if rows >= ROWS_AT_ONCE:
            yield _batch(held)
            held, rows = [], 0
    if held:
        yield _batch(held)


def grafted_rows(grafted: Sequence[GraftedFile]) -> Iterator[Batch]:
    """What is grafted, as rows of rank REFERENCE; nothing if there is none."""
    placed = [one for file in grafted for one in file.placed]
    if placed:
        names, dtypes, listed = manifests.columns(placed)
        columns = manifest_columns.of_json(asdict(listed))
        part = _Part(REFERENCE, names, dtypes, len(grafted), 1, columns, Health())
        yield Batch((), names, _columns([part], columns))


def _contents(rank: int, directories: tuple[Path, ...]) -> tuple[Path, bytes]:
    """Where a rank's manifest lies, and its bytes. Raises DuplicateRankError, OSError."""
    every = [(directory / MANIFEST).read_bytes() for directory in directories]
    if any(one != every[0] for one in every):
        raise DuplicateRankError(rank, tuple(map(str, directories)))
    return directories[0], every[0]


def _read(rank: int, directory: Path, data: bytes) -> tuple[Head, _Part]:
    """A rank's head, and its rectangles apart. Raises CorruptManifestError."""
    path = directory / MANIFEST
    value = manifests.parsed(data, path, manifest_json.decode)
    head = manifests.of_json(value | {"names": [], "columns": NO_COLUMNS}, path)
    if head.rank != rank:
        raise CorruptManifestError(str(path), f"it is of rank {head.rank}, but lies in {rank_name(rank)}")
    try:
        part = _part(head, value)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise CorruptManifestError(str(path), str(error)) from None
    return Head(directory, head, xxhash.xxh3_128_hexdigest(data)), part


def _part(head: Manifest, value: dict[str, Any]) -> _Part:
    names, dtypes = value["names"], value["dtypes"]
    require(set(map(type, [names, dtypes])) == {list}, "names and dtypes are not lists")
    require(set(map(type, [*names, *dtypes])) <= {str}, "names and checksums are strings")
    columns = manifest_columns.of_json(value["columns"])
    return _Part(head.rank, names, dtypes, len(head.files), head.world_size, columns, head.health)


def _batch(every: Sequence[tuple[Head, _Part]]) -> Batch:
    """The columns of these ranks. Raises CorruptManifestError for the first whose numbers cannot be."""
    heads, parts = zip(*every, strict=True)
    try:
        columns = _columns(parts, _checked(parts))
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        if len(every) == 1:
            raise CorruptManifestError(str(heads[0].directory / MANIFEST), str(error)) from None
        for one in every:
            _batch([one])
        raise
    return Batch(heads, list(chain.from_iterable(part.names for part in parts)), columns)


def _checked(parts: Sequence[_Part]) -> ColumnArrays:
    """The columns of all parts, joined. Raises ValueError for numbers that cannot be."""
    limits = {
        "name": [len(part.names) for part in parts],
        "file": [part.num_files for part in parts],
        "dtype": [len(part.dtypes) for part in parts],
        "ndim": [part.columns.dims + 1 for part in parts],
        "owner": [part.world_size for part in parts],
    }
    rows = [len(part.columns) for part in parts]
    found = manifest_columns.joined([part.columns for part in parts])
    manifest_columns.check_ranges(found, {name: np.repeat(of, rows) for name, of in limits.items()})
    return found


def _columns(parts: Sequence[_Part], c: ColumnArrays) -> dict[str, Any]:
    """c: the parts' columns, joined."""
    rows = [len(part.columns) for part in parts]
    dtypes = np.array([_dtype(dtype) for part in parts for dtype in part.dtypes], np.int8)
    found: dict[str, Any] = {
        "name": c.name + _starts([len(part.names) for part in parts], rows),
        "rank": np.repeat(np.array([part.rank for part in parts], np.int32), rows),
        "file": c.file.astype(np.int32),
        "dtype": dtypes[c.dtype + _starts([len(part.dtypes) for part in parts], rows)],
        "ndim": c.ndim.astype(np.int8),
        "begin": c.begin,
        "end": c.end,
        "owner": c.owner.astype(np.int32),
        "xxh3_128": _checksums(c.xxh3_128),
    }
    for letter, name in LETTERS.items():
        found |= {f"{letter}{dim}": column for dim, column in enumerate(getattr(c, name))}
    return found | _health(parts, rows)


def _starts(sizes: Sequence[int], rows: Sequence[int]) -> IntArray:
    """For every row how many entries the lists of the parts before its own hold."""
    return np.repeat(np.cumsum([0, *sizes[:-1]]), rows)


def _dtype(name: str) -> int:
    require(name in DTYPES, f"dtype {name} is not one of safetensors")
    return DTYPES.index(name)


def _checksums(texts: list[str]) -> Any:
    """[rows, 2] words."""
    raw = bytes.fromhex("".join(texts))
    require(
        set(map(len, texts)) <= {32} and len(raw) == 16 * len(texts),
        "a checksum is not 32 hexadecimal digits",
    )
    return np.frombuffer(raw, np.uint64).reshape(-1, 2)


def _health(parts: Sequence[_Part], rows: Sequence[int]) -> dict[str, Any]:
    counts = {name: np.zeros(sum(rows), np.int64) for name in ("nan_count", "inf_count")}
    all_zero = np.zeros(sum(rows), bool)
    for part, start, size in zip(parts, np.cumsum([0, *rows[:-1]]).tolist(), rows, strict=True):
        for row, nan_count, inf_count in part.health.nonfinite or ():
            at = start + _row(row, size)
            counts["nan_count"][at], counts["inf_count"][at] = nan_count, inf_count
        for row in part.health.all_zero or ():
            all_zero[start + _row(row, size)] = True
    return {**counts, "all_zero": all_zero}


def _row(row: int, rows: int) -> int:
    require(0 <= row < rows, f"health speaks of row {row} of {rows}")
    return row
