"""Geometry by hand: where rows of fused, padded and plain Megatron tensors land in Hugging Face tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from shardmerge.common.architectures import Claim, Layout, Tensor, blueprint
from shardmerge.common.architectures.rows import Row
from shardmerge.common.errors import MismatchError
from shardmerge.common.reference import read_config
from shardmerge.phase1_dump.rectangles.layouts import LAYOUTS, pieces_of
from shardmerge.phase1_dump.rectangles.layouts.box import Box, Piece
from shardmerge.phase1_dump.sources.megatron_config import ATTRIBUTES
from tests.phase1_dump.conftest import References
from tests.worlds.families import FAMILIES, Family

# 4 heads in 2 groups, 3 rows a head. Fused rows:  0-5 q, 6-8 k, 9-11 v | 12-17 q, 18-20 k, 21-23 v
HEADS = {"heads": 4, "groups": 2, "head_dim": 3}
Q, K, V = Tensor("q", (12, 5), False), Tensor("k", (6, 5), False), Tensor("v", (6, 5), False)
# sections of a Mamba projection: z 0-7, x 8-15, B 16-21, C 22-27, dt 28-31
SECTIONS, IN_PROJ = {"z": 8, "x": 8, "B": 6, "C": 6, "dt": 4}, Tensor("in_proj", (32, 5), False)
EMBEDDING = Tensor("embed", (211, 72), False)

Sizes = Mapping[str, int]
Rows = list[tuple[str, int, int, int]]  # tensor, first row there, first row in the box, number of rows


def mapped(
    layout: Layout, box: Box, tensors: Sequence[Tensor], dimensions: Sizes, number: int = 0
) -> list[Piece]:
    """The pieces of a box; `number` is that of a section, whose sizes are then all `dimensions`."""
    row = Row(("key",), (), layout, sections=tuple(dimensions), part=number)
    return list(pieces_of(box, Claim(row, tuple(tensors), None, None), dimensions))


def same(box: Box, tensor: Tensor) -> list[Piece]:
    return mapped(Layout.SAME, box, [tensor], {})


def vocab(box: Box, tensor: Tensor) -> list[Piece]:
    return mapped(Layout.VOCAB, box, [tensor], {})


def qkv(box: Box, tensors: Sequence[Tensor], heads: Sizes) -> list[Piece]:
    return mapped(Layout.QKV, box, tensors, heads)


def section(box: Box, tensor: Tensor, sections: Sizes, number: int) -> list[Piece]:
    return mapped(Layout.PART, box, [tensor], sections, number)


def lifted(box: Box, tensor: Tensor) -> list[Piece]:
    return mapped(Layout.LIFTED, box, [tensor], {})


def rows(pieces: Iterable[Piece]) -> Rows:
    return [(piece.tensor.name, piece.offset[0], piece.source[0], piece.shape[0]) for piece in pieces]


def fused(first: int, count: int) -> Rows:
    pieces = qkv(Box((24, 5), (first, 0), (count, 5)), (Q, K, V), HEADS)
    assert all(
        (piece.offset[1:], piece.source[1:], piece.shape[1:]) == ((0,), (0,), (5,)) for piece in pieces
    )
    return rows(pieces)


def test_an_uncut_qkv_comes_apart_group_by_group() -> None:
    assert fused(0, 24) == [
        ("q", 0, 0, 6), ("k", 0, 6, 3), ("v", 0, 9, 3),
        ("q", 6, 12, 6), ("k", 3, 18, 3), ("v", 3, 21, 3),
    ]  # fmt: skip


def test_a_cut_between_groups_gives_each_rank_its_groups() -> None:
    assert fused(12, 12) == [("q", 6, 0, 6), ("k", 3, 6, 3), ("v", 3, 9, 3)]


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        (0, [("q", 0, 0, 6)]),
        (1, [("k", 0, 0, 3), ("v", 0, 3, 3)]),
        (2, [("q", 6, 0, 6)]),
        (3, [("k", 3, 0, 3), ("v", 3, 3, 3)]),
    ],
)
def test_fewer_groups_than_ranks_cut_inside_a_group(rank: int, expected: Rows) -> None:
    assert fused(6 * rank, 6) == expected


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        (0, [("q", 0, 0, 6), ("k", 0, 6, 2)]),
        (1, [("k", 2, 0, 1), ("v", 0, 1, 3), ("q", 6, 4, 4)]),
        (2, [("q", 10, 0, 2), ("k", 3, 2, 3), ("v", 3, 5, 3)]),
    ],
)
def test_three_ranks_cut_inside_a_head(rank: int, expected: Rows) -> None:
    assert fused(8 * rank, 8) == expected


# of one tensor that stays fused: queries 0-11, keys 12-17, values 18-23
ONE = Tensor("qkv", (24, 5), False)


@pytest.mark.parametrize(
    ("first", "count", "expected"),
    [
        # both groups, which tensor parallelism of 2 gives to a rank each
        (0, 12, [("qkv", 0, 0, 6), ("qkv", 12, 6, 3), ("qkv", 18, 9, 3)]),
        (12, 12, [("qkv", 6, 0, 6), ("qkv", 15, 6, 3), ("qkv", 21, 9, 3)]),
        # the second of three ranks: the last row of a key, its value, the first of the next group's queries
        (8, 8, [("qkv", 14, 0, 1), ("qkv", 18, 1, 3), ("qkv", 6, 4, 4)]),
    ],
)
def test_one_tensor_of_queries_keys_and_values_has_all_queries_first(
    first: int, count: int, expected: Rows
) -> None:
    pieces = mapped(Layout.FUSED_QKV, Box((24, 5), (first, 0), (count, 5)), [ONE], HEADS)

    assert rows(pieces) == expected
    assert {(piece.offset[1:], piece.source[1:], piece.shape[1:]) for piece in pieces} == {((0,), (0,), (5,))}


def test_one_tensor_of_other_heads_is_a_mismatch() -> None:
    with pytest.raises(MismatchError, match=r"qkv: shape in the model is \[30, 5\], expected \[24, 5\]"):
        mapped(Layout.FUSED_QKV, Box((30, 5), (0, 0), (30, 5)), [ONE], HEADS)


def test_a_bias_follows_the_rows_of_its_weight() -> None:
    tensors = [Tensor(name, (size,), False) for name, size in (("q", 12), ("k", 6), ("v", 6))]

    pieces = qkv(Box((24,), (8,), (8,)), tensors, HEADS)

    assert rows(pieces) == [("k", 2, 0, 1), ("v", 0, 1, 3), ("q", 6, 4, 4)]
    assert {len(piece.shape) for piece in pieces} == {1}


def test_every_head_its_own_group_interleaves_q_k_and_v() -> None:
    tensors = [Tensor(name, (4, 5), False) for name in "qkv"]

    found = rows(qkv(Box((12, 5), (0, 0), (12, 5)), tensors, {"heads": 2, "groups": 2, "head_dim": 2}))

    assert found == [
        ("q", 0, 0, 2),
        ("k", 0, 2, 2),
        ("v", 0, 4, 2),
        ("q", 2, 6, 2),
        ("k", 2, 8, 2),
        ("v", 2, 10, 2),
    ]


def test_a_qkv_of_other_heads_is_a_mismatch_that_says_got_and_expected() -> None:
    with pytest.raises(MismatchError) as caught:
        qkv(Box((30, 5), (0, 0), (30, 5)), (Q, K, V), HEADS)

    assert (caught.value.tensor, caught.value.got) == ("q", "[30, 5]")
    assert caught.value.expected.startswith("[24, 5]")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("rank", "expected"),
    [(0, [("embed", 0, 0, 128)]), (1, [("embed", 128, 0, 83)]), (2, []), (3, [])],
)
def test_rows_beyond_the_vocabulary_are_padding(rank: int, expected: Rows) -> None:
    assert rows(vocab(Box((512, 72), (128 * rank, 0), (128, 72)), EMBEDDING)) == expected


def test_a_vocabulary_that_ends_with_a_shard_leaves_the_next_one_empty() -> None:
    exact = Tensor("embed", (128, 72), False)

    assert rows(vocab(Box((256, 72), (0, 0), (128, 72)), exact)) == [("embed", 0, 0, 128)]
    assert rows(vocab(Box((256, 72), (128, 0), (128, 72)), exact)) == []


def test_a_vocabulary_without_padding_is_taken_as_it_is() -> None:
    assert rows(vocab(Box((211, 72), (0, 0), (211, 72)), EMBEDDING)) == [("embed", 0, 0, 211)]


@pytest.mark.parametrize("shape", [(200, 72), (256, 64)])
def test_an_embedding_of_other_size_is_a_mismatch(shape: tuple[int, int]) -> None:
    with pytest.raises(MismatchError) as caught:
        vocab(Box(shape, (0, 0), shape), EMBEDDING)

    assert (caught.value.tensor, caught.value.got) == ("embed", str(list(shape)))
    assert "72]" in caught.value.expected


def test_a_plain_tensor_stays_where_it_is() -> None:
    down = Tensor("down", (72, 40), False)

    assert same(Box((72, 40), (0, 20), (72, 20)), down) == [Piece(down, (0, 20), (0, 0), (72, 20))]


def test_a_transposed_tensor_is_a_mismatch() -> None:
    with pytest.raises(MismatchError, match=r"down: shape in the model is \[40, 72\], expected \[72, 40\]"):
        same(Box((40, 72), (0, 0), (40, 72)), Tensor("down", (72, 40), False))


@pytest.mark.parametrize(
    ("number", "offset", "count", "first"),
    [(0, 0, 8, 0), (1, 4, 4, 12), (2, 3, 3, 19), (3, 0, 6, 22), (4, 2, 2, 30)],
)
def test_a_section_lies_behind_those_before_it(number: int, offset: int, count: int, first: int) -> None:
    box = Box((list(SECTIONS.values())[number], 5), (offset, 0), (count, 5))

    assert section(box, IN_PROJ, SECTIONS, number) == [Piece(IN_PROJ, (first, 0), (0, 0), (count, 5))]


def test_a_section_of_a_convolution_keeps_its_other_dimensions() -> None:
    tensor = Tensor("conv1d", (20, 1, 4), False)

    found = section(Box((6, 1, 4), (3, 0, 0), (3, 1, 4)), tensor, {"x": 8, "B": 6, "C": 6}, 1)

    assert found == [Piece(tensor, (11, 0, 0), (0, 0, 0), (3, 1, 4))]


def test_a_section_of_other_size_is_a_mismatch_that_says_got_and_expected() -> None:
    with pytest.raises(MismatchError, match=r"in_proj: shape in the model is \[8, 5\], expected \[6, 5\]"):
        section(Box((8, 5), (0, 0), (8, 5)), IN_PROJ, SECTIONS, 2)


def test_every_layout_of_a_table_has_its_rules() -> None:
    assert LAYOUTS.keys() == set(Layout)


def test_every_dimension_that_a_layout_needs_is_compared_with_the_model() -> None:
    assert {name for rules in LAYOUTS.values() for name in rules.dimensions} <= ATTRIBUTES.keys()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_table_knows_the_dimensions_that_its_layouts_need(family: Family, references: References) -> None:
    table = blueprint(read_config(references.config(family.name)))

    assert all(set(LAYOUTS[row.layout].dimensions) <= table.dimensions.keys() for row in table.rows)


def test_a_lifted_tensor_has_one_place_in_its_first_dimension() -> None:
    (piece,) = lifted(Box((8,), (6,), (2,)), Tensor("bias", (1, 8), True))

    assert (piece.source, piece.offset, piece.shape) == ((0,), (0, 6), (1, 2))
    assert piece.turn is not None
    assert piece.turn.axes == (None, 0)
    with pytest.raises(MismatchError, match=r"is \[1, 8\], expected \[2, 8\]"):
        lifted(Box((8,), (0,), (8,)), Tensor("bias", (2, 8), True))


def test_the_layout_of_the_page_maps_rows_by_hand() -> None:
    """docs/contribute/layout.md, as written: of seven rows, four of one tensor and three of another."""
    page = Path(__file__).parents[3] / "docs" / "contribute" / "layout.md"
    (block,) = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    made: dict[str, Any] = {}
    exec(compile(block, str(page), "exec"), made)
    first, second = Tensor("first", (4, 6), False), Tensor("second", (3, 6), False)
    claim = Claim(Row(("key",), ()), (first, second), None, None)
    # the middle rank of three: row 3 of the first, then two rows of the second; columns 2 to 4 of a cut of these
    found = list(made["STACKED"].pieces(Box((7, 6), (3, 2), (3, 2)), claim, {}))
    assert found == [Piece(first, (3, 2), (0, 0), (1, 2)), Piece(second, (0, 2), (1, 0), (2, 2))]
    whole = list(made["STACKED"].pieces(Box((7, 6), (0, 0), (4, 6)), claim, {}))
    assert whole == [Piece(first, (0, 0), (0, 0), (4, 6))]
