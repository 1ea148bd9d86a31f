"""Blocks of a holding, one after another, are the bytes that torch makes of the same tensor at once."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardmerge.phase1_dump.source import Holding
from shardmerge.phase1_dump.sources.blocks import blocks_of
from tests.phase1_dump.hand_made import DTYPES, box_of, in_parts, numbers, raw, whole


def joined(holding: Holding, max_bytes: int) -> bytes:
    blocks = list(blocks_of(holding, max_bytes))
    assert all(block.ndim == 1 and block.is_contiguous() for block in blocks)
    return b"".join(map(raw, blocks))


def sizes(holding: Holding, max_bytes: int) -> list[int]:
    return [block.numel() * block.itemsize for block in blocks_of(holding, max_bytes)]


def test_blocks_are_as_many_rows_as_fit() -> None:
    assert sizes(whole("t", numbers(10, 8)), 3 * 16) == [48, 48, 48, 16]  # rows of 16 bytes


def test_a_row_larger_than_a_block_is_a_block_of_its_own() -> None:
    tensor = numbers(3, 100)

    assert sizes(whole("t", tensor), 64) == [200, 200, 200]
    assert joined(whole("t", tensor), 64) == raw(tensor)


def test_a_vector_is_cut_anywhere() -> None:
    tensor = numbers(10)

    assert sizes(whole("t", tensor), 6) == [6, 6, 6, 2]
    assert joined(whole("t", tensor), 6) == raw(tensor)


def test_a_scalar_is_one_block() -> None:
    assert joined(whole("t", torch.tensor(1.5), "F32"), 1) == raw(torch.tensor(1.5))


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
def test_an_empty_tensor_has_no_bytes(shape: tuple[int, ...]) -> None:
    assert joined(whole("t", torch.empty(shape, dtype=torch.bfloat16)), 64) == b""


def test_what_is_right_already_is_not_copied() -> None:
    tensor = numbers(10, 8)

    addresses = [block.data_ptr() for block in blocks_of(whole("t", tensor), 32)]

    assert addresses == [tensor.data_ptr() + 32 * number for number in range(5)]


@pytest.mark.parametrize(
    "tensor",
    [numbers(6, 9).t(), numbers(12, 9)[::2], numbers(9, 12)[:, 3:9], numbers(1, 6).expand(9, 6)],
    ids=["transposed", "every second row", "columns", "expanded"],
)
@pytest.mark.parametrize("max_bytes", [1, 40, 1 << 20])
def test_memory_that_is_not_contiguous_is_put_in_order(tensor: torch.Tensor, max_bytes: int) -> None:
    assert not tensor.is_contiguous()
    assert joined(whole("t", tensor), max_bytes) == raw(tensor.clone(memory_format=torch.contiguous_format))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_blocks_are_cast_as_torch_casts(dtype: str, source: torch.dtype) -> None:
    tensor = numbers(7, 5, dtype=source)

    assert joined(whole("t", tensor, dtype), 40) == raw(tensor.to(DTYPES[dtype]))


def test_a_box_inside_a_live_tensor_is_taken_from_where_it_starts() -> None:
    live = numbers(20, 6)

    holding = box_of("t", live, (slice(5, 12), slice(0, 6)), offset=(2, 0), shape=(9, 6))

    assert joined(holding, 24) == raw(live[5:12])


def test_a_block_may_reach_over_several_parts() -> None:
    tensor = numbers(9, 6)
    pieces = [((0, 0), tensor[:2]), ((2, 0), tensor[2:3]), ((3, 0), tensor[3:])]

    assert joined(in_parts("t", pieces), 4 * 12) == raw(tensor)


def test_parts_of_different_dtypes_become_one() -> None:
    low, high = numbers(2, 3, dtype=torch.float32), numbers(2, 3, dtype=torch.float16, seed=1)

    assert joined(in_parts("t", [((0, 0), low), ((2, 0), high)]), 1 << 20) == raw(
        torch.cat([low.to(torch.bfloat16), high.to(torch.bfloat16)])
    )


@st.composite
def tilings(draw: st.DrawFn) -> tuple[tuple[int, int], list[int], list[int]]:
    """A shape and where its rows and columns are cut."""
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    cut_rows = sorted(draw(st.sets(st.integers(1, rows), max_size=3)) | {0, rows})
    cut_columns = sorted(draw(st.sets(st.integers(1, columns), max_size=3)) | {0, columns})
    return (rows, columns), cut_rows, cut_columns


@settings(deadline=None)
@given(tilings(), st.integers(1, 200), st.randoms(use_true_random=False))
def test_any_tiling_in_any_order_gives_the_same_bytes(
    tiling: tuple[tuple[int, int], list[int], list[int]], max_bytes: int, order: Random
) -> None:
    shape, rows, columns = tiling
    tensor = numbers(*shape)
    pieces = [
        ((top, left), tensor[top:bottom, left:right].clone())
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]
    order.shuffle(pieces)

    assert joined(in_parts("t", pieces), max_bytes) == raw(tensor)
