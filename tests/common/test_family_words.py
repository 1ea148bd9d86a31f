"""What config.json of single families says in words of its own, written by hand from transformers' config classes."""

from __future__ import annotations

from typing import Any

import pytest

from shardmerge.common.architectures import blueprint
from shardmerge.common.errors import BadInputError

Json = dict[str, Any]
SIZES: Json = {
    "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "vocab_size": 24,
}  # fmt: skip
ROUTED: Json = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 20}


def config(architecture: str, **said: Any) -> Json:
    return {**SIZES, "architectures": [architecture], **said}


def setting(name: str, said: Json) -> Any:
    return blueprint(said).settings()[name].value


def test_mistral_has_a_window_unless_config_json_says_null() -> None:
    assert setting("sliding_windows", config("MistralForCausalLM")) == [4096] * 4
    assert setting("sliding_windows", config("MistralForCausalLM", sliding_window=16)) == [16] * 4
    assert setting("sliding_windows", config("MistralForCausalLM", sliding_window=None)) is None


def test_norms_over_all_heads_have_two_keys() -> None:
    table = blueprint(config("OlmoeForCausalLM", num_experts=3, num_experts_per_tok=2))
    for name in ("k_layernorm", "k_norm"):
        claim = table.claim(f"decoder.layers.1.self_attention.{name}.weight")
        assert claim is not None
        assert claim.tensors[0][:2] == ("model.layers.1.self_attn.k_norm.weight", (12,))


@pytest.mark.parametrize(
    "said",
    [
        config("OlmoeForCausalLM", num_experts=3, attention_bias=True),
        config("NemotronForCausalLM", mlp_bias=True),
        config("Ernie4_5_MoeForCausalLM", moe_num_experts=3, moe_intermediate_size=20, use_bias=True),
    ],
    ids=lambda said: said["architectures"][0],
)
def test_biases_that_no_row_has_are_refused(said: Json) -> None:
    with pytest.raises(BadInputError, match="of which the table knows no tensors"):
        blueprint(said)


def test_a_clip_of_olmoe_is_a_setting() -> None:
    assert setting("projection_clip", config("OlmoeForCausalLM", num_experts=3)) is None
    assert setting("projection_clip", config("OlmoeForCausalLM", num_experts=3, clip_qkv=8.0)) == 8.0


def test_minimax_says_how_many_channels_rotate_or_which_part() -> None:
    def pairs(**said: Any) -> int:
        found = setting("rope_frequencies", config("MiniMaxM2ForCausalLM", num_local_experts=3, **said))
        return len(found)

    assert (pairs(), pairs(rotary_dim=4)) == (3, 2)
    assert pairs(rotary_dim=4, rope_parameters={"rope_theta": 5e6, "partial_rotary_factor": 4 / 6}) == 2
    with pytest.raises(BadInputError, match="rotary_dim = 2"):
        pairs(rotary_dim=2, rope_parameters={"rope_theta": 5e6, "partial_rotary_factor": 4 / 6})


def test_half_of_a_head_of_nemotron_rotates_unless_config_json_says_otherwise() -> None:
    plain = config("NemotronForCausalLM", head_dim=8)
    assert len(setting("rope_frequencies", plain)) == 2
    assert len(setting("rope_frequencies", {**plain, "partial_rotary_factor": 0.25})) == 1


def ernie(**said: Any) -> Json:
    return config("Ernie4_5_MoeForCausalLM", moe_num_experts=3, moe_intermediate_size=20, **said)


def test_layers_with_experts_of_ernie() -> None:
    assert sorted(blueprint(ernie()).layers["moe"]) == [1, 2, 3]  # type: ignore[call-overload]
    some = ernie(moe_layer_start_index=0, moe_layer_end_index=2, moe_layer_interval=2)
    assert sorted(blueprint(some).layers["moe"]) == [1]  # type: ignore[call-overload]


def test_ernie_is_tied_and_has_two_shared_experts_unless_config_json_says_otherwise() -> None:
    shapes = blueprint(ernie()).shapes()
    assert "lm_head.weight" not in shapes
    assert shapes["model.layers.1.mlp.shared_experts.up_proj.weight"] == (40, 8)
    assert shapes["model.layers.1.mlp.moe_statics.e_score_correction_bias"] == (1, 3)
    shapes = blueprint(ernie(tie_word_embeddings=False, moe_num_shared_experts=0)).shapes()
    assert "lm_head.weight" in shapes
    assert not [name for name in shapes if "shared" in name]


def exaone(**said: Any) -> Json:
    return config("ExaoneMoEForCausalLM", **ROUTED, **said)


def test_layers_of_exaone_that_see_all_do_not_rotate() -> None:
    assert setting("sliding_windows", exaone()) == [4096, 4096, 4096, 0]
    assert setting("layers_without_rope", exaone()) == [0, 0, 0, 1]
    listed = exaone(sliding_window=16, layer_types=["full_attention"] + ["sliding_attention"] * 3)
    assert setting("sliding_windows", listed) == [0, 16, 16, 16]
    assert setting("layers_without_rope", listed) == [1, 0, 0, 0]
    assert setting("layers_without_rope", exaone(sliding_window=None)) is None


def test_a_step_of_exaone_is_dense_and_there_is_one() -> None:
    names = {
        name for name in blueprint(exaone(num_nextn_predict_layers=1)).shapes() if name.startswith("mtp.")
    }
    assert {"mtp.fc.weight", "mtp.norm.weight", "mtp.layers.0.mlp.up_proj.weight"} < names
    assert not [name for name in names if "experts" in name or "gate.weight" in name]
    shared = exaone(num_nextn_predict_layers=3, mtp_share_layers=True)
    assert setting("mtp_steps", shared) == 1
    with pytest.raises(BadInputError, match="without mtp_share_layers"):
        blueprint(exaone(num_nextn_predict_layers=2))


def test_every_other_layer_of_qwen2_moe_has_a_window_if_it_is_switched_on() -> None:
    plain = config("Qwen2MoeForCausalLM", **ROUTED, shared_expert_intermediate_size=28)
    assert setting("sliding_windows", plain) is None
    assert setting("sliding_windows", plain | {"use_sliding_window": True, "sliding_window": 16}) == [
        16,
        0,
        16,
        0,
    ]
    gate = "model.layers.0.mlp.shared_expert_gate.weight"
    assert blueprint(plain).shapes()[gate] == (1, 8)
