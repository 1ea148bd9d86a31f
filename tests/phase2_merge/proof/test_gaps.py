"""What overlaps and what is missing, in boxes written by hand."""

from __future__ import annotations

import pytest

from shardmerge.phase2_merge.proof.tensors import gaps


def test_missing_rows_are_one_box() -> None:
    assert gaps.missing([((0, 0), (2, 4)), ((4, 0), (2, 4))], (6, 4)) == (((2, 0), (2, 4)),)


def test_a_missing_corner_is_one_box() -> None:
    boxes = [((0, 0), (2, 2)), ((0, 2), (2, 2)), ((2, 0), (2, 2))]
    assert gaps.missing(boxes, (4, 4)) == (((2, 2), (2, 2)),)


def test_two_missing_columns_are_two_boxes() -> None:
    boxes = [((0, 1), (4, 2)), ((0, 4), (4, 1))]
    assert gaps.missing(boxes, (4, 5)) == (((0, 0), (4, 1)), ((0, 3), (4, 1)))


def test_nothing_is_missing_from_a_whole() -> None:
    assert gaps.missing([((0, 0), (4, 4))], (4, 4)) == ()


def test_a_grid_too_fine_to_describe_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaps, "MAX_CELLS", 3)
    assert gaps.missing([((0, 0), (1, 1)), ((2, 2), (1, 1))], (4, 4)) is None


def test_the_first_overlap_is_named_by_position() -> None:
    assert gaps.overlapping([((4,), (4,)), ((0,), (5,)), ((8,), (1,))]) == (0, 1)


def test_neighbours_do_not_overlap() -> None:
    assert gaps.overlapping([((0, 0), (2, 4)), ((2, 0), (2, 4)), ((4, 0), (1, 4))]) is None


def test_two_scalars_overlap() -> None:
    assert gaps.overlapping([((), ()), ((), ())]) == (0, 1)


def test_boxes_far_apart_in_the_first_dimension_but_long_still_meet() -> None:
    assert gaps.overlapping([((0, 0), (9, 1)), ((1, 1), (1, 1)), ((8, 0), (1, 2))]) == (0, 2)


def test_show_counts_what_it_leaves_out() -> None:
    assert gaps.show([((i,), (1,)) for i in range(6)]) == "[0:1], [1:2], [2:3], [3:4] and 2 more"
