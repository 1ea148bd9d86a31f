"""The whole river on real ranks: a checkpoint that transformers wrote goes through Megatron and comes back equal.

The way in is Model-Optimizer's importer and megatron-core's own checkpoint (`tests.worlds.oracle`); the way out is
shardmerge. What is compared is bytes, against files that shardmerge never saw.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shardmerge.phase2_merge import merge
from tests.demo.compare import differing, logits
from tests.worlds.families import Family, by_name, topologies_of
from tests.worlds.gloo import GlooRanks
from tests.worlds.oracle import IMPORTED, load_model, megatron_logits
from tests.worlds.topology import Topology

Tested = Callable[[str, str, str], None]
CASES = [pytest.param(f, t, id=f"{f.name}-{t.name}") for f in IMPORTED for t in topologies_of(f)]


def dump_on_rank(
    rank: int, family: Family, topology: Topology, torch_dist: Path, reference: Path, out: Path
) -> int:
    """Be one rank of a training job that dumps; the bytes it wrote."""
    from shardmerge.phase1_dump import dump

    chunks = load_model(rank, family, topology, torch_dist)
    found = dump(chunks, out, hf_reference=reference, run_id="river", step=7)
    assert found is not None
    return int(found.statistics["written_bytes"])


@pytest.mark.sampled
@pytest.mark.parametrize(("family", "topology"), CASES)
def test_every_byte_comes_back_from_real_ranks(
    family: Family, topology: Topology, ranks: GlooRanks, sources: Callable[[Family], tuple[Path, Path]],
    tmp_path: Path, tested: Tested,
) -> None:  # fmt: skip
    reference, torch_dist = sources(family)
    ranks.run(dump_on_rank, topology, family, topology, torch_dist, reference, tmp_path / "dump")
    merge([tmp_path / "dump"], tmp_path / "merged", hf_reference=reference, workers=1)
    assert differing(reference, tmp_path / "merged") == []
    tested(family.architecture, topology.name, "bytes")


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_megatron_and_transformers_compute_the_same_logits(
    name: str,
    ranks: GlooRanks,
    sources: Callable[[Family], tuple[Path, Path]],
    tmp_path: Path,
    tested: Tested,
) -> None:
    """Independent of the importer's names: Megatron's forward against transformers on the merged checkpoint."""
    family, topology = by_name(name), Topology(tp=2, pp=2, ep=2, dp=2)
    reference, torch_dist = sources(family)
    ranks.run(dump_on_rank, topology, family, topology, torch_dist, reference, tmp_path / "dump")
    merge([tmp_path / "dump"], tmp_path / "merged", hf_reference=reference, workers=1)
    tokens = torch.arange(3, 35).reshape(2, 16)
    expected = megatron_logits(ranks, family, reference, tokens)
    torch.testing.assert_close(logits(tmp_path / "merged", tokens), expected, rtol=1e-4, atol=1e-4)
    tested(family.architecture, topology.name, "logits")
