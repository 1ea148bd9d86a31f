"""Quantized DeltaNets, whose one Megatron projection becomes several tensors, against Model-Optimizer's own packing.

Its Megatron exporter knows those of Qwen3.5 in a composite, on one rank. Of Qwen3-Next, which it does not know, its
functions pack the plain tensors of the checkpoint as they lie there. It cannot cut blocks of 128x128 into projections:
what must come out of these, and of parameters that are Transformer Engine's own, is written here by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from shardmerge.phase2_merge import merge
from tests.phase1_dump.te_weight_jobs import dump_kind
from tests.worlds.checkpoints import read_hf_tensors
from tests.worlds.fake import build_model
from tests.worlds.families import Family, by_name
from tests.worlds.filling import fill
from tests.worlds.gloo import GlooRanks
from tests.worlds.mtp import write_bare
from tests.worlds.quantizing import quantize, recipe
from tests.worlds.te_weights import in_blocks, in_rows_of_32
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
# every matrix divides into blocks of 128x128, also halved; but for the gates, a row for each head beside them
IN_BLOCKS: dict[str, Any] = {
    "hidden": 384,
    "heads": 4,
    "groups": 2,
    "head_channels": 128,
    "dense_width": 512,
    "experts": Experts(num_experts=4, width=256, shared_width=512, shared_gate=True),
    "delta": Delta("D*", key_heads=2, value_heads=4, key_channels=128, value_channels=64),
    "layers": 2,
}
WIDE = tuple(replace(by_name(name), **IN_BLOCKS) for name in ("qwen3_5_moe", "qwen3_next"))
PROJECTIONS = ("_proj", "in_proj_qkv", "in_proj_z", "in_proj_qkvz")
CUT = Topology(tp=2, etp=2)
RECIPES = ("FP8", "NVFP4", "MXFP8")
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
    dump(chunks, out, hf_reference=reference, run_id="quantized", step=7, experts="per-expert")


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
    if name == "MXFP8":  # for which it writes tensors, but none of the two JSON files
        assert not (theirs / "hf_quant_config.json").exists()
    else:
        shared = {f"model.layers.{layer}.mlp.shared_expert_gate" for layer in range(QWEN3_5_MOE.layers)}
        assert excluded(ours) == excluded(theirs) | shared
    assert gates(QWEN3_5_MOE, QWEN3_5_GATES) <= excluded(ours)


@pytest.mark.parametrize("name", RECIPES)
def test_delta_nets_of_qwen3_next_hold_what_modelopt_packs_of_the_plain_checkpoint(
    name: str, ranks: GlooRanks, tmp_path: Path
) -> None:
    from modelopt.torch.export.quant_utils import to_quantized_weight
    from modelopt.torch.quantization.qtensor import MXFP8QTensor

    packed = merged(ranks, QWEN3_NEXT, CUT, tmp_path, recipe(name))
    plain = read_hf_tensors(merged(ranks, QWEN3_NEXT, CUT, tmp_path, None))

    found = read_hf_tensors(packed)
    for key in (f"model.layers.{layer}.linear_attn.in_proj_qkvz" for layer in (0, 1)):
        weight, scale = plain[f"{key}.weight"], found[f"{key}.weight_scale"]
        assert found[f"{key}.weight"].itemsize == 1
        if name == "FP8":
            numbers, scales = to_quantized_weight(weight, scale, "fp8"), scale
        elif name == "MXFP8":
            scales = MXFP8QTensor.get_weights_scaling_factor(weight)
            numbers = MXFP8QTensor.quantize_with_scale(weight, scales)
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


def largest_over_448(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers and scales of blocks of 128x128: [N, K] and [N / 128, K / 128]."""
    tiles = weight.view(weight.shape[0] // 128, 128, weight.shape[1] // 128, 128)
    scale = tiles.abs().amax((1, 3)).float() / 448
    packed = (tiles.float() / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    return packed.view(weight.shape), scale


def assert_packed(
    path: Path, plain: dict[str, torch.Tensor], pack: Callable[[torch.Tensor], Any], scale_name: str
) -> None:
    """Every projection is what `pack` makes of the plain tensor; everything but the gates is as it was."""
    found, expected = read_hf_tensors(path), dict(plain)
    for name, weight in plain.items():
        if name.removesuffix(".weight").endswith(PROJECTIONS):
            expected[name], expected[name.replace("weight", scale_name)] = pack(weight)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if not name.endswith(("in_proj_a.weight", "in_proj_b.weight", "in_proj_ba.weight")):
            assert found[name].dtype == tensor.dtype, name
            assert torch.equal(found[name].view(torch.uint8), tensor.contiguous().view(torch.uint8)), name


@pytest.mark.sampled
@pytest.mark.parametrize("topology", [SINGLE, CUT], ids=lambda one: one.name)
@pytest.mark.parametrize("family", WIDE, ids=lambda family: family.name)
def test_delta_nets_in_blocks_hold_the_largest_of_each_block_over_448(
    family: Family, topology: Topology, ranks: GlooRanks, tmp_path: Path
) -> None:
    """The gates, whose rows share blocks with nothing else, stay as they are."""
    plain = read_hf_tensors(merged(ranks, family, topology, tmp_path, None))
    path = merged(ranks, family, topology, tmp_path, recipe("FP8_BLOCK"))
    assert_packed(path, plain, largest_over_448, "weight_scale_inv")
    names = QWEN3_5_GATES if family is WIDE[0] else QWEN3_NEXT_GATES
    told = json.loads((path / "config.json").read_text())["quantization_config"]
    assert gates(family, names) <= set(told["modules_to_not_convert"])
    found = read_hf_tensors(path)
    for module in gates(family, names):
        assert torch.equal(found[f"{module}.weight"], plain[f"{module}.weight"])


@pytest.mark.sampled
@pytest.mark.parametrize("topology", [SINGLE, CUT], ids=lambda one: one.name)
@pytest.mark.parametrize("family", WIDE, ids=lambda family: family.name)
@pytest.mark.parametrize("kind", ["blockwise", "microscaled"])
def test_delta_nets_of_transformer_engines_parameters_keep_their_numbers(
    kind: str, family: Family, topology: Topology, te_ranks: GlooRanks, tmp_path: Path
) -> None:
    """The gates are written in the precision that their numbers stand for."""
    write_bare(family, tmp_path / "hf")
    for one in ("plain", kind):
        te_ranks.call(dump_kind, one, family, topology, tmp_path / f"{one}-dump", tmp_path / "hf", False)
        merge([tmp_path / f"{one}-dump"], tmp_path / one, hf_reference=tmp_path / "hf", workers=1)
    pack, scale_name = {
        "blockwise": (in_blocks, "weight_scale_inv"),
        "microscaled": (in_rows_of_32, "weight_scale"),
    }[kind]
    plain = read_hf_tensors(tmp_path / "plain")
    assert_packed(tmp_path / kind, plain, pack, scale_name)
    found = read_hf_tensors(tmp_path / kind)
    for module in gates(family, QWEN3_5_GATES if family is WIDE[0] else QWEN3_NEXT_GATES):
        gate, before = found[f"{module}.weight"], plain[f"{module}.weight"]
        torch.testing.assert_close(gate, before, rtol=2**-4, atol=2**-7)
        assert gate.dtype == torch.bfloat16
        assert not torch.equal(gate, before)  # else it was never packed
    if family is WIDE[0] and topology is SINGLE and kind == "blockwise":
        assert_gates_of_one_rank(plain, found)


def assert_gates_of_one_rank(plain: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    """Both gates are the last rows of one weight, in whose last blocks nothing else lies."""
    net = "model.layers.0.linear_attn.in_proj_"
    weight = torch.cat([plain[f"{net}{part}.weight"] for part in ("qkv", "z", "b", "a")])
    numbers, scales = in_blocks(weight)
    rows = numbers[-8:].float() * scales[-1].repeat_interleave(128)[: weight.shape[1]]
    assert torch.equal(torch.cat([found[f"{net}{gate}.weight"] for gate in "ba"]), rows.bfloat16())
