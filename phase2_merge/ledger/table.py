"""The ledger: all rectangles of all ranks, a row per rectangle, rows in the order of ranks.

Whether ranks agree and tensors are whole is decided by others, over the columns that are here. Knows no Arrow: a proof
does not wait for it to be imported.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, repeat
from pathlib import Path

import numpy as np
import xxhash

from .columns import COLUMNS, GEOMETRY, Arrays, join
from .graft import REFERENCE_RANK, GraftedFile
from .rank_directories import RankDirectories
from .read import Batch, RankHead, batches, grafted_rows
from .rows import IntArray, Rows


@dataclass(frozen=True, slots=True, eq=False)
class Ledger:
    """All ranks' heads and rows; `names` are all tensors' names, which column `name` numbers.

    What is grafted comes first, as rows of REFERENCE_RANK.
    """

    heads: tuple[RankHead, ...]
    grafted: tuple[GraftedFile, ...]
    rows: Rows
    names: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Digest of all manifests in the order of ranks: the same dump gives the same, wherever it lies."""
        grafted = (f"{one.rectangle.name} {one.xxh3_128}" for file in self.grafted for one in file.placed)
        parts = [*(head.digest for head in self.heads), *grafted]
        return xxhash.xxh3_128_hexdigest("".join(parts).encode())

    def name_ids(self, names: Sequence[str]) -> IntArray:
        """The ledger's number for each of these names, -1 for a tensor that is in no manifest."""
        number = dict(zip(self.names, range(len(self.names)), strict=True))
        return np.fromiter(map(number.get, names, repeat(-1)), np.int64, len(names))

    def path(self, rank: int, file: int) -> Path:
        """Where a fragment lies."""
        if rank == REFERENCE_RANK:
            return self.grafted[file].path
        head = self.by_rank(rank)
        return head.directory / head.manifest.files[file].name

    def by_rank(self, rank: int) -> RankHead:
        """The head of a rank that has a manifest."""
        at = int(np.searchsorted(self.rows.present, rank))
        return self.heads[at]


def read(found: RankDirectories, grafted: tuple[GraftedFile, ...] = ()) -> Ledger:
    """Read every manifest. Raises CorruptManifestError, DuplicateRankError, OSError."""
    numbers: Mapping[str, int] = defaultdict(count().__next__)  # of names, as they come
    parts = [
        (batch.heads, _numbered(batch, numbers)) for batch in chain(grafted_rows(grafted), batches(found))
    ]
    heads = tuple(head for some, _ in parts for head in some)
    present = np.array([head.manifest.rank for head in heads], np.int64)
    return Ledger(heads, grafted, _rows(present, [arrays for _, arrays in parts]), tuple(numbers))


def _numbered(batch: Batch, numbers: Mapping[str, int]) -> Arrays:
    """A batch's columns, `name` numbered as in the whole ledger."""
    number = np.fromiter(map(numbers.__getitem__, batch.names), np.int64, len(batch.names))
    return batch.arrays | {"name": number[batch.arrays["name"]]}


def _rows(present: IntArray, parts: Sequence[Arrays]) -> Rows:
    """The parts' columns, joined; the parts are emptied on the way, so that the peak is one column above the ledger."""
    arrays = {column.name: join(column, [part.pop(column.name) for part in parts]) for column in COLUMNS}
    return Rows(present=present, **arrays | {column.name: tuple(arrays[column.name]) for column in GEOMETRY})
