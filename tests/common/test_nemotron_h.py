"""The table of Nemotron-H: which layer holds what, by the letters or the words of config.json."""

from __future__ import annotations

from typing import Any

import pytest

from shardmerge.common.architectures import blueprint
from shardmerge.common.architectures.settings.says import contradictions
from shardmerge.common.errors import BadInputError

CONFIG: dict[str, Any] = {
    "architectures": ["NemotronHForCausalLM"], "hidden_size": 16, "intermediate_size": 12, "vocab_size": 24,
    "hybrid_override_pattern": "ME*-", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 5,
    "mamba_num_heads": 4, "mamba_head_dim": 3, "n_groups": 2, "ssm_state_size": 7, "conv_kernel": 4,
    "n_routed_experts": 3, "moe_intermediate_size": 20, "moe_shared_expert_intermediate_size": 40,
}  # fmt: skip
LATENT = {"hybrid_override_pattern": "EM", "moe_latent_size": 9}


def shapes(**changes: Any) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in blueprint(CONFIG | changes).tensors()}


def test_every_layer_has_one_norm_and_the_tensors_of_its_mixer() -> None:
    mixer = "backbone.layers.{}.mixer."
    assert shapes() == {
        "backbone.embeddings.weight": (24, 16), "lm_head.weight": (24, 16), "backbone.norm_f.weight": (16,),
        **{f"backbone.layers.{layer}.norm.weight": (16,) for layer in range(4)},
        mixer.format(0) + "in_proj.weight": (12 + 12 + 14 + 14 + 4, 16),
        mixer.format(0) + "conv1d.weight": (12 + 14 + 14, 1, 4), mixer.format(0) + "conv1d.bias": (40,),
        **{mixer.format(0) + name: (4,) for name in ("A_log", "D", "dt_bias")},
        mixer.format(0) + "norm.weight": (12,), mixer.format(0) + "out_proj.weight": (16, 12),
        mixer.format(1) + "gate.weight": (3, 16), mixer.format(1) + "gate.e_score_correction_bias": (3,),
        **{f"{mixer.format(1)}experts.{expert}.up_proj.weight": (20, 16) for expert in range(3)},
        **{f"{mixer.format(1)}experts.{expert}.down_proj.weight": (16, 20) for expert in range(3)},
        mixer.format(1) + "shared_experts.up_proj.weight": (40, 16),
        mixer.format(1) + "shared_experts.down_proj.weight": (16, 40),
        mixer.format(2) + "q_proj.weight": (20, 16), mixer.format(2) + "o_proj.weight": (16, 20),
        mixer.format(2) + "k_proj.weight": (10, 16), mixer.format(2) + "v_proj.weight": (10, 16),
        mixer.format(3) + "up_proj.weight": (12, 16), mixer.format(3) + "down_proj.weight": (16, 12),
    }  # fmt: skip


def test_latent_experts_work_in_their_own_width() -> None:
    found = shapes(**LATENT)
    assert found["backbone.layers.0.mixer.fc1_latent_proj.weight"] == (9, 16)
    assert found["backbone.layers.0.mixer.fc2_latent_proj.weight"] == (16, 9)
    assert found["backbone.layers.0.mixer.experts.2.up_proj.weight"] == (20, 9)
    assert found["backbone.layers.0.mixer.shared_experts.up_proj.weight"] == (40, 16)


@pytest.mark.parametrize(
    "changes", [{}, LATENT, {"hybrid_override_pattern": "MMEE"}, {"use_conv_bias": False}]
)
def test_tensors_of_several_keys_are_listed_and_counted_once(changes: dict[str, Any]) -> None:
    table = blueprint(CONFIG | changes)
    listed = list(table.tensors())
    assert len({tensor.name for tensor in listed}) == len(listed) == table.num_tensors()
    assert table.shapes() == {tensor.name: tensor.shape for tensor in listed}


@pytest.mark.parametrize(
    "words", [["mamba", "moe", "attention", "mlp"], ["linear_attention", "moe", "full_attention", "mlp"]]
)
def test_layers_may_be_told_in_words_as_published_or_as_transformers_5_saves_them(words: list[str]) -> None:
    told = {key: value for key, value in CONFIG.items() if key != "hybrid_override_pattern"}
    assert list(blueprint(told | {"layers_block_type": words}).tensors()) == list(blueprint(CONFIG).tensors())


@pytest.mark.parametrize(
    "changes",
    [{"hybrid_override_pattern": "ME*X"}, {"num_hidden_layers": 5}, {"hybrid_override_pattern": None},
     {"layers_block_type": ["mamba", "wormhole"], "hybrid_override_pattern": None},
     {"layers_block_type": ["mamba"] * 4}, {"layer_types": []}],
)  # fmt: skip
def test_layers_that_are_not_told_or_contradicted_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match="lacks or contradicts"):
        blueprint(CONFIG | changes)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("decoder.layers.0.mixer.in_proj.weight.dt", "backbone.layers.0.mixer.in_proj.weight"),
        ("decoder.layers.0.norm.weight", "backbone.layers.0.norm.weight"),
        ("decoder.layers.0.mixer.in_proj.layer_norm_weight", "backbone.layers.0.norm.weight"),
        ("decoder.layers.1.pre_mlp_layernorm.weight", "backbone.layers.1.norm.weight"),
        ("decoder.layers.2.self_attention.linear_qkv.layer_norm_weight", "backbone.layers.2.norm.weight"),
        ("decoder.layers.3.mlp.linear_fc1.layer_norm_weight", "backbone.layers.3.norm.weight"),
        ("decoder.final_norm.weight", "backbone.norm_f.weight"),
    ],
)
def test_both_spellings_of_a_norm_and_the_parts_of_a_projection_are_claimed(key: str, name: str) -> None:
    claim = blueprint(CONFIG).claim(key)
    assert claim is not None
    assert [tensor.name for tensor in claim.tensors] == [name]


@pytest.mark.parametrize(
    "key",
    [
        "decoder.layers.1.mixer.in_proj.weight.z",  # layer 1 has experts
        "decoder.layers.0.pre_mlp_layernorm.weight",
        "decoder.layers.3.mlp.router.weight",
        "decoder.layers.0.mixer.in_proj.weight",  # megatron-core tells it in parts
        "decoder.layers.1.mlp.fc1_latent_proj.weight",  # not latent
        "mtp.layers.0.mtp_model_layer.layers.0.self_attention.linear_qkv.weight",
    ],
)
def test_what_a_layer_of_this_kind_does_not_hold_is_not_claimed(key: str) -> None:
    assert blueprint(CONFIG).claim(key) is None


def test_state_decay_and_skip_stay_float32_and_the_bias_of_steps_does_not() -> None:
    wide = {tensor.name.rpartition(".")[2] for tensor in blueprint(CONFIG).tensors() if tensor.float32}
    assert wide == {"A_log", "D", "e_score_correction_bias"}


def test_names_that_only_transformers_knows_may_not_contradict_the_others() -> None:
    assert "backbone.layers.0.mixer.conv1d.bias" not in shapes(mamba_conv_bias=False)
    for key, value in {"mamba_d_conv": 2, "mamba_conv_bias": False}.items():
        table = blueprint(CONFIG | {"use_conv_bias": True, key: value})
        ((_, other),) = contradictions(table.config, table.synonyms)
        assert other == (key, value)
