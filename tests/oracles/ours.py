"""What shardmerge publishes of a family's model, filled by the formula, from ranks of a fake world.

Decides how models are dumped and merged. Must not know records or other programs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from shardmerge.common.architectures import ARCHITECTURES, Architecture
from shardmerge.common.errors import ShardmergeError
from shardmerge.phase1_dump import dump
from shardmerge.phase2_merge import merge
from tests.worlds.checkpoints import read_hf_tensors
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import Family
from tests.worlds.filling import fill
from tests.worlds.topology import SINGLE, Topology

# every axis that cuts a tensor: of dense families, and of those with experts
CUT, CUT_EXPERTS = Topology(tp=2, pp=2), Topology(tp=2, pp=2, ep=2, etp=2, dp=2)


def topologies(family: Family) -> tuple[Topology, Topology]:
    """One rank, and a world that cuts all there is to cut. megatron cuts no expert that has biases."""
    if family.experts is None:
        return SINGLE, CUT
    return SINGLE, replace(CUT_EXPERTS, etp=1) if family.bias else CUT_EXPERTS


def published(family: Family, topology: Topology, reference: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Dump each rank of a fake world, merge, and return what was published."""
    for rank in range(topology.world_size):
        with fake_world(topology, rank):
            chunks = build_model(family, topology)
            fill(chunks, family, topology, rank)
            dump(chunks, folder / "dump", hf_reference=reference, run_id="oracle", step=1)
    merged(folder / "dump", folder / "merged", reference)
    return read_hf_tensors(folder / "merged")


def merged(dumped: Path, out: Path, reference: Path) -> None:
    """Merge a dump; of a composite the language model alone, as the reference holds no vision tower."""
    merge([dumped], out, hf_reference=reference, workers=1, allow=["vision"])


def copies(names: Iterable[str], copied: dict[str, str] | None) -> Iterator[tuple[str, str]]:
    """Yield those of `names` that repeat a tensor of the model, with the name of that one."""
    for name in names:
        for end, source in (copied or {}).items():
            if ".layers." in name and name.endswith(f".{end}"):
                yield name, source


def is_dumped(chunks: list[Any], wrong: Architecture, reference: Path, folder: Path) -> bool:
    """Dump a model with a table that is wrong; whether it was not refused."""
    with _in_place(wrong):
        try:
            dump(chunks, folder / "dump", hf_reference=reference, run_id="wrong", step=1)
        except ShardmergeError:
            return False
    return True


def is_merged(wrong: Architecture, reference: Path, folder: Path) -> bool:
    """Merge such a dump; whether it was not refused."""
    with _in_place(wrong):
        try:
            merged(folder / "dump", folder / "merged", reference)
        except ShardmergeError:
            return False
    return True


def _in_place(wrong: Architecture) -> Any:
    return mock.patch.dict(ARCHITECTURES, dict.fromkeys((wrong.name, *wrong.aliases), wrong))
