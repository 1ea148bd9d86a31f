"""The columns of the ledger, one line each in one table, and what follows from it: how a manifest's columns become
arrays, what their numbers may be, and how those of several ranks are joined.

A column has the same test whether it is that of one rank or of a thousand, so ranks are tested together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeAlias

import numpy as np

from shardmerge.common.manifest import ABSENT, MAX_DIMS, NOT_WRITTEN, require

Json = Any
# An array for each column by its name: [rows], but geometry is [dims, rows] and checksums are [rows, 2] words.
Arrays: TypeAlias = dict[str, Any]
BOUND = 1 << 62  # all integers are below, so that the sum of two does not overflow


@dataclass(frozen=True, slots=True, eq=False)
class RankColumns:
    """The columns of one rank's manifest, and the lists that they point into."""

    rank: int
    world_size: int
    num_files: int
    names: list[str]
    dtypes: list[str]
    arrays: Arrays

    def __len__(self) -> int:
        return len(self.arrays["name"])

    @property
    def dims(self) -> int:
        """How many dimensions the rectangle with most of them has."""
        return len(self.arrays["global_shape"])


@dataclass(frozen=True, slots=True)
class Column:
    """What is known of a column.

    name: its name in `Rows`, in manifests, and in ledger.parquet, where each dimension is a column of its own.
    kind: the numpy type of its values in the ledger; integers of a manifest are int64 until they were tested.
    given: how manifests list it. None: they do not, and the reader adds it from what else they say.
    limit: what its integers stay below, for each rank; None for BOUND only.
    least: the least that its integers may be.
    absent: its value in the dimensions that a rectangle lacks.
    letter: of its name in ledger.parquet, before the number of the dimension.
    """

    name: str
    kind: type[np.generic]
    given: Literal["integers", "integers by dimension", "hexadecimal"] | None = None
    limit: Callable[[RankColumns], int] | None = None
    least: int = NOT_WRITTEN
    absent: int | None = None
    letter: str = ""


# In the order of ledger.parquet. Places and geometry have no limit: they are judged by others, over all ranks.
COLUMNS = (
    Column("name", np.int64, "integers", limit=lambda of: len(of.names), least=0),
    Column("rank", np.int32),
    Column("file", np.int32, "integers", limit=lambda of: of.num_files),
    Column("dtype", np.int8, "integers", limit=lambda of: len(of.dtypes), least=0),
    Column("ndim", np.int8, "integers", limit=lambda of: of.dims + 1, least=0),
    Column("begin", np.int64, "integers"),
    Column("end", np.int64, "integers"),
    Column("owner", np.int32, "integers", limit=lambda of: of.world_size, least=0),
    Column("xxh3_128", np.uint64, "hexadecimal"),
    Column("global_shape", np.int64, "integers by dimension", absent=ABSENT["global_shape"], letter="g"),
    Column("local_shape", np.int64, "integers by dimension", absent=ABSENT["local_shape"], letter="s"),
    Column("global_offset", np.int64, "integers by dimension", absent=ABSENT["global_offset"], letter="o"),
    Column("nan_count", np.int64),
    Column("inf_count", np.int64),
    Column("all_zero", np.bool_),
)
GIVEN = tuple(column for column in COLUMNS if column.given)
FLAT = tuple(column for column in COLUMNS if column.given == "integers")
GEOMETRY = tuple(column for column in COLUMNS if column.given == "integers by dimension")
INTEGERS = FLAT + GEOMETRY


def with_arrays(given: Mapping[str, Json]) -> dict[str, Json]:
    """A manifest's columns with arrays in place of lists of integers. Raises KeyError, TypeError, ValueError,
    OverflowError.

    Fractions are cut off and true becomes 1: a parser must look for them, as `of_json` does.
    """
    return {**given, **{column.name: np.array(given[column.name], np.int64) for column in INTEGERS}}


def of_json(given: Json) -> Arrays:
    """The columns of a manifest as arrays, if they have the right form: all of them, of integers, of equal length.

    given: columns of lists, or `with_arrays` by a parser that knows them for integers. Raises as `with_arrays` does.
    """
    require(isinstance(given, dict), "columns are not an object")
    lacking = [column.name for column in GIVEN if column.name not in given]
    require(not lacking, f"columns lack {', '.join(lacking)}")
    require(len(given) == len(GIVEN), "columns hold one that is not known")
    if not all(isinstance(given[column.name], np.ndarray) for column in INTEGERS):
        _require_integers(given)
        given = with_arrays(given)
    found = {**given, "xxh3_128": _checksums(given["xxh3_128"])}
    _require_lengths(found)
    return found


def _require_integers(given: Mapping[str, Json]) -> None:
    require(set(map(type, given.values())) <= {list}, "a column is not a list")
    for column in INTEGERS:
        parts = given[column.name] if column.absent is not None else [given[column.name]]
        require(set(map(type, parts)) <= {list}, f"a dimension of column {column.name} is not a list")
        kinds = set(map(type, chain.from_iterable(parts)))
        require(kinds <= {int}, f"column {column.name} holds something else than integers")


def _checksums(texts: Json) -> Any:
    """[rows, 2] words of the texts of checksums."""
    require(isinstance(texts, list), "a column is not a list")
    require(set(map(type, texts)) <= {str}, "names and checksums are strings")
    words = bytes.fromhex("".join(texts))
    sound = set(map(len, texts)) <= {32} and len(words) == 16 * len(texts)
    require(sound, "a checksum is not 32 hexadecimal digits")
    return np.frombuffer(words, np.uint64).reshape(-1, 2)


def _require_lengths(found: Arrays) -> None:
    geometry = {found[column.name].shape for column in GEOMETRY}
    dims = next(iter(geometry))[0] if {len(shape) for shape in geometry} == {2} else 0
    alike = len(geometry) == 1 and 1 <= dims <= MAX_DIMS
    require(alike, f"columns of dimensions are not alike, or not 1 to {MAX_DIMS}")
    rows = {found[column.name].shape for column in FLAT} | {shape[1:] for shape in geometry}
    require(rows == {(len(found["xxh3_128"]),)}, "columns differ in length")


def check_ranges(joined: Arrays, ranks: Sequence[RankColumns]) -> None:
    """Raise ValueError if a column holds a number that it may not; joined: the columns of these ranks together."""
    rows = [len(of) for of in ranks]
    for column in INTEGERS:
        values = joined[column.name]
        inside = not values.size or (values.min() >= NOT_WRITTEN and values.max() < BOUND)
        require(inside, f"column {column.name} leaves its range")
        if column.limit:
            limits = np.repeat([column.limit(of) for of in ranks], rows)
            inside = bool(((values >= column.least) & (values < limits)).all())
            owner = "an owner is not a rank of this world"
            require(
                inside, owner if column.name == "owner" else f"column {column.name} points outside its list"
            )
    lacking = np.arange(len(joined["global_shape"]))[:, None] >= joined["ndim"]
    for column in GEOMETRY:
        strange = lacking & (joined[column.name] != column.absent)
        require(not strange.any(), f"column {column.name} gives rectangles a dimension that they lack")


def join(column: Column, parts: Sequence[Any]) -> Any:
    """One column of several ranks, one after the other. Dimensions that a part lacks are added to it."""
    if column.absent is None:
        return np.concatenate(parts)
    dims = max(map(len, parts))
    padded = [
        np.pad(part, ((0, dims - len(part)), (0, 0)), constant_values=column.absent)
        if len(part) < dims
        else part
        for part in parts
    ]
    return np.concatenate(padded, axis=1)
