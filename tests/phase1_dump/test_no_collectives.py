"""A dump communicates with nobody: everything in torch.distributed that could raises, and the dump passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed import _functional_collectives as functional

from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import dumped, pieces_of, shapes_of, tiling_faults
from tests.phase1_dump.silence import Communication, communicating, dump_in_silence, silence
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.gloo import GlooRanks
from tests.worlds.topology import Topology

WORLDS = [
    Topology(tp=2, pp=2, ep=2, dp=2),
    Topology(pp=2, vpp=2, tp=2, ep=2, dp=2),
    Topology(tp=2, cp=2, dp=2, ep=4),
]
KEPT_BY_A_LIBRARY = distributed.all_reduce, functional.all_reduce


@pytest.mark.parametrize("name", ["qwen3_moe", "llama_tied", "deepseek_v3"])
@pytest.mark.parametrize("topology", WORLDS, ids=lambda topology: topology.name)
def test_a_dump_enters_no_collective(
    name: str, topology: Topology, references: References, tmp_path: Path
) -> None:
    if by_name(name).experts is None:
        topology = Topology(tp=topology.tp, pp=topology.pp, vpp=topology.vpp, cp=topology.cp, dp=topology.dp)
    for rank in range(topology.world_size):
        with fake_world(topology, rank):
            model = build_model(by_name(name), topology)
            with silence():
                dumped(model, tmp_path, references.config(name))

    assert tiling_faults(pieces_of(tmp_path), shapes_of(references.weights(name))) == []


def test_a_dump_enters_no_collective_on_real_ranks(
    ranks: GlooRanks, references: References, tmp_path: Path
) -> None:
    family, topology = by_name("qwen3_moe"), Topology(tp=2, pp=2, ep=2, dp=2)

    counts = ranks.run(dump_in_silence, topology, family, topology, tmp_path, references.config("qwen3_moe"))

    assert min(counts) > 0
    assert tiling_faults(pieces_of(tmp_path), shapes_of(references.weights("qwen3_moe"))) == []


def world() -> distributed.ProcessGroup:
    assert distributed.group.WORLD is not None
    return distributed.group.WORLD


COMMUNICATIONS: dict[str, Callable[[], Any]] = {
    "all_reduce": lambda: distributed.all_reduce(torch.ones(1)),
    "barrier": lambda: distributed.barrier(async_op=False),
    "new_group": lambda: distributed.new_group([0, 1]),
    "send": lambda: distributed.send(torch.ones(1), 1),
    "functional": lambda: functional.wait_tensor(functional.all_reduce(torch.ones(1), "sum", world())),
    "kept": lambda: KEPT_BY_A_LIBRARY[0](torch.ones(1)),
    "kept functional": lambda: functional.wait_tensor(KEPT_BY_A_LIBRARY[1](torch.ones(1), "sum", world())),
    "method": lambda: world().allreduce([torch.ones(1)]),
}


@pytest.mark.parametrize("kind", COMMUNICATIONS)
def test_the_net_catches(kind: str) -> None:
    with fake_world(Topology(dp=2), 0):
        COMMUNICATIONS[kind]()
        with silence(), pytest.raises(Communication):
            COMMUNICATIONS[kind]()


def test_the_net_knows_the_collectives_by_name() -> None:
    names = {name for _, name in communicating()}

    assert names >= {
        "all_reduce",
        "all_gather_object",
        "send",
        "recv",
        "barrier",
        "new_group",
        "all_gather_tensor",
    }
    assert names.isdisjoint({"get_rank", "get_world_size", "get_process_group_ranks"})
