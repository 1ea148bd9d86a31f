"""What both JSON files of a quantized checkpoint say that no single rank knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from megatron.core.models.gpt.gpt_model import GPTModel

from shardmerge.common.errors import BadInputError, JoinedMismatchError
from shardmerge.phase2_merge import merge
from shardmerge.phase2_merge.corrections.settle import settled
from shardmerge.phase2_merge.corrections.written import parse
from shardmerge.phase2_merge.quantization import declaration
from shardmerge.phase2_merge.quantization.json_files import corrected_both, excluded
from tests.dumps.quantized_dumps import dump_quantized
from tests.journeys.settings import Dumped, problems
from tests.worlds.checkpoints import read_hf_tensors, write_hf_checkpoint
from tests.worlds.families import Family
from tests.worlds.gloo import GlooRanks, RankError
from tests.worlds.quantizing import NEMOTRON_H, QWEN3_MOE
from tests.worlds.topology import Topology


def test_every_matrix_that_is_not_quantized_is_excluded_by_its_final_name() -> None:
    """Routers, heads, linears of a multi-token predictor, convolutions; no norm, no bias, no quantized linear."""
    weights = {
        "lm_head.weight": (211, 96), "model.embed_tokens.weight": (211, 96), "model.norm.weight": (96,),
        "model.layers.0.mlp.gate.weight": (8, 96), "model.layers.0.mlp.gate.e_score_correction_bias": (8,),
        "model.layers.0.mlp.experts.3.up_proj.weight": (64, 96), "model.layers.0.mixer.conv1d.weight": (96, 1, 4),
        "model.layers.4.eh_proj.weight": (96, 192), "model.layers.4.shared_head.head.weight": (211, 96),
        "model.layers.4.enorm.weight": (96,), "model.layers.4.self_attn.q_proj.weight": (128, 96),
    }  # fmt: skip
    layers = {"model.layers.0.mlp.experts.3.up_proj": "NVFP4"}
    assert excluded(weights.items(), layers) == [
        "lm_head", "model.embed_tokens", "model.layers.0.mixer.conv1d", "model.layers.0.mlp.gate",
        "model.layers.4.eh_proj", "model.layers.4.self_attn.q_proj", "model.layers.4.shared_head.head",
    ]  # fmt: skip


def test_the_kv_cache_is_told_by_the_rank_that_holds_attention(te_ranks: GlooRanks, tmp_path: Path) -> None:
    """Four stages, of which only the third has a layer with attention: neither the first nor the last."""
    reference = write_hf_checkpoint(NEMOTRON_H, tmp_path / "hf")
    te_ranks.call(dump_with_caches, NEMOTRON_H, Topology(pp=4), tmp_path / "dump", reference, None)
    merge([tmp_path / "dump"], tmp_path / "out", hf_reference=reference, workers=1)
    told = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())["quantization"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["kv_cache_quant_algo"] == "FP8"
    assert config["quantization_config"]["kv_cache_scheme"]["num_bits"] == 8
    scales = {name for name in read_hf_tensors(tmp_path / "out") if name.endswith(("k_scale", "v_scale"))}
    assert scales == {f"backbone.layers.2.mixer.{side}_proj.{side}_scale" for side in "kv"}


def test_a_layer_without_a_quantized_kv_cache_is_named(te_ranks: GlooRanks, tmp_path: Path) -> None:
    """Both files declare the cache of all layers, and readers take 1 for a scale that is not there."""
    one = Dumped(tmp_path / "dump", write_hf_checkpoint(QWEN3_MOE, tmp_path / "hf"))
    te_ranks.call(dump_with_caches, QWEN3_MOE, Topology(), one.dump, one.reference, ".layers.2.")
    (problem,) = problems(one)
    assert isinstance(problem, JoinedMismatchError)
    assert problem.first == "the KV cache of model.layers.0.self_attn"
    assert problem.second == "the KV cache of model.layers.2.self_attn"


def test_a_cache_of_keys_alone_stops_the_dump(te_ranks: GlooRanks, tmp_path: Path) -> None:
    reference = write_hf_checkpoint(QWEN3_MOE, tmp_path / "hf")
    with pytest.raises(RankError, match="v_bmm_quantizer is off"):
        te_ranks.call(
            dump_with_caches, QWEN3_MOE, Topology(), tmp_path / "dump", reference, ".layers.2.", ("v_bmm",)
        )


def dump_with_caches(
    family: Family,
    topology: Topology,
    out: Path,
    reference: Path,
    plain: str | None,
    sides: tuple[str, ...] = ("k_bmm", "v_bmm"),
) -> None:
    """FP8 everywhere, KV caches included, but for those sides of the attentions whose names hold `plain`."""

    def spoil(_rank: int, model: GPTModel) -> None:
        for name, module in model.named_modules():
            if plain and plain in name and name.endswith(tuple(f"{side}_quantizer" for side in sides)):
                module.disable()

    dump_quantized(family, topology, "FP8", out, reference, te=True, kv_cache=True, spoil=spoil)


def test_a_correction_may_not_list_a_module_as_a_mixture() -> None:
    statements = {
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {"m": {"quant_algo": "MIXED_PRECISION"}},
    }
    with pytest.raises(BadInputError, match="says MIXED_PRECISION"):
        declaration.refuse_unreadable(statements)


def test_a_correction_may_take_the_format_of_weights_away() -> None:
    hf: dict[str, Any] = {
        "producer": {},
        "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": []},
    }
    changes = settled("quantization", hf["quantization"], parse(["quantization.quant_algo="]))
    now, config = corrected_both(hf, {}, changes)
    assert now is not None
    assert config is not None
    assert (now["quantization"]["quant_algo"], config["config_groups"]) == ("", {})
