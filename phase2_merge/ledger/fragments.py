"""The files that manifests name, which rows of the ledger each holds, and whether every byte is as it was written.

A fragment's bytes are read in a thread: hashing and reading release the interpreter. Never interprets a number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shardmerge.common.errors import CorruptFileError, ShardmergeError
from shardmerge.common.manifest import FragmentFile
from shardmerge.common.rectangle import place

from ..disk.checksums import Advance, Span, checksums, in_threads, stretches, wrong_bytes
from .graft import REFERENCE_RANK
from .rows import IntArray, Rows
from .table import Ledger


@dataclass(frozen=True, slots=True, eq=False)
class Fragment:
    """A file that a manifest names: where it lies, and which rows of the ledger it holds, in the order of bytes.

    One of REFERENCE_RANK is a file of the reference, and all of it is grafted.
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
    """Returns all fragments in the order of ranks, then the files of the reference that are grafted whole."""
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
        Fragment(REFERENCE_RANK, number, one.path, one.file, by_file[REFERENCE_RANK, number])
        for number, one in enumerate(ledger.grafted)
        if one.whole
    ]


def _by_bytes(rows: Rows) -> IntArray:
    """Returns written rows by rank, file and place in it.

    Manifests list them so, and that is found out first: sorting ten million rows again takes seconds.
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


def check_bytes(ledger: Ledger, every: Sequence[Fragment], advance: Advance) -> list[ShardmergeError]:
    """Read every rectangle once and compare its checksum; the first of each fragment that differs."""
    parts = [(one, one.rows[part]) for one in every for part in stretches(_spans(ledger, one.rows))]
    return in_threads(
        lambda one, rows: as_problem(one, lambda: _check_bytes(ledger, one.path, rows, advance)), parts
    )


def as_problem(one: Fragment, check: Callable[[], None]) -> ShardmergeError | None:
    """What a check of this fragment raised about a file, with the rank that wrote it."""
    try:
        check()
    except CorruptFileError as error:
        return CorruptFileError(error.path, error.reason, one.rank)
    except FileNotFoundError:
        return CorruptFileError(str(one.path), "it is missing, though the manifest names it", one.rank)
    return None


def _spans(ledger: Ledger, rows: IntArray) -> list[Span]:
    return list(zip(ledger.rows.begin[rows].tolist(), ledger.rows.end[rows].tolist(), strict=True))


def _check_bytes(ledger: Ledger, path: Path, rows: IntArray, advance: Advance) -> None:
    of = ledger.rows
    for row, got in zip(rows, checksums(path, _spans(ledger, rows), advance), strict=True):
        if got != of.checksum(row):
            what = f"{_name(ledger, row)} {place(*of.box(row))}"
            raise CorruptFileError(str(path), wrong_bytes(what, got, of.checksum(row)))


def _name(ledger: Ledger, row: int) -> str:
    return ledger.names[int(ledger.rows.name[row])]
