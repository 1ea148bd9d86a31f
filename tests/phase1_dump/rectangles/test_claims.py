"""Parameters that no row claims: adapters under the keys that real programs give them, norms that no reader has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shardmerge.common.architectures import Blueprint, blueprint
from shardmerge.common.errors import (
    AdapterError,
    ProblemsFoundError,
    UnclaimedParameterError,
    UnsupportedParameterError,
)
from shardmerge.phase1_dump.rectangles.claims import claim_all
from shardmerge.phase1_dump.rectangles.parameter import Parameter

SIZES: dict[str, Any] = {
    "hidden_size": 72, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 12, "vocab_size": 24,
}  # fmt: skip
RECORDED = json.loads((Path(__file__).parents[2] / "oracles" / "adapters.json").read_text())
LATENT = {
    "q_lora_rank": None, "kv_lora_rank": 28, "qk_nope_head_dim": 20, "qk_rope_head_dim": 8, "v_head_dim": 12,
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 40,
    "first_k_dense_replace": 1,
}  # fmt: skip
SECOND_NORM = "decoder.layers.1.self_attention.linear_q_proj.layer_norm_weight"


def table(architecture: str, **said: Any) -> Blueprint:
    return blueprint({**SIZES, "architectures": [architecture], **said})


def parameter(key: str, shape: tuple[int, ...]) -> Parameter:
    start = (0,) * len(shape)
    return Parameter(key, key, None, shape, start, shape, shape, start, 0)


@pytest.mark.parametrize("program", RECORDED)
def test_adapters_of_real_programs_are_called_that_and_all_named(program: str) -> None:
    held = [parameter(key, tuple(shape)) for key, shape in RECORDED[program]]
    adapters = [one.key for one in held if "adapter" in one.key or "lora" in one.key]
    assert len(adapters) == 4

    with pytest.raises(AdapterError) as caught:
        claim_all([held], table("Qwen3ForCausalLM"), 3)

    assert set(adapters) <= set(caught.value.parameters)
    assert all("adapter" in key or "lora" in key or "base_layer" in key for key in caught.value.parameters)
    assert caught.value.facts()["parameters"] == caught.value.parameters
    assert "LoRA" in caught.value.message()
    assert (caught.value.rank, caught.value.exit_code) == (3, 5)


def test_adapters_and_other_unknown_parameters_are_told_together() -> None:
    key = "decoder.layers.0.self_attention.linear_qkv."
    held = [parameter(f"{key}adapter.linear_in.weight", (4, 72)), parameter(f"{key}temperature", (8,))]

    with pytest.raises(ProblemsFoundError) as caught:
        claim_all([held], table("Qwen3ForCausalLM"), 0)

    assert [type(one) for one in caught.value.problems] == [UnclaimedParameterError, AdapterError]


@pytest.mark.parametrize(
    "architecture", ["DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeLiteForCausalLM"]
)
def test_a_second_norm_before_a_full_query_is_refused_by_name(architecture: str) -> None:
    with pytest.raises(
        UnsupportedParameterError, match="a norm between input_layernorm and the query"
    ) as caught:
        claim_all([[parameter(SECOND_NORM, (72,))]], table(architecture, **LATENT), 0)

    assert caught.value.parameter == SECOND_NORM


def test_a_second_norm_changes_a_query_whatever_its_weights_are() -> None:
    """So weights of one, which do nothing in most places, are no reason to let it pass."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 72, generator=generator)
    once = torch.nn.functional.rms_norm(hidden, (72,), torch.rand(72, generator=generator) + 0.5)
    twice = torch.nn.functional.rms_norm(once, (72,), torch.ones(72))
    assert not torch.allclose(once, twice, rtol=1e-2)
