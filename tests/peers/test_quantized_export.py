"""Quantized bytes and both JSON files, against Model-Optimizer's own export of the same model from one rank."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shardmerge.phase2_merge import merge
from tests.demo.compare import differing
from tests.worlds.checkpoints import read_hf_tensors, write_hf_checkpoint
from tests.worlds.fake import build_model
from tests.worlds.families import Family, by_name
from tests.worlds.filling import fill
from tests.worlds.gloo import GlooRanks
from tests.worlds.mtp import can_build, write_checkpoint
from tests.worlds.oracle import import_whole, load_model, write_torch_dist
from tests.worlds.quantizing import (
    DEEPSEEK_V3,
    NEMOTRON_H,
    NEMOTRON_H_LATENT,
    NEMOTRON_H_MTP,
    QWEN3_MOE,
    QWEN3_MOE_IN_BLOCKS,
    quantize,
    recipe,
)
from tests.worlds.topology import SINGLE, Topology

pytestmark = pytest.mark.peers

QWEN3 = replace(by_name("qwen3"), hidden=96, head_channels=16, dense_width=192)
FAMILIES = {"qwen3_moe": QWEN3_MOE, "deepseek_v3": DEEPSEEK_V3, "nemotron_h": NEMOTRON_H}
# Model-Optimizer 0.47 quantizes latent projections of the local spec, and leaves Transformer Engine's as they are
WITH_SEQUENTIAL = FAMILIES | {"nemotron_h_latent": NEMOTRON_H_LATENT}
WITH_SEQUENTIAL |= {"nemotron_h_mtp": NEMOTRON_H_MTP} if can_build(NEMOTRON_H_MTP) else {}
RECIPES = ("FP8", "NVFP4", "W4A16_NVFP4", "MIXED")
SEQUENTIAL = (SINGLE, Topology(tp=2, pp=2, etp=2), Topology(pp=2, ep=2, dp=2))
GROUPED = (Topology(tp=2, pp=2, ep=2), Topology(tp=2, etp=2, pp=2))
Sources = Callable[[str, str, bool], tuple[Path, Path, Path]]


def export_on_rank(
    _rank: int, family: Family, reference: Path, out: Path, config: dict[str, Any], shared_inputs: bool
) -> None:
    """Model-Optimizer's whole way: its importer, its quantizers, its exporter, one rank."""
    from modelopt.torch.export import export_mcore_gpt_to_hf

    model = import_whole(family, reference, torch.bfloat16)
    quantize([model], family, SINGLE, 0, config, shared_inputs=shared_inputs)
    export_mcore_gpt_to_hf(model, str(reference), dtype=torch.bfloat16, export_dir=str(out))


def dump_on_rank(
    rank: int,
    family: Family,
    topology: Topology,
    torch_dist: Path,
    reference: Path,
    out: Path,
    config: dict[str, Any],
    te: bool,
) -> None:
    """Be one rank that loads, quantizes and dumps."""
    from shardmerge.phase1_dump import dump

    chunks = load_model(rank, family, topology, torch_dist, te=te)
    quantize(chunks, family, topology, rank, config, shared_inputs=te)
    dump(chunks, out, hf_reference=reference, run_id="quantized", step=7)


@pytest.fixture(scope="module")
def sources(ranks: GlooRanks, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """(family, recipe, shared inputs) -> (reference, torch_dist, modelopt's export), each made once."""
    made: dict[Any, Path] = {}

    def source(name: str, recipe_name: str, shared_inputs: bool) -> tuple[Path, Path, Path]:
        family = WITH_SEQUENTIAL[name]
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            write_checkpoint(family, made[name] / "hf")
            write_torch_dist(ranks, family, made[name] / "hf", made[name] / "torch_dist")
        reference, key = made[name] / "hf", (name, recipe_name, shared_inputs)
        if key not in made:
            made[key] = made[name] / f"{recipe_name}-{shared_inputs}"
            config = recipe(recipe_name)
            ranks.run(export_on_rank, SINGLE, family, reference, made[key], config, shared_inputs)
        return reference, made[name] / "torch_dist", made[key]

    return source


@pytest.mark.parametrize("topology", SEQUENTIAL, ids=lambda one: one.name)
@pytest.mark.parametrize("recipe_name", RECIPES)
@pytest.mark.parametrize("name", WITH_SEQUENTIAL)
def test_sequential_experts_become_what_modelopt_exports(
    name: str, recipe_name: str, topology: Topology, ranks: GlooRanks, sources: Sources, tmp_path: Path
) -> None:
    reference, torch_dist, theirs = sources(name, recipe_name, False)
    given = (
        WITH_SEQUENTIAL[name],
        topology,
        torch_dist,
        reference,
        tmp_path / "dump",
        recipe(recipe_name),
        False,
    )
    ranks.run(dump_on_rank, topology, *given)
    merge([tmp_path / "dump"], tmp_path / "merged", hf_reference=reference, workers=1)
    assert_same(theirs, tmp_path / "merged")


@pytest.mark.parametrize("topology", GROUPED, ids=lambda one: one.name)
@pytest.mark.parametrize("recipe_name", RECIPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_grouped_experts_become_what_modelopt_exports(
    name: str, recipe_name: str, topology: Topology,
    ranks: GlooRanks, te_ranks: GlooRanks, sources: Sources, tmp_path: Path,
) -> None:  # fmt: skip
    """Model-Optimizer 0.47 has no rule for grouped experts of two families: its export is of a SequentialMLP."""
    reference, torch_dist, theirs = sources(name, recipe_name, True)
    given = (FAMILIES[name], topology, torch_dist, reference, tmp_path / "dump", recipe(recipe_name), True)
    te_ranks.run(dump_on_rank, topology, *given)
    merge([tmp_path / "dump"], tmp_path / "merged", hf_reference=reference, workers=1)
    assert_same(theirs, tmp_path / "merged")


def test_microscaled_weights_hold_what_modelopt_packs(ranks: GlooRanks, tmp_path: Path) -> None:
    """Model-Optimizer 0.47 writes tensors for MXFP8, but none of the two JSON files."""
    topology = Topology(tp=2, pp=2, etp=2)
    reference = write_hf_checkpoint(QWEN3_MOE, tmp_path / "hf")
    torch_dist = write_torch_dist(ranks, QWEN3_MOE, reference, tmp_path / "torch_dist")
    config = recipe("MXFP8")
    given = (QWEN3_MOE, topology, torch_dist, reference, tmp_path / "dump", config, False)
    ranks.run(export_on_rank, SINGLE, QWEN3_MOE, reference, tmp_path / "modelopt", config, False)
    ranks.run(dump_on_rank, topology, *given)
    merge([tmp_path / "dump"], tmp_path / "merged", hf_reference=reference, workers=1)
    assert differing(tmp_path / "modelopt", tmp_path / "merged") == []
    assert not (tmp_path / "modelopt" / "hf_quant_config.json").exists()
    told = json.loads((tmp_path / "merged" / "hf_quant_config.json").read_text())["quantization"]
    assert (told["quant_algo"], told["group_size"]) == ("MXFP8", 32)


@pytest.mark.parametrize("topology", [SINGLE, Topology(tp=2, pp=2, etp=2)], ids=lambda one: one.name)
def test_blocks_of_128_by_128_are_the_largest_of_each_block_over_448(
    topology: Topology, ranks: GlooRanks, tmp_path: Path
) -> None:
    """Model-Optimizer 0.47's Megatron exporter fails on q/k/v in this format: what must come out is written here."""
    reference = write_hf_checkpoint(QWEN3_MOE_IN_BLOCKS, tmp_path / "hf")
    torch_dist = write_torch_dist(ranks, QWEN3_MOE_IN_BLOCKS, reference, tmp_path / "torch_dist")
    config = recipe("FP8_BLOCK")
    given = (QWEN3_MOE_IN_BLOCKS, topology, torch_dist, reference, tmp_path / "dump", config, False)
    ranks.run(dump_on_rank, topology, *given)
    merge([tmp_path / "dump"], tmp_path / "merged", hf_reference=reference, workers=1)
    plain, found = read_hf_tensors(reference), read_hf_tensors(tmp_path / "merged")
    for name, weight in plain.items():
        if not name.endswith("_proj.weight"):
            assert torch.equal(found[name], weight), name
            continue
        tiles = weight.view(weight.shape[0] // 128, 128, weight.shape[1] // 128, 128)
        scale = tiles.abs().amax((1, 3)).float() / 448
        packed = (tiles.float() / scale[:, None, :, None]).to(torch.float8_e4m3fn).view(weight.shape)
        assert torch.equal(found[name].view(torch.uint8), packed.view(torch.uint8)), name
        assert torch.equal(found[f"{name}_scale_inv"], scale), name
    told = json.loads((tmp_path / "merged" / "config.json").read_text())["quantization_config"]
    assert (told["quant_method"], told["weight_block_size"]) == ("fp8", [128, 128])


def test_kv_cache_scales_are_modelopts(te_ranks: GlooRanks, tmp_path: Path) -> None:
    """Under the names that readers take: its Megatron exporter writes `self_attn.k_scale`, of shape [1]."""
    reference = write_hf_checkpoint(QWEN3, tmp_path / "hf")
    given = (QWEN3, reference, recipe("FP8", kv_cache=True))
    te_ranks.run(export_filled, SINGLE, *given, tmp_path / "modelopt")
    for topology in (SINGLE, Topology(tp=2, pp=2)):
        te_ranks.run(dump_filled, topology, *given, tmp_path / topology.name, topology)
        out = tmp_path / f"{topology.name}-merged"
        merge([tmp_path / topology.name], out, hf_reference=reference, workers=1)
        theirs, ours = read_hf_tensors(tmp_path / "modelopt"), read_hf_tensors(out)
        for layer in range(QWEN3.layers):
            for side in "kv":
                scale = theirs.pop(f"model.layers.{layer}.self_attn.{side}_scale")
                own = ours.pop(f"model.layers.{layer}.self_attn.{side}_proj.{side}_scale")
                assert own.shape == ()
                assert torch.equal(scale.reshape(()), own)
        assert theirs.keys() == ours.keys()
        for name, tensor in ours.items():
            left, right = (one.reshape(-1).view(torch.uint8) for one in (theirs[name], tensor))
            assert torch.equal(left, right), name
        their_file, our_file = (
            json.loads((path / "hf_quant_config.json").read_text()) for path in (tmp_path / "modelopt", out)
        )
        assert our_file == their_file
        assert our_file["quantization"]["kv_cache_quant_algo"] == "FP8"
        told = json.loads((out / "config.json").read_text())["quantization_config"]
        assert told["kv_cache_scheme"] == {"dynamic": False, "num_bits": 8, "type": "float"}


def export_filled(rank: int, family: Family, reference: Path, config: dict[str, Any], out: Path) -> None:
    """Export one rank with Transformer Engine's attention, which alone has quantizers for a KV cache."""
    from modelopt.torch.export import export_mcore_gpt_to_hf

    chunks = build_model(family, SINGLE, te=True, vocab_rows=family.vocab)
    fill(chunks, family, SINGLE, rank)
    quantize(chunks, family, SINGLE, rank, config)
    export_mcore_gpt_to_hf(chunks[0], str(reference), dtype=torch.bfloat16, export_dir=str(out))


def dump_filled(
    rank: int, family: Family, reference: Path, config: dict[str, Any], out: Path, topology: Topology
) -> None:
    """Dump the same weights with the same calibration."""
    from shardmerge.phase1_dump import dump

    chunks = build_model(family, topology, te=True)
    fill(chunks, family, topology, rank)
    quantize(chunks, family, topology, rank, config)
    dump(chunks, out, hf_reference=reference, run_id="kv", step=7)


def assert_same(theirs: Path, ours: Path) -> None:
    """Every tensor bit for bit, and both JSON files. Two things Model-Optimizer 0.47's Megatron exporter does alone.

    It rounds the router's bias, and it leaves FP8's input_scale with a dimension of one, which its exporter of
    Hugging Face models squeezes away (modelopt/torch/export/unified_export_hf.py).
    """
    left, right = read_hf_tensors(theirs), read_hf_tensors(ours)
    rounded = {name for name in right if name.endswith("e_score_correction_bias")}
    unsqueezed = {name for name, tensor in left.items() if name.endswith(".input_scale") and tensor.ndim == 1}
    assert set(differing(theirs, ours)) == rounded | unsqueezed
    for name in rounded:
        assert torch.equal(left[name], right[name].to(torch.bfloat16))
    for name in unsqueezed:
        assert left[name].dtype == right[name].dtype
        assert torch.equal(left[name].squeeze(), right[name])
    their_file, our_file = (
        json.loads((path / "hf_quant_config.json").read_text()) for path in (theirs, ours)
    )
    their_config, our_config = (
        json.loads((path / "config.json").read_text())["quantization_config"] for path in (theirs, ours)
    )
    mended = mended_excludes(their_file["quantization"]["exclude_modules"], set(right))
    assert our_file == their_file | {"quantization": their_file["quantization"] | {"exclude_modules": mended}}
    assert our_config == their_config | {"ignore": mended}


def mended_excludes(modules: list[str], names: set[str]) -> list[str]:
    """What Model-Optimizer 0.47 should have said of a fused gate and up that stay as they are.

    `_gated_mlp_slicing` records the prefix of both, `model.layers.0.mlp`, which is not a linear: read as a prefix it
    takes the router and every expert of a layer with it. The linears are gate_proj and up_proj.
    """
    found = set()
    for module in modules:
        is_linear = f"{module}.weight" in names
        found.update([module] if is_linear else [f"{module}.gate_proj", f"{module}.up_proj"])
    assert all(f"{module}.weight" in names for module in found)
    return sorted(found)
