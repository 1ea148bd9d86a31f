"""The columns of the ledger, as one table. Everything that is done with all columns follows from it.

That is how a manifest's columns become arrays, what their numbers may be, how the columns of several ranks are joined
(here), and how the ledger is written (`parquet`). A column has the same test whether it belongs to one rank or to a
thousand, so many ranks are tested together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeAlias

import numpy as np

from shardmerge.common.manifest import ABSENT, MAX_DIMS, NOT_WRITTEN, require

Json = Any
# One array per column, by its name: geometry is [dims, rows], checksums are [rows, 2] words, all others are [rows].
Arrays: TypeAlias = dict[str, Any]
BOUND = 1 << 62  # every integer is smaller, so that the sum of two never overflows


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
    """One line of the table.

    Attributes:
        name: What it is called in `Rows`, in manifests and in ledger.parquet.
        kind: The numpy type of its values in the ledger. Before they are tested, a manifest's integers are int64.
        given: How a manifest lists it. None if no manifest does: then the reader derives it.
        limit: What the integers of a rank must stay below, if that is less than BOUND.
        least: The least integer that it may hold.
        absent: What it holds for dimensions that a rectangle lacks.
        letter: In ledger.parquet each dimension is a column of its own, named by this letter and its number.
    """

    name: str
    kind: type[np.generic]
    given: Literal["integers", "integers by dimension", "hexadecimal"] | None = None
    limit: Callable[[RankColumns], int] | None = None
    least: int = NOT_WRITTEN
    absent: int | None = None
    letter: str = ""


# In the order of ledger.parquet. `begin`, `end` and geometry have no limit here: the proof judges them, over all ranks.
COLUMNS = (
    Column("name", np.int64, "integers", limit=lambda rank: len(rank.names), least=0),
    Column("rank", np.int32),
    Column("file", np.int32, "integers", limit=lambda rank: rank.num_files),
    Column("dtype", np.int8, "integers", limit=lambda rank: len(rank.dtypes), least=0),
    Column("ndim", np.int8, "integers", limit=lambda rank: rank.dims + 1, least=0),
    Column("begin", np.int64, "integers"),
    Column("end", np.int64, "integers"),
    Column("owner", np.int32, "integers", limit=lambda rank: rank.world_size, least=0),
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
    """Return a manifest's columns with arrays in place of its lists of integers, for a parser to build.

    Fractions are cut off and true becomes 1 here, so the parser has to rule them out itself.
    Raises KeyError, TypeError, ValueError, OverflowError.
    """
    return {**given, **{column.name: np.array(given[column.name], np.int64) for column in INTEGERS}}


def of_json(given: Json) -> Arrays:
    """Return a manifest's columns as arrays, after testing their form: none is missing, all have the same length.

    `given` holds lists, which are searched for anything but integers, or what `with_arrays` made of them.
    Raises TypeError, ValueError, OverflowError.
    """
    require(isinstance(given, dict), "columns are not an object")
    lacking = [column.name for column in GIVEN if column.name not in given]
    require(not lacking, f"columns lack {', '.join(lacking)}")
    require(len(given) == len(GIVEN), "columns hold one that is not known")
    if not all(isinstance(given[column.name], np.ndarray) for column in INTEGERS):
        _require_integers(given)
        given = with_arrays(given)
    arrays = {**given, "xxh3_128": _checksums(given["xxh3_128"])}
    _require_lengths(arrays)
    return arrays


def _require_integers(given: Mapping[str, Json]) -> None:
    """Raise ValueError if a column of integers holds anything else, true and false included."""
    require(set(map(type, given.values())) <= {list}, "a column is not a list")
    for column in INTEGERS:
        parts = given[column.name] if column.absent is not None else [given[column.name]]
        require(set(map(type, parts)) <= {list}, f"a dimension of column {column.name} is not a list")
        kinds = set(map(type, chain.from_iterable(parts)))
        require(kinds <= {int}, f"column {column.name} holds something else than integers")


def _checksums(texts: Json) -> Any:
    """Return [rows, 2] words."""
    require(isinstance(texts, list), "a column is not a list")
    require(set(map(type, texts)) <= {str}, "names and checksums are strings")
    words = bytes.fromhex("".join(texts))
    sound = set(map(len, texts)) <= {32} and len(words) == 16 * len(texts)
    require(sound, "a checksum is not 32 hexadecimal digits")
    return np.frombuffer(words, np.uint64).reshape(-1, 2)


def _require_lengths(arrays: Arrays) -> None:
    """Raise ValueError unless all columns have the same length, and geometry the same dimensions."""
    geometry = {arrays[column.name].shape for column in GEOMETRY}
    dims = next(iter(geometry))[0] if {len(shape) for shape in geometry} == {2} else 0
    alike = len(geometry) == 1 and 1 <= dims <= MAX_DIMS
    require(alike, f"columns of dimensions are not alike, or not 1 to {MAX_DIMS}")
    rows = {arrays[column.name].shape for column in FLAT} | {shape[1:] for shape in geometry}
    require(rows == {(len(arrays["xxh3_128"]),)}, "columns differ in length")


def check_ranges(joined: Arrays, ranks: Sequence[RankColumns]) -> None:
    """Raise ValueError if a column of these ranks, which are joined already, holds a number that it may not."""
    rows = [len(rank) for rank in ranks]
    for column in INTEGERS:
        values = joined[column.name]
        inside = not values.size or (values.min() >= NOT_WRITTEN and values.max() < BOUND)
        require(inside, f"column {column.name} leaves its range")
        if column.limit:
            limits = np.repeat([column.limit(rank) for rank in ranks], rows)
            inside = bool(((values >= column.least) & (values < limits)).all())
            require(inside, _outside(column))
    lacking = np.arange(len(joined["global_shape"]))[:, None] >= joined["ndim"]
    for column in GEOMETRY:
        strange = lacking & (joined[column.name] != column.absent)
        require(not strange.any(), f"column {column.name} gives rectangles a dimension that they lack")


def _outside(column: Column) -> str:
    if column.name == "owner":
        return "an owner is not a rank of this world"
    return f"column {column.name} points outside its list"


def join(column: Column, parts: Sequence[Any]) -> Any:
    """Return the arrays of one column, one after the other. Dimensions that a part lacks are added to it."""
    if column.absent is None:
        return np.concatenate(parts)
    dims = max(map(len, parts))
    return np.concatenate([_padded(part, dims, column.absent) for part in parts], axis=1)


def _padded(part: Any, dims: int, absent: int) -> Any:
    if len(part) == dims:
        return part
    return np.pad(part, ((0, dims - len(part)), (0, 0)), constant_values=absent)
