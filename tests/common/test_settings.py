"""Settings as config.json says them where readers differ, and values that nobody computes with."""

from __future__ import annotations

from typing import Any

import pytest

from shardmerge.common.architectures import blueprint
from shardmerge.common.architectures.settings.says import contradictions
from shardmerge.common.architectures.settings.vocabulary import agree, spell
from shardmerge.common.errors import BadInputError

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


EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}
LATENT = {
    **DENSE,
    **EXPERTS,
    "n_routed_experts": 4,
    "first_k_dense_replace": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 2,
    "v_head_dim": 4,
}


@pytest.mark.parametrize(
    ("key", "setting"), [("norm_topk_prob", "router_normalized"), ("rope_interleave", "rope_interleaved")]
)
def test_null_is_false_where_readers_test_for_truth(key: str, setting: str) -> None:
    assert said("DeepseekV3ForCausalLM", LATENT)[setting] is True
    assert said("DeepseekV3ForCausalLM", LATENT | {key: None})[setting] is False


def test_a_full_query_is_said_and_not_left_out() -> None:
    """Readers take 1536 for the rank that is not there."""
    without = {key: value for key, value in LATENT.items() if key != "q_lora_rank"}
    with pytest.raises(BadInputError, match="q_lora_rank"):
        said("DeepseekV3ForCausalLM", without)


@pytest.mark.parametrize("groups", [(4, 0), (0, 1), (1, 2)])
def test_groups_of_experts_that_leave_a_token_none_are_refused(groups: tuple[int, int]) -> None:
    config = LATENT | {"n_group": groups[0], "topk_group": groups[1]}
    with pytest.raises(BadInputError, match="router_groups"):
        said("DeepseekV3ForCausalLM", config)


@pytest.mark.parametrize(
    "name", ["Qwen2ForCausalLM", "Qwen2MoeForCausalLM", "Dots1ForCausalLM", "GptOssForCausalLM"]
)
def test_layers_that_are_said_to_have_a_window_have_one(name: str) -> None:
    """Some readers let such a layer see nothing at all."""
    sizes = {"num_experts": 4, "shared_expert_intermediate_size": 8, "num_local_experts": 4}
    config = {**LATENT, **sizes, **MIXED, "sliding_window": 0}
    if name == "GptOssForCausalLM":  # 0 is as good as nothing there
        assert said(name, config)["sliding_windows"] == [0, 128]
        return
    with pytest.raises(BadInputError, match="sliding_windows"):
        said(name, config)


@pytest.mark.parametrize(
    ("name", "key"), [("GlmMoeDsaForCausalLM", "indexer_types"), ("Llama4ForCausalLM", "no_rope_layers")]
)
def test_a_list_that_is_shorter_than_the_layers_is_refused(name: str, key: str) -> None:
    sizes = {"index_n_heads": 2, "index_head_dim": 4, "index_topk": 4, "intermediate_size_mlp": 8}
    config = {**LATENT, **sizes, "q_lora_rank": 6, "num_local_experts": 4, key: ["full"]}
    with pytest.raises(BadInputError, match="of 1 layers"):
        said(name, config)


@pytest.mark.parametrize(
    ("name", "inside"), [("DeepseekV3ForCausalLM", ""), ("KimiK25ForConditionalGeneration", "text_config")]
)
def test_the_number_of_experts_may_not_be_said_twice_and_differ(name: str, inside: str) -> None:
    """transformers takes num_local_experts for the same, and the one that comes last in the file counts."""
    config = LATENT | {"num_local_experts": 8}
    table = blueprint({"architectures": [name], **({inside: config} if inside else config)})
    ((one, other),) = contradictions(table.config, table.synonyms)
    assert {one[1], other[1]} == {4, 8}


def test_integers_that_no_float_holds_are_compared() -> None:
    assert not agree(2, TOO_LARGE)
    assert not agree([8.0, 4], [TOO_LARGE, 4])
    assert agree(TOO_LARGE, TOO_LARGE)


@pytest.mark.parametrize(
    "value", [[None, 1.0], [1e-150, 1e150, 1.0], [1, TOO_LARGE, 3], [float("nan"), 1.0], [1.0, 0.5, 0.25]]
)
def test_every_list_of_frequencies_has_a_spelling(value: list[Any]) -> None:
    assert spell("rope_frequencies", value)
