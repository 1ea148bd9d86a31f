"""Coordinates and replicas by hand: megatron counts tp fastest, then cp, dp, pp; experts etp, ep, edp, pp."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from shardmerge.common.errors import BadInputError
from shardmerge.phase1_dump.sources.process_groups import world_of
from shardmerge.phase1_dump.world import World
from tests.phase1_dump.conftest import References
from tests.phase1_dump.refusing import refused_before_the_rank_is_known
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.topology import Topology


def world(topology: Topology, rank: int) -> World:
    with fake_world(topology, rank):
        return world_of(nn.Identity())


def test_rank_5_of_tp2_ep2_dp2_pp2() -> None:
    found = world(Topology(tp=2, pp=2, ep=2, dp=2), 5)

    assert (found.rank, found.size) == (5, 8)
    assert found.coordinates == {"tp": 1, "cp": 0, "pp": 1, "dp": 0, "ep": 1, "etp": 0, "edp": 0}
    assert found.groups["tp"] == [4, 5]
    assert found.groups["dp"] == [5, 7]
    assert found.groups["pp"] == [1, 5]
    assert found.groups["ep"] == [4, 5]
    assert found.groups["edp"] == [5, 7]


def test_replicas_of_a_dense_tensor_that_tp_cuts_are_the_data_parallel_ranks() -> None:
    found = world(Topology(tp=2, pp=2, ep=2, dp=2), 5)

    assert found.replicas(routed_expert=False, cut=True) == (5, 7)


def test_replicas_of_a_tensor_that_nothing_cuts_are_the_whole_stage() -> None:
    found = world(Topology(tp=2, pp=2, ep=2, dp=2), 5)

    assert found.replicas(routed_expert=False, cut=False) == (4, 5, 6, 7)


def test_experts_over_tensor_ranks_have_replicas_of_their_own() -> None:
    """tp 4, ep 2, dp 2: ranks 0, 2, 4, 6 hold the first half of the experts, 1, 3, 5, 7 the second."""
    found = world(Topology(tp=4, ep=2, dp=2), 3)

    assert found.coordinates["ep"] == 1
    assert found.replicas(routed_expert=True, cut=False) == (1, 3, 5, 7)
    assert found.replicas(routed_expert=False, cut=True) == (3, 7)


def test_expert_tensor_ranks_hold_parts_or_replicas() -> None:
    found = world(Topology(etp=2, dp=4), 1)

    assert found.replicas(routed_expert=True, cut=True) == (1, 3)
    assert found.replicas(routed_expert=True, cut=False) == (0, 1, 2, 3)


def test_context_parallel_ranks_are_replicas_of_dense_tensors() -> None:
    """Rank 5 of tp 2, cp 2, dp 2 is (1, 0, 1); the other ranks with tp 1 are 1, 3 and 7."""
    found = world(Topology(tp=2, cp=2, dp=2, ep=4), 5)

    assert found.replicas(routed_expert=False, cut=True) == (1, 3, 5, 7)
    assert found.replicas(routed_expert=True, cut=False) == (1, 5)


def test_a_part_that_neighbours_of_tensor_parallelism_share_repeats_among_them() -> None:
    """tp 4, dp 2: of two parts ranks 0, 1 and 4, 5 hold the first, 2, 3 and 6, 7 the second."""
    found = world(Topology(tp=4, dp=2), 3)

    assert found.copies(1, 2, routed_expert=False) == 2
    assert found.replicas(routed_expert=False, cut=True, copies=2) == (2, 3, 6, 7)
    assert found.copies(0, 2, routed_expert=False) is None
    assert found.copies(3, 4, routed_expert=False) == 1


def test_one_process_alone_is_the_only_replica() -> None:
    found = world_of(nn.Identity())

    assert (found.rank, found.size) == (0, 1)
    assert found.replicas(routed_expert=True, cut=False) == (0,)


def test_megatron_without_groups_is_refused() -> None:
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        with pytest.raises(BadInputError, match="no tp process group") as caught:
            world_of(nn.Identity())
    finally:
        torch.distributed.destroy_process_group()

    assert caught.value.exit_code == 2


def test_groups_of_a_world_that_is_gone_are_refused(references: References, tmp_path: Path) -> None:
    with fake_world(Topology(dp=2), 0):
        model = build_model(by_name("llama"), Topology(dp=2))[0]
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        message = refused_before_the_rank_is_known(
            BadInputError, 2, model, tmp_path / "out", references.config("llama")
        )
    finally:
        torch.distributed.destroy_process_group()

    assert "no tp process group" in message
