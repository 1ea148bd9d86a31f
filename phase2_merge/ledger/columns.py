"""Columns of manifests as arrays: made of JSON's lists, joined over many ranks, and what their numbers may be.

A column has the same test whether it is that of one rank or of a thousand, so ranks are tested together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np

from shardmerge.common.manifest import ABSENT, MAX_DIMS, NOT_WRITTEN, require

from .rows import IntArray

Json = Any
CHECKSUMS = "xxh3_128"


@dataclass(frozen=True, slots=True, eq=False)
class ColumnArrays:
    """What `Columns` of a manifest holds: all [rows], shapes and offsets [dimensions, rows]."""

    name: IntArray
    file: IntArray
    dtype: IntArray
    ndim: IntArray
    global_shape: IntArray
    local_shape: IntArray
    global_offset: IntArray
    begin: IntArray
    end: IntArray
    owner: IntArray
    xxh3_128: list[str]

    def __len__(self) -> int:
        return len(self.xxh3_128)

    @property
    def dims(self) -> int:
        """How many dimensions the rectangle with most of them has."""
        return len(self.global_shape)


NUMBERS = tuple(field.name for field in fields(ColumnArrays) if field.name != CHECKSUMS)


def arrays(given: Mapping[str, Json]) -> dict[str, Json]:
    """Columns of JSON with lists of integers as arrays. Raises KeyError, TypeError, ValueError, OverflowError.

    Fractions are cut off and true becomes 1: a parser must look for them, as `of_json` does.
    """
    return {**given, **{name: np.array(given[name], np.int64) for name in NUMBERS}}


def of_json(given: Json) -> ColumnArrays:
    """Columns of lists, or of `arrays` that a parser made of integers. Raises as `arrays` does."""
    require(isinstance(given, dict), "columns are not an object")
    lists = [values for values in given.values() if not isinstance(values, np.ndarray)]
    require(set(map(type, lists)) <= {list}, "a column is not a list")
    listed = {name: values for name in NUMBERS if isinstance(values := given[name], list)}
    for name, values in listed.items():
        parts = values if name in ABSENT else [values]
        require(set(map(type, parts)) <= {list}, "a column is not a list")
        kinds = set(map(type, chain.from_iterable(parts)))
        require(kinds <= {int}, "a column holds something else than integers")
    found = ColumnArrays(**(arrays(given) if listed else given))
    _check_lengths(found)
    return found


def _check_lengths(c: ColumnArrays) -> None:
    rows, boxes = len(c), {getattr(c, name).shape for name in ABSENT}
    flat = {getattr(c, name).shape for name in NUMBERS if name not in ABSENT}
    require(len(boxes) == 1 and c.global_shape.ndim == 2 and 1 <= c.dims <= MAX_DIMS, "columns of dimensions")
    require(flat == {(rows,)} and c.global_shape.shape[1] == rows, "columns differ in length")
    require(set(map(type, c.xxh3_128)) <= {str}, "names and checksums are strings")


def check_ranges(c: ColumnArrays, limits: Mapping[str, Any]) -> None:
    """What numbers may be; the geometry itself is judged by the merge, over all ranks. Raises ValueError.

    limits: what `name`, `file`, `dtype`, `ndim` and `owner` must stay below, a number or an array of [rows].
    """
    for name in NUMBERS:
        values = getattr(c, name)
        require(
            not values.size or (values.min() >= NOT_WRITTEN and values.max() < 1 << 62),
            "a column leaves its range",
        )
    for name, limit in limits.items():
        values = getattr(c, name)
        inside = (values < limit) & (values >= (NOT_WRITTEN if name == "file" else 0))
        what = (
            "an owner is not a rank of this world" if name == "owner" else "a column points outside its list"
        )
        require(bool(inside.all()), what)
    lacking = np.arange(c.dims)[:, None] >= c.ndim
    for name, absent in ABSENT.items():
        strange = lacking & (getattr(c, name) != absent)
        require(not strange.any(), f"column {name} gives rectangles a dimension that they lack")


def joined(parts: Sequence[ColumnArrays]) -> ColumnArrays:
    """One after the other: names, files and dtypes number each part's own lists. Dimensions a part lacks are added."""
    dims = max(part.dims for part in parts)
    numbers = {
        name: np.concatenate([_padded(part, name, dims) for part in parts], axis=-1) for name in NUMBERS
    }
    return ColumnArrays(**numbers, xxh3_128=list(chain.from_iterable(part.xxh3_128 for part in parts)))


def _padded(part: ColumnArrays, name: str, dims: int) -> IntArray:
    values: IntArray = getattr(part, name)
    if name not in ABSENT or part.dims == dims:
        return values
    return np.pad(values, ((0, dims - part.dims), (0, 0)), constant_values=ABSENT[name])
