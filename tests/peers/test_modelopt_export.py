"""A second oracle: what Model-Optimizer exports from one rank is what shardmerge merges from any topology."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shardmerge.phase2_merge import merge
from tests.demo.compare import differing
from tests.journeys.test_round_trip import dump_on_rank
from tests.worlds.checkpoints import read_hf_tensors
from tests.worlds.families import Family, by_name
from tests.worlds.gloo import GlooRanks
from tests.worlds.mtp import NEMOTRON_H_MIXED_MTP, NEMOTRON_H_MTP, can_build, write_checkpoint
from tests.worlds.oracle import import_whole, write_torch_dist
from tests.worlds.topology import SINGLE, Topology
from tests.worlds.widths import Steps

pytestmark = pytest.mark.peers

CASES = [
    ("llama", Topology(tp=2, pp=2)),
    ("qwen3", Topology(tp=4, pp=2)),
    ("qwen3_moe", Topology(tp=2, pp=2, ep=2, dp=2)),
    ("deepseek_v3", Topology(tp=2, pp=2, ep=2, dp=2)),
    ("nemotron_h", Topology(tp=2, pp=2, ep=2, dp=2)),
    ("nemotron_h_latent", Topology(tp=4, pp=2, ep=4)),
]
# its exporter walks layers of all kinds in a step, but numbers those of a second one as those of the first
MIXED_STEP = replace(NEMOTRON_H_MIXED_MTP, name="nemotron_h_mixed_step", mtp=Steps(1, "M-E*"))
WITH_STEPS = {family.name: family for family in (NEMOTRON_H_MTP, MIXED_STEP) if can_build(family)}
FAMILIES = {name: by_name(name) for name, _ in CASES} | WITH_STEPS
CASES += [(name, Topology(tp=2, pp=2, ep=2, dp=2)) for name in WITH_STEPS]


def export_on_rank(_rank: int, family: Family, reference: Path, out: Path) -> None:
    """Model-Optimizer's whole way: its importer, its exporter, one rank."""
    from modelopt.torch.export import export_mcore_gpt_to_hf

    model = import_whole(family, reference, torch.bfloat16)
    export_mcore_gpt_to_hf(model, str(reference), dtype=torch.bfloat16, export_dir=str(out))


@pytest.mark.parametrize(("name", "topology"), CASES, ids=[name for name, _ in CASES])
def test_modelopt_exports_the_same_tensors(
    name: str, topology: Topology, ranks: GlooRanks, tmp_path: Path
) -> None:
    family, reference = FAMILIES[name], tmp_path / "hf"
    write_checkpoint(family, reference)
    ranks.run(export_on_rank, SINGLE, family, reference, tmp_path / "modelopt")
    torch_dist = write_torch_dist(ranks, family, reference, tmp_path / "torch_dist")
    ranks.run(dump_on_rank, topology, family, topology, torch_dist, reference, tmp_path / "dump")
    merge([tmp_path / "dump"], tmp_path / "merged", hf_reference=reference, workers=1)
    theirs, ours = read_hf_tensors(tmp_path / "modelopt"), read_hf_tensors(tmp_path / "merged")
    rounded = {bias for bias in ours if bias.endswith("e_score_correction_bias")}
    assert set(differing(tmp_path / "modelopt", tmp_path / "merged")) == rounded
    for bias in rounded:  # Model-Optimizer 0.47 rounds it to bfloat16; published checkpoints hold float32
        assert torch.equal(theirs[bias], ours[bias].to(torch.bfloat16))
    assert differing(reference, tmp_path / "merged") == []
