"""Reads manifests: a head for each rank, and rows of the ledger for many ranks at a time.

A rank may have a few rows only, and a call of numpy costs as much for ten rows as for a thousand. So ranks are
gathered until they have ROWS_AT_ONCE rows together, and then handled at once. Judges only the form of a manifest;
whether ranks agree and tensors are whole is decided by others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from shardmerge.common import manifest as manifests
from shardmerge.common.dtypes import DTYPES
from shardmerge.common.errors import CorruptManifestError, DuplicateRankError, ShardmergeError, printable
from shardmerge.common.manifest import Manifest, require
from shardmerge.common.manifest_facts import Health
from shardmerge.common.places import MANIFEST, rank_name

from ..disk.read_many import announced, read_many
from . import columns, fast_json
from .columns import COLUMNS, GIVEN, Arrays, RankColumns
from .graft import REFERENCE_RANK, GraftedFile
from .rank_directories import RankDirectories
from .rows import IntArray

ROWS_AT_ONCE = 20_000


@dataclass(frozen=True, slots=True)
class RankHead:
    """A manifest without its rectangles: where it lies, what it says about its rank, and the digest of its bytes."""

    directory: Path
    manifest: Manifest
    digest: str

    @property
    def dump(self) -> Path:
        """Return the folder of all ranks, out of which no link may lead."""
        return self.directory.parent


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Heads and rows of some ranks. Column `name` gives places in `names`, where a name may stand several times."""

    heads: tuple[RankHead, ...]
    names: list[str]
    arrays: Arrays


def batches(directories: RankDirectories) -> Iterator[Batch]:
    """Read every manifest, in the order of ranks. Raises CorruptManifestError, DuplicateRankError, OSError."""
    held: list[tuple[RankHead, RankColumns]] = []
    rows = 0
    ranks = directories.complete
    for rank, contents in read_many(
        lambda rank: _contents(rank, ranks[rank]), ranks, lambda rank: announced(ranks[rank][0] / MANIFEST)
    ):
        held.append(_read(rank, *contents))
        rows += len(held[-1][1])
        if rows >= ROWS_AT_ONCE:
            yield _batch(held)
            held, rows = [], 0
    if held:
        yield _batch(held)


def readable(directories: RankDirectories) -> tuple[RankDirectories, dict[int, str]]:
    """Return the ranks whose manifest can be read, and what is wrong with each other one, for those who only look."""
    wrong: dict[int, str] = {}
    for rank, copies in directories.complete.items():
        try:
            _batch([_read(rank, *_contents(rank, copies))])
        except (ShardmergeError, OSError) as error:
            wrong[rank] = str(error)
    complete = {rank: copies for rank, copies in directories.complete.items() if rank not in wrong}
    return RankDirectories(complete, directories.failures), wrong


def grafted_rows(grafted: Sequence[GraftedFile]) -> Iterator[Batch]:
    """Yield what is grafted, as rows of REFERENCE_RANK, and nothing if nothing is grafted."""
    placed = [placed for file in grafted for placed in file.placed]
    if placed:
        names, dtypes, listed = manifests.columns(placed)
        arrays = columns.of_json(asdict(listed))
        rank = RankColumns(REFERENCE_RANK, 1, len(grafted), names, dtypes, arrays)
        yield Batch((), names, _ledger_arrays([rank], arrays) | _health([Health()], [len(rank)]))


def _contents(rank: int, directories: tuple[Path, ...]) -> tuple[Path, bytes]:
    """Return where a rank's manifest lies, and its bytes.

    Raises DuplicateRankError if its copies differ, CorruptFileError if one is not a plausible file. OSError.
    """
    copies = [manifests.content(directory / MANIFEST, directory.parent) for directory in directories]
    if any(copy != copies[0] for copy in copies):
        raise DuplicateRankError(rank, tuple(map(str, directories)))
    return directories[0], copies[0]


def _read(rank: int, directory: Path, data: bytes) -> tuple[RankHead, RankColumns]:
    """Return a rank's head, and its rectangles apart. Raises CorruptManifestError."""
    path = directory / MANIFEST
    value = manifests.parsed(data, path, fast_json.decode)
    head = manifests.head(value, path)
    if head.rank != rank:
        raise CorruptManifestError(str(path), f"it is of rank {head.rank}, but lies in {rank_name(rank)}")
    try:
        rank_columns = _rank_columns(head, value)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise CorruptManifestError(str(path), str(error)) from None
    return RankHead(directory, head, xxhash.xxh3_128_hexdigest(data)), rank_columns


def _rank_columns(head: Manifest, value: Mapping[str, Any]) -> RankColumns:
    """Return the rectangles of a parsed manifest. Raises ValueError, TypeError, KeyError, OverflowError."""
    names, dtypes = value["names"], value["dtypes"]
    require(set(map(type, [names, dtypes])) == {list}, "names and dtypes are not lists")
    require(set(map(type, [*names, *dtypes])) <= {str}, "names and checksums are strings")
    require(printable.is_printable(names), "the name of a tensor cannot be printed")
    arrays = columns.of_json(value["columns"])
    return RankColumns(head.rank, head.world_size, len(head.files), names, dtypes, arrays)


def _batch(held: Sequence[tuple[RankHead, RankColumns]]) -> Batch:
    """Test and convert these ranks together. Raises CorruptManifestError for the first whose numbers cannot be."""
    heads, ranks = zip(*held, strict=True)
    try:
        joined = {c.name: columns.join(c, [rank.arrays[c.name] for rank in ranks]) for c in GIVEN}
        columns.check_ranges(joined, ranks)
        health = _health([head.manifest.health for head in heads], [len(rank) for rank in ranks])
        arrays = _ledger_arrays(ranks, joined) | health
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        if len(held) == 1:
            raise CorruptManifestError(str(heads[0].directory / MANIFEST), str(error)) from None
        for each in held:
            _batch([each])
        raise
    return Batch(heads, list(chain.from_iterable(rank.names for rank in ranks)), arrays)


def _ledger_arrays(ranks: Sequence[RankColumns], joined: Arrays) -> Arrays:
    """Return all columns of the ledger but those of health, given the joined columns of these ranks.

    A rank's names and dtypes were places in its own lists. Now names are places in the lists of all ranks together,
    and dtypes are places in DTYPES.
    """
    rows = [len(rank) for rank in ranks]
    dtypes = np.array([_dtype(dtype) for rank in ranks for dtype in rank.dtypes], np.int64)
    arrays = joined | {
        "name": joined["name"] + _starts([len(rank.names) for rank in ranks], rows),
        "rank": np.repeat([rank.rank for rank in ranks], rows),
        "dtype": dtypes[joined["dtype"] + _starts([len(rank.dtypes) for rank in ranks], rows)],
    }
    return {c.name: arrays[c.name].astype(c.kind, copy=False) for c in COLUMNS if c.name in arrays}


def _starts(sizes: Sequence[int], rows: Sequence[int]) -> IntArray:
    """Return [sum of rows] how many entries the lists of all ranks before a row's own rank hold."""
    return np.repeat(np.cumsum([0, *sizes[:-1]]), rows)


def _dtype(name: str) -> int:
    require(name in DTYPES, f"dtype {name} is not one of safetensors")
    return DTYPES.index(name)


def _health(health: Sequence[Health], rows: Sequence[int]) -> Arrays:
    """Return the columns of health. Both arguments have an entry per rank; most ranks saw nothing."""
    counts = {name: np.zeros(sum(rows), np.int64) for name in ("nan_count", "inf_count")}
    all_zero = np.zeros(sum(rows), bool)
    for seen, start, size in zip(health, np.cumsum([0, *rows[:-1]]).tolist(), rows, strict=True):
        for row, nan_count, inf_count in seen.nonfinite or ():
            place = start + _row(row, size)
            counts["nan_count"][place], counts["inf_count"][place] = nan_count, inf_count
        for row in seen.all_zero or ():
            all_zero[start + _row(row, size)] = True
    return {**counts, "all_zero": all_zero}


def _row(row: Any, rows: int) -> int:
    require(type(row) is int and 0 <= row < rows, f"health speaks of row {row!r} of {rows}")
    return int(row)
