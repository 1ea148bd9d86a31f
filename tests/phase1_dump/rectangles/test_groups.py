"""Rows that go group by group, by hand: gated attention and Gated DeltaNets, from keys to published tensors."""

from __future__ import annotations

from typing import Any

import pytest

from shardmerge.common.architectures import Claim, Layout, Tensor, blueprint
from shardmerge.common.architectures.rows import Row
from shardmerge.common.errors import MismatchError
from shardmerge.phase1_dump.rectangles.layouts import pieces_of
from shardmerge.phase1_dump.rectangles.layouts.box import Box, Piece

Rows = list[tuple[str, int, int, int]]  # tensor, first row there, first row in the box, number of rows

# 4 heads in 2 groups, 3 rows a head. Fused rows of a group: 0-2 3-5 queries, 6-8 9-11 gates, 12-14 key, 15-17 value.
# Rows of the tensor of queries: 0-2 of the first head, 3-5 its gate, 6-8 of the second, 9-11 its gate, and so on.
HEADS = {"heads": 4, "groups": 2, "head_dim": 3}
Q, K, V = Tensor("q", (24, 5), False), Tensor("k", (6, 5), False), Tensor("v", (6, 5), False)

# 2 heads of keys with 3 channels, 4 heads of values with 2: each head of keys has 3 + 3 + 4 + 4 rows, and 2 + 2
CONFIG: dict[str, Any] = {
    "hidden_size": 5, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 3,
    "intermediate_size": 11, "vocab_size": 24, "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 3, "linear_value_head_dim": 2,
    "linear_conv_kernel_dim": 4, "num_experts": 3, "moe_intermediate_size": 7, "shared_expert_intermediate_size": 9,
}  # fmt: skip
NEXT, DENSE = ({**CONFIG, "architectures": [name]} for name in ("Qwen3NextForCausalLM", "Qwen3_5ForCausalLM"))
SIZES = {"query": 6, "key": 6, "value": 8, "z": 8, "beta": 4, "alpha": 4}


def rows(pieces: list[Piece]) -> Rows:
    """Of pieces that differ from the box in rows only."""
    assert all(piece.offset[1:] == piece.source[1:] and piece.turn is None for piece in pieces)
    return [
        (piece.tensor.name.rpartition("linear_attn.")[2], piece.offset[0], piece.source[0], piece.shape[0])
        for piece in pieces
    ]


def gated(first: int, count: int, *, alternate: bool = False) -> Rows:
    row = Row(("key",), (), Layout.GATED_QKV, interleaved=alternate)
    box = Box((36, 5), (first, 0), (count, 5))
    return rows(list(pieces_of(box, Claim(row, (Q, K, V), None, None), HEADS)))


def delta(config: dict[str, Any], tensor: str, part: str, rank: int, size: int) -> Rows:
    """Where a rank's share of a part lands; a convolution has two more dimensions."""
    table = blueprint(config)
    claim = table.claim(f"decoder.layers.0.self_attention.{tensor}.{part}")
    assert claim is not None
    whole, others = SIZES[part], (1, 4) if tensor.startswith("conv1d") else (5,)
    share = whole // size
    box = Box((whole, *others), (rank * share, *(0 for _ in others)), (share, *others))
    pieces = list(pieces_of(box, claim, table.dimensions))
    assert all(piece.shape[1:] == others for piece in pieces)
    return rows(pieces)


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        (0, [("q", 0, 0, 3), ("q", 6, 3, 3), ("q", 3, 6, 3), ("q", 9, 9, 3), ("k", 0, 12, 3), ("v", 0, 15, 3)]),
        (1, [("q", 12, 0, 3), ("q", 18, 3, 3), ("q", 15, 6, 3), ("q", 21, 9, 3), ("k", 3, 12, 3), ("v", 3, 15, 3)]),
    ],
)  # fmt: skip
def test_two_ranks_have_a_group_each_and_gates_go_behind_their_queries(rank: int, expected: Rows) -> None:
    assert gated(18 * rank, 18) == expected


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        (0, [("q", 0, 0, 3), ("q", 6, 3, 3), ("q", 3, 6, 3)]),
        (1, [("q", 9, 0, 3), ("k", 0, 3, 3), ("v", 0, 6, 3)]),
        (2, [("q", 12, 0, 3), ("q", 18, 3, 3), ("q", 15, 6, 3)]),
        (3, [("q", 21, 0, 3), ("k", 3, 3, 3), ("v", 3, 6, 3)]),
    ],
)
def test_four_ranks_cut_between_two_gates(rank: int, expected: Rows) -> None:
    assert gated(9 * rank, 9) == expected


def test_a_cut_inside_a_query_and_inside_a_key() -> None:
    assert gated(4, 10) == [("q", 7, 0, 2), ("q", 3, 2, 3), ("q", 9, 5, 3), ("k", 0, 8, 2)]


def test_queries_and_gates_that_alternate_already_stay_as_they_are() -> None:
    assert gated(18, 18, alternate=True) == [("q", 12, 0, 12), ("k", 3, 12, 3), ("v", 3, 15, 3)]
    assert gated(9, 9, alternate=True) == [("q", 9, 0, 3), ("k", 0, 3, 3), ("v", 0, 6, 3)]


def test_a_projection_without_gates_is_a_mismatch_that_says_got_and_expected() -> None:
    row = Row(("key",), (), Layout.GATED_QKV)
    with pytest.raises(MismatchError, match=r"q: shape in the model is \[24, 5\], expected \[36, 5\]"):
        list(pieces_of(Box((24, 5), (0, 0), (24, 5)), Claim(row, (Q, K, V), None, None), HEADS))


@pytest.mark.parametrize(
    ("part", "first", "second"),
    [
        ("query", ("in_proj_qkvz.weight", 0, 0, 3), ("in_proj_qkvz.weight", 14, 0, 3)),
        ("key", ("in_proj_qkvz.weight", 3, 0, 3), ("in_proj_qkvz.weight", 17, 0, 3)),
        ("value", ("in_proj_qkvz.weight", 6, 0, 4), ("in_proj_qkvz.weight", 20, 0, 4)),
        ("z", ("in_proj_qkvz.weight", 10, 0, 4), ("in_proj_qkvz.weight", 24, 0, 4)),
        ("beta", ("in_proj_ba.weight", 0, 0, 2), ("in_proj_ba.weight", 4, 0, 2)),
        ("alpha", ("in_proj_ba.weight", 2, 0, 2), ("in_proj_ba.weight", 6, 0, 2)),
    ],
)
def test_qwen3_next_stacks_what_each_head_of_keys_has(
    part: str, first: tuple[str, int, int, int], second: tuple[str, int, int, int]
) -> None:
    assert delta(NEXT, "in_proj.weight", part, 0, 2) == [first]
    assert delta(NEXT, "in_proj.weight", part, 1, 2) == [second]
    name, at, _, count = second
    assert delta(NEXT, "in_proj.weight", part, 0, 1) == [first, (name, at, count, count)]


@pytest.mark.parametrize(
    ("part", "first", "second"),
    [
        ("query", ("in_proj_qkv.weight", 0, 0, 3), ("in_proj_qkv.weight", 3, 0, 3)),
        ("key", ("in_proj_qkv.weight", 6, 0, 3), ("in_proj_qkv.weight", 9, 0, 3)),
        ("value", ("in_proj_qkv.weight", 12, 0, 4), ("in_proj_qkv.weight", 16, 0, 4)),
        ("z", ("in_proj_z.weight", 0, 0, 4), ("in_proj_z.weight", 4, 0, 4)),
        ("beta", ("in_proj_b.weight", 0, 0, 2), ("in_proj_b.weight", 2, 0, 2)),
        ("alpha", ("in_proj_a.weight", 0, 0, 2), ("in_proj_a.weight", 2, 0, 2)),
    ],
)
def test_qwen3_5_stacks_all_heads(
    part: str, first: tuple[str, int, int, int], second: tuple[str, int, int, int]
) -> None:
    assert delta(DENSE, "in_proj.weight", part, 0, 2) == [first]
    assert delta(DENSE, "in_proj.weight", part, 1, 2) == [second]


@pytest.mark.parametrize("config", [NEXT, DENSE], ids=["next", "dense"])
@pytest.mark.parametrize(("part", "first", "second"), [("query", 0, 3), ("key", 6, 9), ("value", 12, 16)])
def test_a_convolution_stacks_queries_keys_and_values(
    config: dict[str, Any], part: str, first: int, second: int
) -> None:
    share = SIZES[part] // 2
    assert delta(config, "conv1d.weight", part, 0, 2) == [("conv1d.weight", first, 0, share)]
    assert delta(config, "conv1d.weight", part, 1, 2) == [("conv1d.weight", second, 0, share)]


def test_a_cut_inside_a_head_of_keys_is_still_exact() -> None:
    """megatron-core never cuts so, but a box is a box."""
    table = blueprint(NEXT)
    claim = table.claim("decoder.layers.0.self_attention.in_proj.weight.value")
    assert claim is not None
    found = rows(list(pieces_of(Box((8, 5), (3, 0), (3, 5)), claim, table.dimensions)))
    assert found == [("in_proj_qkvz.weight", 9, 0, 1), ("in_proj_qkvz.weight", 20, 1, 2)]
