"""Tensors with pieces missing, doubled, shifted, renamed, retyped, padded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from shardmerge.common.errors import (
    MismatchError,
    MissingTensorError,
    OverlapError,
    ProblemsFoundError,
    UncoveredTensorError,
    UnexpectedTensorError,
)
from tests.faults.real.conftest import Victim
from tests.faults.real.rewriting import Change, Written

Make = Callable[[str], Victim]
DOWN = "model.layers.1.mlp.down_proj.weight"


def changing(name: str, **fields: Any) -> Change:
    """Give the rectangle called `name` other fields."""

    def change(one: Written) -> Iterator[Written]:
        yield replace(one, rectangle=replace(one.rectangle, **fields)) if one.rectangle.name == name else one

    return change


def without(pattern: str) -> Change:
    """Leave out tensors whose names match."""
    return lambda one: [] if re.search(pattern, one.rectangle.name) else [one]


def renamed(pattern: str, rename: Callable[[re.Match[str]], str]) -> Change:
    def change(one: Written) -> Iterator[Written]:
        name = re.sub(pattern, rename, one.rectangle.name)
        yield replace(one, rectangle=replace(one.rectangle, name=name))

    return change


@pytest.mark.parametrize(
    ("rank", "missing"),
    [(0, "[0:72, 0:28]"), (1, "[0:72, 28:56]"), (3, "[0:72, 84:112]")],
    ids=["first", "middle", "last"],
)
def test_missing_piece_is_named_by_its_place(victim: Make, rank: int, missing: str) -> None:
    one = victim("pieces")
    one.rewrite([rank], without(DOWN))
    error = one.refused(UncoveredTensorError, 3)
    assert (error.tensor, error.global_shape, error.missing) == (DOWN, (72, 112), missing)
    assert error.ranks == tuple(r for r in range(4) if r != rank)
    assert (error.owed_by, error.where) == ((rank,), f"tp {rank}")
    assert f"Rank {rank} (tp {rank}) should have written it" in error.message()


def test_overlapping_piece_names_both_ranks(victim: Make) -> None:
    one = victim("pieces")

    def wider(written: Written) -> Iterator[Written]:
        yield written
        if written.rectangle.name == DOWN:
            again = replace(written.rectangle, global_offset=(0, 28))
            yield Written(again, bytes(reversed(written.data)))

    one.rewrite([0], wider)
    error = one.refused(OverlapError, 4)
    assert (error.tensor, error.ranks) == (DOWN, (0, 1))
    assert error.rectangles.count("[0:72, 28:56]") == 2


def test_shifted_offset_names_the_two_rectangles(victim: Make) -> None:
    one = victim("pieces")
    one.rewrite([2], changing(DOWN, global_offset=(0, 50)))
    error = one.refused(OverlapError, 4)
    assert (error.tensor, error.ranks) == (DOWN, (1, 2))
    assert error.rectangles == "[0:72, 28:56] and [0:72, 50:78]"


def test_local_expert_ids_instead_of_global_ones_name_experts_and_ranks(victim: Make) -> None:
    """The bug this project exists for: experts 4-7 are written as 0-3 by every rank at ep 1."""
    one = victim("experts")
    one.rewrite([1, 3, 5, 7], renamed(r"(?<=\.experts\.)(\d)", lambda found: str(int(found[1]) - 4)))
    found = one.refused(ProblemsFoundError, 4).problems
    doubled = [error for error in found if isinstance(error, OverlapError)]
    assert len(doubled) == 4 * 4 * 3  # layers x experts x matrices
    first = next(e for e in doubled if e.tensor == "model.layers.0.mlp.experts.0.gate_proj.weight")
    assert len(first.ranks) == 2
    assert {rank % 2 for rank in first.ranks} == {0, 1}
    assert set(first.ranks) <= {0, 1, 2, 3}  # the first stage
    assert first.rectangles == "[0:40, 0:72] and [0:40, 0:72]"
    lost = [error.tensor for error in found if isinstance(error, MissingTensorError)]
    assert len(lost) == 4 * 4 * 3
    assert {int(name.split(".experts.")[1].split(".")[0]) for name in lost} == {4, 5, 6, 7}


def test_wrong_dtype_names_tensor_rank_and_both_dtypes(victim: Make) -> None:
    one = victim("pieces")
    one.rewrite([2], changing(DOWN, dtype="F16"))
    error = one.refused(MismatchError, 4)
    assert (error.tensor, error.what, error.got, error.expected) == (DOWN, "dtype", "F16", "BF16")
    assert error.ranks == (2,)


def test_wrong_shape_names_tensor_rank_and_both_shapes(victim: Make) -> None:
    one = victim("pieces")
    one.rewrite([3], changing(DOWN, global_shape=(72, 116)))
    error = one.refused(MismatchError, 4)
    assert (error.tensor, error.what) == (DOWN, "global_shape")
    assert (error.got, error.expected, error.ranks) == ("[72, 116]", "[72, 112]", (3,))


def test_vocabulary_padding_left_in_names_the_embedding(victim: Make) -> None:
    """211 words, padded to 512 for tp 4: rank 1 has rows 128 to 211, and 45 rows of padding."""
    one = victim("pieces")
    name = "model.embed_tokens.weight"

    def padded(written: Written) -> Iterator[Written]:
        if written.rectangle.name != name:
            yield written
            return
        rectangle = replace(written.rectangle, global_shape=(512, 72), local_shape=(128, 72))
        yield Written(rectangle, written.data.ljust(rectangle.num_bytes, b"\0"))

    one.rewrite([0, 1], padded)
    error = one.refused(MismatchError, 4)
    assert (error.tensor, error.what) == (name, "global_shape")
    assert (error.got, error.expected, error.ranks) == ("[512, 72]", "[211, 72]", (0, 1))


def test_dropped_boundary_layer_names_every_tensor_of_it(victim: Make) -> None:
    """Layer 2 is the first of the second stage."""
    one = victim("experts")
    one.rewrite(range(4, 8), without(r"\.layers\.2\."))
    found = one.refused(ProblemsFoundError, 3).problems
    assert {type(error) for error in found} == {MissingTensorError}
    assert {error.tensor.split(".")[2] for error in found} == {"2"}
    assert len(found) == 4 + 2 + 2 + 1 + 8 * 3  # projections, norms, head norms, router, experts


def test_last_stage_dense_names_what_is_strange_and_what_is_missing(victim: Make) -> None:
    """The last layer has a dense MLP where config.json has experts: as if expert 0 were all there is."""
    one = victim("experts")
    dense = renamed(r"layers\.3\.mlp\.experts\.0\.", lambda _: "layers.3.mlp.")
    others = without(r"layers\.3\.mlp\.(experts\.[1-7]|gate\.)")
    one.rewrite(range(4, 8), lambda w: [new for kept in others(w) for new in dense(kept)])
    found = one.refused(ProblemsFoundError, 4).problems
    strange = [error for error in found if isinstance(error, UnexpectedTensorError)]
    assert sorted(error.tensor for error in strange) == [
        f"model.layers.3.mlp.{matrix}_proj.weight" for matrix in ("down", "gate", "up")
    ]
    assert {rank for error in strange for rank in error.ranks} <= {4, 6}  # ep 0 of the last stage
    assert all(len(error.ranks) == 1 for error in strange)
    lost = {error.tensor for error in found if isinstance(error, MissingTensorError)}
    assert len(lost) == 8 * 3 + 1
    assert "model.layers.3.mlp.gate.weight" in lost
