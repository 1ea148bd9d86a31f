"""Experts packed in one tensor: ranges written out by hand, and the values that blocks hold, in every form."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from shardmerge.common.architectures import Claim, Layout, Tensor
from shardmerge.common.architectures.rows import Row
from shardmerge.common.errors import MismatchError
from shardmerge.common.rectangle import Rectangle
from shardmerge.phase1_dump.rectangles.layouts import pieces_of
from shardmerge.phase1_dump.rectangles.layouts.box import Box, Piece, Turn
from shardmerge.phase1_dump.rectangles.parts import Part, Recipe, bounds, fills_bounds, join
from shardmerge.phase1_dump.source import Holding
from shardmerge.phase1_dump.sources.blocks import blocks_of

EXPERTS, WIDTH, HIDDEN = 3, 4, 6
SIZES = {"width": WIDTH}
# [transposed, interleaved] -> shape of the tensor of gate and up of all experts
GATE_UP = {
    (False, False): (EXPERTS, 2 * WIDTH, HIDDEN),
    (False, True): (EXPERTS, 2 * WIDTH, HIDDEN),
    (True, False): (EXPERTS, HIDDEN, 2 * WIDTH),
    (True, True): (EXPERTS, HIDDEN, 2 * WIDTH),
}


def pieces(
    box: Box, expert: int, part: int, *, transposed: bool, interleaved: bool, shape: tuple[int, ...]
) -> list[Piece]:
    row = Row(
        ("key",),
        (),
        Layout.PACKED,
        sections=("width", "width"),
        part=part,
        transposed=transposed,
        interleaved=interleaved,
    )
    return list(pieces_of(box, Claim(row, (Tensor("packed", shape, False),), 0, expert), SIZES))


@pytest.mark.parametrize(
    ("transposed", "interleaved", "offset", "shape", "turn"),
    [
        # rows 2 and 3 of up, which begins at row 4
        (False, False, (2, 6, 0), (1, 2, 6), Turn((None, 0, 1), (1, 1, 1))),
        # row i of up is row 2 i + 1
        (False, True, (2, 5, 0), (1, 2, 6), Turn((None, 0, 1), (1, 2, 1))),
        (True, False, (2, 0, 6), (1, 6, 2), Turn((None, 1, 0), (1, 1, 1))),
        (True, True, (2, 0, 5), (1, 6, 2), Turn((None, 1, 0), (1, 1, 2))),
    ],
)
def test_the_second_half_of_up_at_etp_2(
    transposed: bool, interleaved: bool, offset: tuple[int, ...], shape: tuple[int, ...], turn: Turn
) -> None:
    whole = GATE_UP[transposed, interleaved]
    box = Box((WIDTH, HIDDEN), (2, 0), (2, HIDDEN))
    (piece,) = pieces(box, 2, 1, transposed=transposed, interleaved=interleaved, shape=whole)
    assert (piece.offset, piece.source, piece.shape, piece.turn) == (offset, (0, 0), shape, turn)


def test_the_second_half_of_a_down_projection() -> None:
    """Its columns are cut; transposed, they are rows."""
    box = Box((HIDDEN, WIDTH), (0, 2), (HIDDEN, 2))
    for transposed, shape, offset, extent in (
        (False, (EXPERTS, HIDDEN, WIDTH), (1, 0, 2), (1, 6, 2)),
        (True, (EXPERTS, WIDTH, HIDDEN), (1, 2, 0), (1, 2, 6)),
    ):
        row = Row(("key",), (), Layout.PACKED, transposed=transposed)
        (piece,) = pieces_of(box, Claim(row, (Tensor("down", shape, False),), 0, 1), SIZES)
        assert (piece.offset, piece.shape) == (offset, extent)


def test_a_bias_of_gate_and_up_that_alternate() -> None:
    row = Row(("key",), (), Layout.PACKED, sections=("width", "width"), part=1, interleaved=True)
    tensor = Tensor("bias", (EXPERTS, 2 * WIDTH), False)
    (piece,) = pieces_of(Box((WIDTH,), (2,), (2,)), Claim(row, (tensor,), 0, 2), SIZES)
    assert (piece.offset, piece.shape, piece.turn) == ((2, 5), (1, 2), Turn((None, 0), (1, 2)))


def test_another_width_is_a_mismatch() -> None:
    with pytest.raises(MismatchError):
        pieces(
            Box((WIDTH + 1, HIDDEN), (0, 0), (WIDTH + 1, HIDDEN)),
            0,
            0,
            transposed=False,
            interleaved=False,
            shape=GATE_UP[False, False],
        )


def held(first: int, count: int, *, transposed: bool, interleaved: bool) -> tuple[list[Part], torch.Tensor]:
    """Parts of a rank with the rows `first` and following of gate and up of experts 1 and 2; and the tensor of all."""
    shape = GATE_UP[transposed, interleaved]
    gate, up = torch.arange(2 * EXPERTS * WIDTH * HIDDEN, dtype=torch.float32).view(2, EXPERTS, WIDTH, HIDDEN)
    both = torch.stack((gate, up), 2).flatten(1, 2) if interleaved else torch.cat((gate, up), 1)
    parts = []
    for expert in (1, 2):
        for number, weight in enumerate((gate, up)):
            live = weight[expert, first : first + count].clone()
            box = Box((WIDTH, HIDDEN), (first, 0), (count, HIDDEN))
            (piece,) = pieces(
                box, expert, number, transposed=transposed, interleaved=interleaved, shape=shape
            )
            parts.append(Part(live, piece.source, piece.offset, piece.shape, piece.turn))
    return parts, both.transpose(1, 2) if transposed else both


@pytest.mark.parametrize("max_bytes", [1, 50, 10_000])
@pytest.mark.parametrize(("first", "count"), [(0, 4), (2, 2), (1, 1)])
@pytest.mark.parametrize(("transposed", "interleaved"), GATE_UP)
def test_blocks_hold_what_the_tensor_holds(
    transposed: bool, interleaved: bool, first: int, count: int, max_bytes: int
) -> None:
    parts, whole = held(first, count, transposed=transposed, interleaved=interleaved)
    groups = list(join(parts))
    assert all(map(fills_bounds, groups))
    written = torch.full_like(whole, -1)
    for holding in holdings(groups, tuple(whole.shape)):
        box = holding.rectangle
        place = tuple(slice(at, at + n) for at, n in zip(box.global_offset, box.local_shape, strict=True))
        found = torch.cat(list(blocks_of(holding, max_bytes)))
        assert (written[place] == -1).all()
        written[place] = found.view(box.local_shape)
    rows = written.transpose(1, 2) if transposed else written
    wanted = whole.transpose(1, 2) if transposed else whole
    step, apart = (2, 1) if interleaved else (1, WIDTH)
    mine = [step * row + apart * part for row in range(first, first + count) for part in (0, 1)]
    assert torch.equal(rows[1:, mine], wanted[1:, mine])
    others = [row for row in range(2 * WIDTH) if row not in mine]
    assert (rows[0] == -1).all()
    assert (rows[:, others] == -1).all()


def holdings(groups: list[list[Part]], shape: tuple[int, ...]) -> Iterator[Holding]:
    for group in groups:
        offset, extent = bounds(group)
        yield Holding(Rectangle("packed", "F32", shape, offset, extent), (0,), Recipe(tuple(group)))


def test_rows_that_alternate_are_one_rectangle_and_sections_are_two() -> None:
    alternate, _ = held(2, 2, transposed=False, interleaved=True)
    assert [bounds(group) for group in join(alternate)] == [((1, 4, 0), (2, 4, 6))]
    sections, _ = held(2, 2, transposed=False, interleaved=False)
    assert [bounds(group) for group in join(sections)] == [((1, 2, 0), (2, 2, 6)), ((1, 6, 0), (2, 2, 6))]
    whole, _ = held(0, 4, transposed=True, interleaved=True)
    assert [bounds(group) for group in join(whole)] == [((1, 0, 0), (2, 6, 8))]


def test_one_of_two_that_alternate_fills_no_box() -> None:
    parts, _ = held(0, 4, transposed=False, interleaved=True)
    groups = list(join(parts[:1]))
    assert [fills_bounds(group) for group in groups] == [False]


def test_what_is_narrowed_is_counted_where_it_lies() -> None:
    parts, _ = held(2, 2, transposed=True, interleaved=True)
    assert [part.source_shape for part in parts] == [(2, 6)] * 4
