"""What the dump recorded of the numbers: replicas that differ, NaN, infinities, zeros."""

from __future__ import annotations

from typing import Any

import pytest

from shardmerge.common.errors import NonFiniteError, ReplicaMismatchError
from tests.dumps import dumps
from tests.dumps.dumps import Held, Topology, moe_config
from tests.dumps.worlds import MakeWorld, World

NORM = "model.layers.0.input_layernorm.weight"


def replica(world: World, rank: int, *, spoil: bool = False, name: str = NORM) -> Held:
    data = world.model.tensors[name][2]
    shape = world.model.tensors[name][1]
    return Held(rank, 0, name, (0,) * len(shape), shape, b"x" + data[1:] if spoil else data)


def test_replicas_that_agree_are_no_news(world: MakeWorld) -> None:
    one = world(Topology(tp=2))
    report = one.write(held=[replica(one, 1)]).merge()
    assert report.check.warnings == ()
    assert dumps.load(one.out) == one.model.tensors


def test_a_replica_that_differs_names_tensor_and_ranks(world: MakeWorld) -> None:
    one = world(Topology(tp=4))
    one.write(held=[replica(one, 1), replica(one, 2, spoil=True), replica(one, 3, spoil=True)])
    with pytest.raises(ReplicaMismatchError) as error:
        one.merge()
    assert error.value.exit_code == 4
    assert (error.value.tensor, error.value.rectangle) == (NORM, "[0:8]")
    assert (error.value.owner, error.value.ranks) == (0, (2, 3))
    assert not one.out.exists()


def test_a_replica_that_differs_is_a_warning_when_allowed(world: MakeWorld) -> None:
    one = world(Topology(tp=2))
    report = one.write(held=[replica(one, 1, spoil=True)]).merge(allow=["replicas"])
    assert len(report.check.warnings) == 1
    assert "rank 1 holds other bytes than rank 0" in report.check.warnings[0]
    assert dumps.load(one.out) == one.model.tensors


def test_a_replica_of_another_cut_is_counted_as_not_compared(world: MakeWorld) -> None:
    one = world(Topology(tp=2))
    part = Held(1, 0, NORM, (0,), (4,), bytes(8))
    assert one.write(held=[part]).check().warnings == (
        "1 replicas could not be compared: nobody wrote the same rectangle",
    )


def row_of(world: World, rank: int, name: str) -> int:
    """Rows are in the order of the generator: whole tensors first."""
    own = [(n, cut) for n, of in world.cuts.items() for cut in of if cut.rank == rank]
    whole = [n for n, cut in own if cut.shape == world.model.tensors[n][1]]
    split = [n for n, cut in own if cut.shape != world.model.tensors[n][1]]
    return (whole + split).index(name)


def test_nan_stops_a_merge_and_names_tensor_and_rank(world: MakeWorld) -> None:
    one = world(Topology(tp=2))
    name = "model.layers.1.self_attn.q_proj.weight"
    health = [{}, {"nonfinite": [[row_of(one, 1, name), 3, 2]]}]
    one.write(health=lambda rank: health[rank])
    with pytest.raises(NonFiniteError) as error:
        one.merge()
    assert error.value.exit_code == 4
    got = (error.value.tensor, error.value.nan_count, error.value.inf_count, error.value.ranks)
    assert got == (name, 3, 2, (1,))
    assert not one.out.exists()


def test_nan_is_a_warning_when_allowed(world: MakeWorld) -> None:
    one = world()
    one.write(health={"nonfinite": [[row_of(one, 0, NORM), 1, 0]]})
    report = one.merge(allow=["nan"])
    assert "holds 1 NaN and 0 infinite elements" in report.check.warnings[0]


def zeros(world: World, rank: int, *names: str) -> dict[str, Any]:
    return {"all_zero": [row_of(world, rank, name) for name in names]}


def test_dead_experts_are_told_by_layer(world: MakeWorld) -> None:
    one = world(config=moe_config(layers=2, experts=20))
    names = [n for n in one.cuts if ".layers.1.mlp.experts.3." in n or ".layers.1.mlp.experts.17." in n]
    assert len(names) == 6
    report = one.write(health=zeros(one, 0, *names)).merge()
    assert report.check.warnings == ("experts 3 and 17 of layer 1 are all zero",)


def test_zero_tensors_alike_share_a_line(world: MakeWorld) -> None:
    one = world()
    names = [f"model.layers.{layer}.self_attn.q_norm.weight" for layer in range(2)]
    report = one.write(health=zeros(one, 0, *names, "lm_head.weight")).check()
    assert report.warnings == (
        "lm_head.weight is all zero",
        "self_attn.q_norm.weight of layers 0-1 are all zero",
    )


def test_a_tensor_of_which_one_rectangle_is_zero_is_told_apart(world: MakeWorld) -> None:
    one = world(Topology(tp=2))
    health = [{}, zeros(one, 1, "lm_head.weight")]
    assert one.write(health=lambda rank: health[rank]).check().warnings == (
        "lm_head.weight: whole rectangles are zero",
    )
