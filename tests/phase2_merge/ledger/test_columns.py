"""The table of columns is the only one: manifests, rows and ledger.parquet have its names, in its order."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pytest

from shardmerge.common import manifest as manifests
from shardmerge.common.manifest import Placed
from shardmerge.common.rectangle import Rectangle
from shardmerge.phase2_merge.ledger.columns import (
    COLUMNS,
    GEOMETRY,
    GIVEN,
    RankColumns,
    check_ranges,
    join,
    of_json,
    with_arrays,
)
from shardmerge.phase2_merge.ledger.rows import Rows

HASH = "0123456789abcdef" * 2


def listed(*shapes: tuple[int, ...]) -> dict[str, Any]:
    """The columns of a manifest that lists entire tensors of these shapes."""
    placed = [
        Placed(Rectangle(f"t{at}", "U8", shape, (0,) * len(shape), shape), 0, 8, 9, 1, HASH)
        for at, shape in enumerate(shapes)
    ]
    return asdict(manifests.columns(placed)[2])


def rank(*shapes: tuple[int, ...], **changes: Any) -> RankColumns:
    names = [f"t{at}" for at in range(len(shapes))]
    return RankColumns(0, 2, 1, names, ["U8"], of_json(listed(*shapes)) | changes)


def test_rows_have_the_columns_of_the_table() -> None:
    assert {field.name for field in fields(Rows)} == {"present", *(column.name for column in COLUMNS)}


def test_manifests_list_the_columns_that_the_table_says_they_list() -> None:
    assert {field.name for field in fields(manifests.Columns)} == {column.name for column in GIVEN}
    assert {column.name: column.absent for column in GEOMETRY} == manifests.ABSENT


def test_lists_and_arrays_give_the_same_columns() -> None:
    from_lists, from_arrays = of_json(listed((3, 4), (5,))), of_json(with_arrays(listed((3, 4), (5,))))
    assert from_lists.keys() == from_arrays.keys()
    assert all(np.array_equal(from_lists[name], from_arrays[name]) for name in from_lists)
    assert from_lists["global_shape"].tolist() == [[3, 5], [4, 1]]
    assert from_lists["xxh3_128"].tobytes() == bytes.fromhex(HASH) * 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": None}, "a column is not a list"),
        ({"xxh3_128": None}, "a column is not a list"),
        ({"xxh3_128": [HASH[:30] + "  "]}, "32 hexadecimal digits"),
        ({"begin": [True]}, "column begin holds something else than integers"),
        ({"global_shape": [3]}, "a dimension of column global_shape is not a list"),
        ({"surplus": [1]}, "hold one that is not known"),
    ],
)
def test_a_column_of_another_form_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        of_json(listed((3,)) | change)


def test_columns_that_are_missing_are_named() -> None:
    columns = listed((3,))
    del columns["ndim"], columns["xxh3_128"]
    with pytest.raises(ValueError, match="columns lack ndim, xxh3_128"):
        of_json(columns)


def test_six_dimensions_are_too_many() -> None:
    six = {column.name: [[column.absent]] * 6 for column in GEOMETRY}
    with pytest.raises(ValueError, match="not 1 to 5"):
        of_json(listed((3,)) | six)


def test_ranks_of_other_dimensions_are_joined_by_what_is_absent() -> None:
    parts = [rank((3,)), rank((4, 5), ())]
    found = {c.name: join(c, [part.arrays[c.name] for part in parts]).tolist() for c in GEOMETRY}
    assert found == {
        "global_shape": [[3, 4, 1], [1, 5, 1]],
        "local_shape": [[3, 4, 1], [1, 5, 1]],
        "global_offset": [[0, 0, 0], [0, 0, 0]],
    }


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("name", 1, "column name points outside its list"),
        ("file", -2, "column file leaves its range"),
        ("begin", 1 << 62, "column begin leaves its range"),
        ("owner", 2, "an owner is not a rank of this world"),
    ],
)
def test_a_number_that_cannot_be_is_named_by_its_column(column: str, value: int, reason: str) -> None:
    spoiled = rank((3,), **{column: np.array([value])})
    check_ranges(rank((3,)).arrays, [rank((3,))])
    with pytest.raises(ValueError, match=reason):
        check_ranges(spoiled.arrays, [spoiled])


def test_a_limit_is_that_of_the_row_s_own_rank() -> None:
    long, short = rank((3,), (4,)), rank((3,), name=np.array([1]))
    joined = {c.name: join(c, [part.arrays[c.name] for part in (long, short)]) for c in GIVEN}
    with pytest.raises(ValueError, match="column name points outside its list"):
        check_ranges(joined, [long, short])


def test_a_dimension_that_a_rectangle_lacks_holds_what_is_absent() -> None:
    spoiled = rank((3,), global_offset=np.array([[0], [1]]), global_shape=np.array([[3], [1]]),
                   local_shape=np.array([[3], [1]]))  # fmt: skip
    with pytest.raises(ValueError, match="column global_offset gives rectangles a dimension that they lack"):
        check_ranges(spoiled.arrays, [spoiled])
