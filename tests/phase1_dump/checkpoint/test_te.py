"""Checkpoints of Transformer Engine's modules: grouped experts in every spelling, and states of FP8 beside them."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shardmerge.phase1_dump import dump_checkpoint
from tests.phase1_dump.checkpoint.test_same_as_live import merged, reference_of
from tests.worlds.fake import build_model
from tests.worlds.families import by_name
from tests.worlds.filling import fill
from tests.worlds.gloo import GlooRanks
from tests.worlds.saving import Spelling, lift_norms, save
from tests.worlds.topology import Topology

TOPOLOGY = Topology(tp=2, ep=2, dp=2)
FC1, FP8_STATE = "mlp.experts.experts.{}linear_fc1.", b"transformer_engine.common.recipe"


def save_and_dump(
    rank: int, name: str, spelling: Spelling, reference: Path, out: Path, fp8: bool
) -> list[str]:
    """Be one rank: save a model of Transformer Engine, and dump it alive. Returns the classes of its experts."""
    from shardmerge.phase1_dump import dump

    chunks = build_model(by_name(name), TOPOLOGY, te=True)
    fill(chunks, by_name(name), TOPOLOGY, rank)
    lift_norms(chunks)
    if fp8:
        train_in_fp8(chunks[0])
    save(chunks, out / "iter_0000007", spelling)
    dump(chunks, out / "live", hf_reference=reference, run_id="run", step=7)
    modules = chunks[0].modules()
    return [type(module.experts).__name__ for module in modules if hasattr(module, "experts")]


def train_in_fp8(model: torch.nn.Module) -> None:
    """Give the modules what a step with delayed scaling leaves in them: a recipe, scales, and largest magnitudes."""
    from transformer_engine.common.recipe import DelayedScaling

    recipe = DelayedScaling()
    for module in model.modules():
        held: Any = getattr(module, "fp8_meta", None)
        if held is not None:
            gemms = getattr(module, "num_gemms", 1)
            held |= {"fp8_checkpoint": True, "recipe": recipe}
            for name, number in (("scaling_fwd", 3 * gemms), ("scaling_bwd", 2 * gemms)):
                history = torch.zeros(recipe.amax_history_len, number)
                held[name] = SimpleNamespace(scale=torch.ones(number), amax_history=history)


@pytest.mark.parametrize(
    ("name", "spelling", "fp8", "key", "shape"),
    [
        ("qwen3_moe", Spelling(layers=True), False, f"decoder.layers.{FC1.format('')}weight", (4, 8, 80, 72)),
        ("qwen3_moe", Spelling(experts=True), True, f"decoder.layers.3.{FC1.format('')}weight", (8, 80, 72)),
        ("deepseek_v3", Spelling(), False, f"decoder.layers.3.{FC1.format('7.')}weight_w", (40, 72)),
    ],
    ids=["layers", "experts-fp8", "alone"],
)
def test_grouped_experts_from_disk_are_those_of_the_live_model(
    name: str,
    spelling: Spelling,
    fp8: bool,
    key: str,
    shape: tuple[int, ...],
    te_ranks: GlooRanks,
    tmp_path: Path,
) -> None:
    reference = reference_of(by_name(name), tmp_path)
    classes = te_ranks.run(save_and_dump, TOPOLOGY, name, spelling, reference, tmp_path, fp8)
    assert all(set(of_rank) == {"TEGroupedMLP"} for of_rank in classes)
    checkpoint = tmp_path / "iter_0000007"
    held = pickle.loads((checkpoint / ".metadata").read_bytes()).state_dict_metadata
    assert tuple(held[key].size) == shape
    assert any(f"{FC1.format('')}_extra_state" in one or FC1.format("7.") in one for one in held)
    assert fp8 is any(FP8_STATE in path.read_bytes() for path in checkpoint.glob("*.distcp"))

    dumped = dump_checkpoint(
        checkpoint, tmp_path / "disk", hf_reference=reference, run_id="run", max_share_bytes=100_000
    )
    assert dumped.num_shares > 1
    found, live = (merged(tmp_path / one, tmp_path / f"of-{one}", reference) for one in ("disk", "live"))
    assert found == live
