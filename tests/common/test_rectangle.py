"""Boxes inside tensors."""

from __future__ import annotations

import pytest

from shardmerge.common.dtypes import byte_size
from shardmerge.common.errors import BadInputError
from shardmerge.common.rectangle import Rectangle, intersect, place


def test_a_part_is_keyed_by_its_offsets_and_a_whole_by_its_name() -> None:
    assert Rectangle("w", "BF16", (8, 4), (4, 0), (4, 4)).fragment_key == "w@4,0"
    assert Rectangle("w", "BF16", (8, 4), (0, 0), (8, 4)).fragment_key == "w"
    assert Rectangle("s", "F32", (), (), ()).fragment_key == "s"


def test_sizes_count_the_part() -> None:
    part = Rectangle("w", "F32", (8, 4), (4, 0), (4, 4))
    assert (part.num_elements, part.num_bytes, part.is_whole) == (16, 64, False)


@pytest.mark.parametrize(
    ("offset", "shape"),
    [
        ((5, 0), (4, 4)),
        ((-1, 0), (4, 4)),
        ((0, 0), (4, -1)),
        ((0,), (4,)),
        ((0, 0, 0), (1, 1, 1)),
        ((8, 0), (1, 4)),
    ],
)
def test_a_box_outside_its_tensor_is_refused(offset: tuple[int, ...], shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInputError, match="lies outside"):
        Rectangle("w", "BF16", (8, 4), offset, shape)


def test_an_empty_part_at_the_end_lies_inside() -> None:
    assert Rectangle("w", "BF16", (8, 4), (8, 0), (0, 4)).num_bytes == 0


def test_what_two_boxes_share() -> None:
    assert intersect((0, 0), (4, 4), (2, 3), (4, 4)) == ((2, 3), (2, 1))
    assert intersect((0, 0), (4, 4), (4, 0), (4, 4)) is None
    assert intersect((), (), (), ()) == ((), ())


def test_places_read_as_slices() -> None:
    assert place((0, 32), (64, 16)) == "[0:64, 32:48]"


@pytest.mark.parametrize(
    ("dtype", "shape", "count"),
    [("BF16", (3, 5), 30), ("F4", (2, 4), 4), ("F8_E4M3", (7,), 7), ("F32", (), 4), ("I64", (0, 9), 0)],
)
def test_bytes_of_dense_tensors(dtype: str, shape: tuple[int, ...], count: int) -> None:
    assert byte_size(dtype, shape) == count


def test_an_unknown_dtype_and_half_a_byte_are_refused() -> None:
    with pytest.raises(BadInputError, match="dtype BF17"):
        byte_size("BF17", (1,))
    with pytest.raises(BadInputError, match="ends inside a byte"):
        byte_size("F4", (3,))
