"""The rows of the ledger as numpy arrays, and arithmetic on rows that several checks share.

Must not judge any row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

IntArray: TypeAlias = NDArray[np.int64]
BoolArray: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """An array per line of `columns.COLUMNS`, all [rows], and `present`, the ranks that have a manifest, ascending.

    Geometry has an array per dimension. `file` is NOT_WRITTEN for a rectangle that its rank holds and another rank,
    `owner`, wrote. `xxh3_128` is [rows, 2] words.
    """

    present: IntArray
    name: IntArray
    rank: NDArray[np.int32]
    file: NDArray[np.int32]
    dtype: NDArray[np.int8]
    ndim: NDArray[np.int8]
    global_shape: tuple[IntArray, ...]
    local_shape: tuple[IntArray, ...]
    global_offset: tuple[IntArray, ...]
    begin: IntArray
    end: IntArray
    owner: NDArray[np.int32]
    xxh3_128: NDArray[np.uint64]
    nan_count: IntArray
    inf_count: IntArray
    all_zero: BoolArray

    def __len__(self) -> int:
        return len(self.name)

    @property
    def written(self) -> BoolArray:
        """[rows] whether the bytes of a rectangle lie in a fragment of its rank."""
        return self.file >= 0

    def whole(self) -> BoolArray:
        """Return [rows] whether a rectangle is an entire tensor."""
        entire = np.ones(len(self), bool)
        for offset, local, whole in zip(self.global_offset, self.local_shape, self.global_shape, strict=True):
            entire &= (offset == 0) & (local == whole)
        return entire

    def box(self, row: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return (global_offset, local_shape) of one row, without the dimensions that it lacks."""
        dims = range(int(self.ndim[row]))
        return tuple(int(self.global_offset[d][row]) for d in dims), tuple(
            int(self.local_shape[d][row]) for d in dims
        )

    def global_of(self, row: Any) -> tuple[int, ...]:
        """Return global_shape of one row, without the dimensions that it lacks."""
        return tuple(int(self.global_shape[d][row]) for d in range(int(self.ndim[row])))

    def checksum(self, row: Any) -> str:
        """Return xxh3_128 of one row's bytes, as the manifest spells it."""
        return bytes(self.xxh3_128[row]).hex()

    def ranks_of(self, rows: Any) -> tuple[int, ...]:
        """Return the ranks of some rows, ascending, each once."""
        return tuple(int(rank) for rank in np.unique(self.rank[rows]))


def group(ids: IntArray, count: int) -> tuple[IntArray, IntArray]:
    """Return (order, start): the rows with id i are `order[start[i]:start[i + 1]]`, in their old order."""
    order = np.argsort(ids, kind="stable")
    return order, np.searchsorted(ids[order], np.arange(count + 1))
