"""Settings as config.json says them where readers differ, and values that nobody computes with."""

from __future__ import annotations

from typing import Any

import pytest

from shardmerge.common.architectures import blueprint
from shardmerge.common.architectures.settings.vocabulary import agree, spell

DENSE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 64,
}
HYBRID = {
    **DENSE,
    "hybrid_override_pattern": "M*",
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "n_groups": 2,
    "ssm_state_size": 4,
    "conv_kernel": 4,
}
MIXED = {"layer_types": ["full_attention", "sliding_attention"]}
TOO_LARGE = 10**400


def said(name: str, config: dict[str, Any]) -> dict[str, Any]:
    found = blueprint({**config, "architectures": [name]}).settings()
    return {setting: one.value for setting, one in found.items()}


@pytest.mark.parametrize(
    ("name", "changes", "windows"),
    [
        ("LlamaForCausalLM", {"sliding_window": 8}, None),
        ("LlamaForCausalLM", {"sliding_window": 8, **MIXED}, [0, 8]),
        ("Qwen2ForCausalLM", {"sliding_window": 8}, None),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "max_window_layers": 1}, [0, 4096]),
        (
            "Qwen2ForCausalLM",
            {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": None},
            None,
        ),
    ],
)
def test_windows_of_dense_decoders(name: str, changes: dict[str, Any], windows: list[int] | None) -> None:
    assert said(name, DENSE | changes)["sliding_windows"] == windows


def test_windows_of_hybrids() -> None:
    assert said("NemotronHForCausalLM", HYBRID)["sliding_windows"] is None
    assert said("NemotronHForCausalLM", HYBRID | {"sliding_window": None})["sliding_windows"] is None
    assert said("NemotronHForCausalLM", HYBRID | {"sliding_window": 8})["sliding_windows"] == [8, 8]


def test_a_window_of_qwen3_moe_that_is_switched_on_has_the_size_of_transformers() -> None:
    experts = {"num_experts": 4, "moe_intermediate_size": 8, "num_experts_per_tok": 2}
    config = {**DENSE, **experts, "use_sliding_window": True}
    assert said("Qwen3MoeForCausalLM", config)["sliding_windows"] == [4096, 4096]


@pytest.mark.parametrize(("name", "config"), [("LlamaForCausalLM", DENSE), ("NemotronHForCausalLM", HYBRID)])
def test_attention_is_causal_unless_config_json_says_otherwise(name: str, config: dict[str, Any]) -> None:
    assert said(name, config)["causal"] is True
    assert said(name, config | {"is_causal": None})["causal"] is True
    assert said(name, config | {"is_causal": False})["causal"] is False


def test_integers_that_no_float_holds_are_compared() -> None:
    assert not agree(2, TOO_LARGE)
    assert not agree([8.0, 4], [TOO_LARGE, 4])
    assert agree(TOO_LARGE, TOO_LARGE)


@pytest.mark.parametrize(
    "value", [[None, 1.0], [1e-150, 1e150, 1.0], [1, TOO_LARGE, 3], [float("nan"), 1.0], [1.0, 0.5, 0.25]]
)
def test_every_list_of_frequencies_has_a_spelling(value: list[Any]) -> None:
    assert spell("rope_frequencies", value)
