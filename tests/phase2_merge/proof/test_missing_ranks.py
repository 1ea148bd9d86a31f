"""A rank without a manifest: its place and its debt, read from its peers."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from shardmerge.common.errors import IncompleteError, MissingRankError, ProblemsFoundError
from tests.dumps.dumps import Topology, moe_config
from tests.dumps.worlds import MakeWorld, World


def refused(world: World) -> Any:
    with pytest.raises(IncompleteError) as error:
        world.merge()
    assert not world.out.exists()
    return error.value


def test_a_missing_rank_is_named_with_its_coordinates_and_its_experts(world: MakeWorld) -> None:
    one = world(Topology(ep=4, pp=2), moe_config(layers=4, experts=8)).write()
    shutil.rmtree(one.rank(5))
    error = refused(one)
    assert (error.rank, error.coordinates) == (5, {"pp": 1, "ep": 1})
    assert error.debt == "12 tensors, experts 2-3 of layers 2-3"
    assert error.message().startswith(
        "rank 5 (pp 1, ep 1) has no manifest: 12 tensors, experts 2-3 of layers 2-3. Dump this run again"
    )


def test_tensor_parallel_peers_show_what_is_cut(world: MakeWorld) -> None:
    one = world(Topology(tp=2, pp=2)).write()
    shutil.rmtree(one.rank(3))
    error = refused(one)
    assert (error.rank, error.coordinates) == (3, {"pp": 1, "tp": 1})
    assert (
        error.debt == "8 tensors, layer 1, lm_head.weight"
    )  # four of attention, three of the mlp, and the head


def test_the_recorded_failure_is_told(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    shutil.rmtree(one.rank(1))
    (one.dump / "rank-00001.failed.json").write_text(
        '{"rank": 1, "failure": {"message": "disk full on node7"}}'
    )
    assert refused(one).failed == "disk full on node7"


def test_a_directory_without_manifest_is_a_missing_rank(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    (one.rank(1) / "manifest.json").unlink()
    assert refused(one).rank == 1


def test_a_whole_pipeline_stage_missing_owes_the_layers_that_nobody_holds(world: MakeWorld) -> None:
    one = world(Topology(ep=2, pp=2), moe_config(layers=4)).write()
    shutil.rmtree(one.rank(2))
    shutil.rmtree(one.rank(3))
    with pytest.raises(ProblemsFoundError) as error:
        one.merge()
    assert error.value.exit_code == 3
    first, second = error.value.problems
    assert isinstance(first, MissingRankError)
    assert isinstance(second, MissingRankError)
    assert (first.coordinates, second.coordinates) == ({"pp": 1, "ep": 0}, {"pp": 1, "ep": 1})
    assert (
        first.debt
        == "32 tensors, experts 0-1 of layers 2-3, 18 others of layers 2-3, lm_head.weight, model.norm.weight"
    )


def test_what_no_missing_rank_can_owe_is_told_besides(world: MakeWorld) -> None:
    one = world(Topology(ep=2, pp=2), moe_config(layers=2))
    del one.cuts["model.layers.0.self_attn.q_proj.weight"]
    one.write()
    shutil.rmtree(one.rank(3))
    with pytest.raises(ProblemsFoundError) as error:
        one.merge()
    rank, tensor = error.value.problems
    assert isinstance(rank, MissingRankError)
    assert "model.layers.0.self_attn.q_proj.weight" in tensor.message()


def test_a_missing_rank_that_held_nothing_of_its_own_is_still_missing(world: MakeWorld) -> None:
    one = world(Topology(tp=2))
    for name, (_, shape, _) in one.model.tensors.items():
        one.add(0, name, (0,) * len(shape), shape)
        one.cuts[name] = one.cuts[name][-1:]
    one.write()
    shutil.rmtree(one.rank(1))
    assert "no tensor is missing without it" in refused(one).debt


def test_the_first_case_seventy_two_ranks(world: MakeWorld) -> None:
    """PP 9 x EP 8: rank 37 stands at pp 4, ep 5."""
    one = world(Topology(ep=8, pp=9), moe_config(layers=18, experts=16)).write()
    shutil.rmtree(one.rank(37))
    error = refused(one)
    assert error.coordinates == {"pp": 4, "ep": 5}
    assert error.debt == "12 tensors, experts 10-11 of layers 8-9"
