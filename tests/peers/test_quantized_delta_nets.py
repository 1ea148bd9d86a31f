"""Quantized DeltaNets, whose one Megatron projection becomes several tensors, against Model-Optimizer's own packing.

Its Megatron exporter knows those of Qwen3.5 in a composite, on one rank. Of Qwen3-Next, which it does not know, its
functions pack the plain tensors of the checkpoint as they lie there.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from shardmerge.phase2_merge import merge
from tests.worlds.checkpoints import read_hf_tensors
from tests.worlds.fake import build_model
from tests.worlds.families import Family, by_name
from tests.worlds.filling import fill
from tests.worlds.gloo import GlooRanks
from tests.worlds.mtp import write_bare
from tests.worlds.quantizing import quantize, recipe
from tests.worlds.topology import SINGLE, Topology
from tests.worlds.widths import Delta, Experts

pytestmark = pytest.mark.peers

# every matrix divides into blocks of 16 columns, also halved
WIDTHS: dict[str, Any] = {
    "hidden": 96,
    "head_channels": 16,
    "dense_width": 192,
    "experts": Experts(width=64, shared_width=128, shared_gate=True),
    "delta": Delta("DD*", key_channels=12, value_channels=8),
    "layers": 3,
}
QWEN3_5_MOE = replace(by_name("qwen3_5_moe"), **WIDTHS)
QWEN3_NEXT = replace(by_name("qwen3_next"), **WIDTHS)
CUT = Topology(tp=2, etp=2)
RECIPES = ("FP8", "NVFP4")
QWEN3_5_GATES, QWEN3_NEXT_GATES = ("in_proj_a", "in_proj_b"), ("in_proj_ba",)


def dump_on_rank(
    rank: int, family: Family, topology: Topology, reference: Path, out: Path, config: dict[str, Any] | None
) -> None:
    """Be one rank that quantizes, unless there is nothing to do it with, and dumps."""
    from shardmerge.phase1_dump import dump

    chunks = build_model(family, topology)
    fill(chunks, family, topology, rank)
    if config is not None:
        quantize(chunks, family, topology, rank, config)
    dump(chunks, out, hf_reference=reference, run_id="quantized", step=7)


def export_on_rank(rank: int, family: Family, reference: Path, out: Path, config: dict[str, Any]) -> None:
    """Let Model-Optimizer quantize and export. It copies the tower of the composite, and demands that there is one."""
    from modelopt.torch.export import export_mcore_gpt_to_hf

    chunks = build_model(family, SINGLE, vocab_rows=family.vocab)
    fill(chunks, family, SINGLE, rank)
    quantize(chunks, family, SINGLE, rank, config)
    composite = out.parent / "composite"
    composite.mkdir()
    told = json.loads((reference / "config.json").read_text())
    told["architectures"] = ["Qwen3_5MoeForConditionalGeneration"]
    (composite / "config.json").write_text(json.dumps(told))
    save_file({"model.visual.of_a_tower": torch.zeros(2)}, composite / "model.safetensors")
    export_mcore_gpt_to_hf(chunks[0], str(composite), dtype=torch.bfloat16, export_dir=str(out))


def merged(
    ranks: GlooRanks, family: Family, topology: Topology, folder: Path, config: dict[str, Any] | None
) -> Path:
    reference = folder / "hf"
    if not reference.exists():
        reference.mkdir()
        write_bare(family, reference)
    name = "plain" if config is None else "packed"
    ranks.run(dump_on_rank, topology, family, topology, reference, folder / f"{name}-dump", config)
    merge([folder / f"{name}-dump"], folder / name, hf_reference=reference, workers=1)
    return folder / name


def excluded(folder: Path) -> set[str]:
    """Modules that the checkpoint says are plain, by their names beside no tower."""
    told = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
    return {name.replace("model.language_model.", "model.") for name in told["exclude_modules"]}


def gates(family: Family, names: tuple[str, ...]) -> set[str]:
    layers = [layer for layer, kind in enumerate(family.delta.pattern) if kind == "D"] if family.delta else []
    return {f"model.layers.{layer}.linear_attn.{name}" for layer in layers for name in names}


@pytest.mark.parametrize("topology", [SINGLE, CUT], ids=lambda one: one.name)
@pytest.mark.parametrize("name", RECIPES)
def test_delta_nets_of_qwen3_5_become_what_modelopt_exports(
    name: str, topology: Topology, ranks: GlooRanks, tmp_path: Path
) -> None:
    """Its names of modules lack the gates of shared experts, which are no modules of Megatron's."""
    ours = merged(ranks, QWEN3_5_MOE, topology, tmp_path, recipe(name))
    theirs = tmp_path / "modelopt"
    ranks.run(export_on_rank, SINGLE, QWEN3_5_MOE, tmp_path / "hf", theirs, recipe(name))

    left = {key.replace("model.language_model.", "model."): t for key, t in read_hf_tensors(theirs).items()}
    del left["model.visual.of_a_tower"]
    right = read_hf_tensors(ours)
    assert left.keys() == right.keys()
    assert right["model.layers.0.linear_attn.in_proj_z.weight"].itemsize == 1
    for key, tensor in right.items():
        other = left[key].squeeze() if key.endswith(".input_scale") else left[key]
        assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape), key
        assert torch.equal(other.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), key
    shared = {f"model.layers.{layer}.mlp.shared_expert_gate" for layer in range(QWEN3_5_MOE.layers)}
    assert excluded(ours) == excluded(theirs) | shared
    assert gates(QWEN3_5_MOE, QWEN3_5_GATES) <= excluded(ours)


@pytest.mark.parametrize("name", RECIPES)
def test_delta_nets_of_qwen3_next_hold_what_modelopt_packs_of_the_plain_checkpoint(
    name: str, ranks: GlooRanks, tmp_path: Path
) -> None:
    from modelopt.torch.export.quant_utils import to_quantized_weight

    packed = merged(ranks, QWEN3_NEXT, CUT, tmp_path, recipe(name))
    plain = read_hf_tensors(merged(ranks, QWEN3_NEXT, CUT, tmp_path, None))

    found = read_hf_tensors(packed)
    for key in (f"model.layers.{layer}.linear_attn.in_proj_qkvz" for layer in (0, 1)):
        weight, scale = plain[f"{key}.weight"], found[f"{key}.weight_scale"]
        assert found[f"{key}.weight"].itemsize == 1
        if name == "FP8":
            numbers, scales = to_quantized_weight(weight, scale, "fp8"), scale
        else:
            numbers, scales = _in_blocks(weight, found[f"{key}.weight_scale_2"])
        assert torch.equal(numbers.view(torch.uint8), found[f"{key}.weight"].view(torch.uint8))
        assert torch.equal(scales.reshape(-1).view(torch.uint8), scale.reshape(-1).view(torch.uint8))
    for module in gates(QWEN3_NEXT, QWEN3_NEXT_GATES):
        assert torch.equal(found[f"{module}.weight"], plain[f"{module}.weight"])
        assert module in excluded(packed)


def _in_blocks(weight: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Model-Optimizer's numbers and scales of blocks of a plain weight, its second scale given."""
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    scales, _ = NVFP4QTensor.get_weights_scaling_factor(weight, 16, second)
    numbers, _, _ = NVFP4QTensor.quantize(weight, 16, scales, second)
    return numbers._quantized_data, scales
