"""The ledger: all rectangles of all ranks, one row for each, in the order of ranks.

Whether ranks agree and tensors are whole is decided by others, over the columns that are here. Must not know Arrow:
importing it takes longer than many a proof.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from shardmerge.common.manifest import Manifest
from shardmerge.common.manifest_facts import Facts

from .columns import COLUMNS, GEOMETRY, Arrays, join
from .graft import REFERENCE_RANK, GraftedFile
from .rank_directories import RankDirectories
from .read import Batch, RankHead, batches, grafted_rows
from .rows import IntArray, Rows


@dataclass(frozen=True, slots=True, eq=False)
class Ledger:
    """Heads and rows of all ranks. Column `name` of the rows gives places in `names`, where each name stands once.

    What is grafted comes first, as rows of REFERENCE_RANK.
    """

    heads: tuple[RankHead, ...]
    grafted: tuple[GraftedFile, ...]
    rows: Rows
    names: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The digest of all manifests in the order of ranks. The same dump gives the same, wherever it lies."""
        grafted = (f"{one.rectangle.name} {one.xxh3_128}" for file in self.grafted for one in file.placed)
        parts = [*(head.digest for head in self.heads), *grafted]
        return xxhash.xxh3_128_hexdigest("".join(parts).encode())

    def facts(self) -> Facts:
        """Return the facts of the first rank, with the settings and spellings of experts that any rank tells.

        The first that tells one counts. They are None if no rank tells any, as in dumps of older versions.
        """
        every = [head.manifest.facts for head in self.heads]
        settings, experts = _united(one.settings for one in every), _united(one.experts for one in every)
        return replace(every[0], settings=settings, experts=experts)

    def manifests(self) -> tuple[Manifest, ...]:
        """Return the manifests, each with the settings and spellings of experts that any rank tells."""
        told = self.facts()
        return tuple(
            replace(one, facts=replace(one.facts, settings=told.settings, experts=told.experts))
            for one in (head.manifest for head in self.heads)
        )

    def name_ids(self, names: Sequence[str]) -> IntArray:
        """Return the place of each of these names in `self.names`, -1 for a tensor that is in no manifest."""
        number = dict(zip(self.names, range(len(self.names)), strict=True))
        return np.fromiter(map(number.get, names, repeat(-1)), np.int64, len(names))

    def path(self, rank: int, file: int) -> Path:
        """Return where a fragment lies, by its rank and its number among the files of its rank."""
        if rank == REFERENCE_RANK:
            return self.grafted[file].path
        head = self.by_rank(rank)
        return head.directory / head.manifest.files[file].name

    def by_rank(self, rank: int) -> RankHead:
        """Return the head of a rank that has a manifest."""
        return self.heads[int(np.searchsorted(self.rows.present, rank))]


def _united(told: Iterable[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Return what any of these tells, sorted; of what several tell, what the first does. None if all are None."""
    united: dict[str, Any] | None = None
    for one in told:
        if one is not None and (united is None or not one.keys() <= united.keys()):
            united = {**one, **(united or {})}
    return None if united is None else dict(sorted(united.items()))


def read(directories: RankDirectories, grafted: tuple[GraftedFile, ...] = ()) -> Ledger:
    """Read every manifest. Raises CorruptManifestError, DuplicateRankError, OSError."""
    numbers: Mapping[str, int] = defaultdict(count().__next__)  # a name that comes first gets the next number
    all_batches = chain(grafted_rows(grafted), batches(directories))
    parts = [(batch.heads, _numbered(batch, numbers)) for batch in all_batches]
    heads = tuple(head for batch_heads, _ in parts for head in batch_heads)
    present = np.array([head.manifest.rank for head in heads], np.int64)
    return Ledger(heads, grafted, _rows(present, [arrays for _, arrays in parts]), tuple(numbers))


def _numbered(batch: Batch, numbers: Mapping[str, int]) -> Arrays:
    """Return a batch's columns, with names numbered as in the whole ledger."""
    number = np.fromiter(map(numbers.__getitem__, batch.names), np.int64, len(batch.names))
    return batch.arrays | {"name": number[batch.arrays["name"]]}


def _rows(present: IntArray, parts: Sequence[Arrays]) -> Rows:
    """Join the parts column by column. They are emptied on the way, so the peak is one column above the ledger."""
    arrays = {column.name: join(column, [part.pop(column.name) for part in parts]) for column in COLUMNS}
    return Rows(present=present, **arrays | {column.name: tuple(arrays[column.name]) for column in GEOMETRY})
