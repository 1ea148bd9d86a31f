"""Signed corners against counting every element in a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardmerge.phase2_merge.proof.tensors import tiling
from shardmerge.phase2_merge.proof.tensors.tiling import outside, untiled
from tests.dumps.dumps import grid

Boxes = Sequence[tuple[int, tuple[int, ...], tuple[int, ...]]]  # tensor, offset, shape


def columns(boxes: Boxes, dims: int) -> tuple[Any, list[Any], list[Any]]:
    tensor = np.array([box[0] for box in boxes], np.int64)
    offset = [np.array([box[1][d] for box in boxes], np.int64) for d in range(dims)]
    return tensor, offset, [np.array([box[2][d] for box in boxes], np.int64) for d in range(dims)]


def ask(boxes: Boxes, wholes: Sequence[tuple[int, ...]]) -> list[int]:
    dims = len(wholes[0])
    whole = [np.array([of[d] for of in wholes], np.int64) for d in range(dims)]
    found: list[int] = untiled(*columns(boxes, dims), whole).tolist()
    return found


def counted(boxes: Boxes, wholes: Sequence[tuple[int, ...]]) -> list[int]:
    """The same answer from one counter per element."""
    masks = [np.zeros(of, int) for of in wholes]
    for tensor, offset, shape in boxes:
        masks[tensor][tuple(slice(a, a + n) for a, n in zip(offset, shape, strict=True))] += 1
    named = {box[0] for box in boxes}
    return [i for i, mask in enumerate(masks) if i in named and (mask != 1).any()]


def test_halves_tile() -> None:
    assert ask([(0, (0, 0), (2, 4)), (0, (2, 0), (2, 4))], [(4, 4)]) == []


def test_a_missing_middle_piece_is_found() -> None:
    assert ask([(0, (0, 0), (2, 4)), (0, (4, 0), (2, 4))], [(6, 4)]) == [0]


def test_a_missing_last_piece_is_found() -> None:
    assert ask([(0, (0, 0), (2, 4)), (0, (2, 0), (2, 4))], [(6, 4)]) == [0]


def test_a_gap_as_large_as_an_overlap_is_found() -> None:
    assert ask([(0, (0,), (4,)), (0, (3,), (4,))], [(8,)]) == [0]


def test_a_piece_written_twice_is_found() -> None:
    assert ask([(0, (0,), (4,)), (0, (0,), (4,)), (0, (4,), (4,))], [(8,)]) == [0]


def test_an_entire_tensor_written_twice_is_found() -> None:
    assert ask([(0, (0, 0), (4, 4)), (0, (0, 0), (4, 4)), (1, (0, 0), (2, 2))], [(4, 4), (2, 2)]) == [0]


def test_a_pinwheel_of_five_tiles() -> None:
    pinwheel = [((0, 0), (1, 2)), ((0, 2), (2, 1)), ((2, 1), (1, 2)), ((1, 0), (2, 1)), ((1, 1), (1, 1))]
    assert ask([(0, *box) for box in pinwheel], [(3, 3)]) == []


def test_three_dimensions_cut_along_two() -> None:
    cells = grid((4, 6, 3), [[1], [2, 4], []])
    assert ask([(0, *cell) for cell in cells], [(4, 6, 3)]) == []
    assert ask([(0, *cell) for cell in cells[:-1]], [(4, 6, 3)]) == [0]


def test_only_the_broken_tensor_is_named() -> None:
    boxes = [(0, (0,), (4,)), (1, (0,), (2,)), (2, (0,), (2,)), (2, (2,), (2,))]
    assert ask(boxes, [(4,), (4,), (4,)]) == [1]


def test_no_rectangles_are_no_failure() -> None:
    empty = np.zeros(0, np.int64)
    assert untiled(empty, [empty], [empty], [np.array([4])]).tolist() == []


def test_batches_never_divide_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "BATCH_ROWS", 2)
    boxes = [(tensor, (at,), (1,)) for tensor in range(3) for at in range(5) if (tensor, at) != (1, 3)]
    assert ask(boxes, [(5,)] * 3) == [1]


@st.composite
def pictures(draw: st.DrawFn) -> tuple[Boxes, list[tuple[int, ...]]]:
    """Tensors cut into grids, then some cells lost, doubled or moved."""
    dims = draw(st.integers(1, 3))
    wholes = draw(st.lists(st.tuples(*[st.integers(1, 5)] * dims), min_size=1, max_size=3))
    boxes = []
    for tensor, whole in enumerate(wholes):
        edges = [draw(st.sets(st.integers(1, size), max_size=2)) for size in whole]
        boxes += [(tensor, *cell) for cell in grid(whole, [sorted(e) for e in edges])]
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(boxes) - 1))
        tensor, _, shape = boxes[at]
        moved = tuple(
            draw(st.integers(0, whole - size)) for whole, size in zip(wholes[tensor], shape, strict=True)
        )
        boxes += draw(st.sampled_from([[], [boxes[at]] * 2, [(tensor, moved, shape)]]))
        del boxes[at]
        if not boxes:
            break
    return boxes, wholes


@settings(max_examples=150, deadline=None)
@given(pictures())
def test_corners_agree_with_counting(picture: tuple[Boxes, list[tuple[int, ...]]]) -> None:
    boxes, wholes = picture
    if boxes:
        assert ask(boxes, wholes) == counted(boxes, wholes)


def test_rectangles_outside_are_found_without_overflow() -> None:
    huge = (1 << 62) - 1
    boxes = [(0, (0,), (4,)), (0, (1,), (4,)), (0, (-1,), (2,)), (0, (huge,), (huge,)), (0, (4,), (0,))]
    _, offset, local = columns(boxes, 1)
    assert outside(offset, local, [np.full(5, 4)]).tolist() == [False, True, True, True, False]
