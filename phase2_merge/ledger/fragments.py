"""The files that manifests name, and which rows of the ledger each holds. Opens none of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shardmerge.common.manifest import FragmentFile

from .graft import REFERENCE_RANK
from .rows import IntArray, Rows
from .table import Ledger


@dataclass(frozen=True, slots=True, eq=False)
class Fragment:
    """A file that a manifest names: where it lies and which rows of the ledger it holds, in the order of bytes.

    Rank REFERENCE_RANK: a file of the reference, all of which is grafted. No link may lead out of `root`, the dump or
    the reference.
    """

    rank: int
    number: int
    root: Path
    path: Path
    file: FragmentFile
    rows: IntArray

    @property
    def data_bytes(self) -> int:
        """Bytes of its tensors."""
        return self.file.num_bytes - self.file.header_bytes


def fragments(ledger: Ledger) -> list[Fragment]:
    """Return all fragments, in the order of ranks, then whole files of the reference."""
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
            head.dump,
            head.directory / file.name,
            file,
            by_file.get((head.manifest.rank, number), none),
        )
        for head in ledger.heads
        for number, file in enumerate(head.manifest.files)
    ]
    return dumped + [
        Fragment(
            REFERENCE_RANK, number, grafted.root, grafted.path, grafted.file, by_file[REFERENCE_RANK, number]
        )
        for number, grafted in enumerate(ledger.grafted)
        if grafted.whole
    ]


def _by_bytes(rows: Rows) -> IntArray:
    """Return written rows by rank, file and place in it.

    Manifests list them so, and they are sorted only where not: sorting ten million again takes seconds.
    """
    written = np.flatnonzero(rows.written)
    keys = [column[written] for column in (rows.rank, rows.file, rows.begin, rows.end)]
    tied = np.ones(max(len(written) - 1, 0), bool)
    for key in keys:
        step = np.diff(key)
        if (tied & (step < 0)).any():
            return written[np.lexsort(keys[::-1])]
        tied &= step == 0
    return written
