"""What config.json of single families says in words of its own, written by hand from transformers' config classes."""

from __future__ import annotations

from typing import Any

import pytest

from shardmerge.common.architectures import blueprint
from shardmerge.common.errors import BadInputError
from tests.common.published_words import DEEPSEEK_V3, DEEPSEEK_V32, GLM_5, QWEN3_30B
from tests.scale.models import NEMOTRON_3_SUPER

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
        config("LlamaForCausalLM", attention_bias=True),
        config("LlamaForCausalLM", mlp_bias=True),
        config("MistralForCausalLM", attention_bias=True),
        config("Qwen3ForCausalLM", attention_bias=True),
        {**QWEN3_30B, "attention_bias": True},
        {**DEEPSEEK_V3, "attention_bias": True},
        {**DEEPSEEK_V32, "mlp_bias": True},
        {**GLM_5, "attention_bias": True},
        {**NEMOTRON_3_SUPER, "mlp_bias": True},
        {**NEMOTRON_3_SUPER, "use_bias": True},
    ],
    ids=lambda said: said["architectures"][0],
)
def test_biases_that_no_row_has_are_refused(said: Json) -> None:
    with pytest.raises(BadInputError, match="of which the table knows nothing"):
        blueprint(said)


def test_layers_that_readers_of_deepseek_would_build_otherwise_are_refused() -> None:
    """vLLM heeds how often a layer has experts, and multiplies the width of Nemotron-H's shared experts."""
    with pytest.raises(BadInputError, match="moe_layer_freq = 2"):
        blueprint(DEEPSEEK_V3 | {"moe_layer_freq": 2})
    with pytest.raises(BadInputError, match="n_shared_experts = 2"):
        blueprint(NEMOTRON_3_SUPER | {"n_shared_experts": 2})
    assert blueprint(DEEPSEEK_V3 | {"moe_layer_freq": 1}).num_tensors()


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


def test_attention_of_another_kind_is_not_minimax_m2s() -> None:
    known: Json = {"use_qk_norm": True, "qk_norm_type": "per_layer", "attn_type_list": [1] * 4}
    assert blueprint(config("MiniMaxM2ForCausalLM", num_local_experts=3, **known)).num_tensors()
    others: Json = {"use_qk_norm": False, "qk_norm_type": "per_head", "attn_type_list": [1, 0, 1, 1]}
    for name, other in others.items():
        with pytest.raises(BadInputError, match=name):
            blueprint(config("MiniMaxM2ForCausalLM", num_local_experts=3, **{**known, name: other}))


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


def llama4(**said: Any) -> Json:
    experts = {"num_local_experts": 3, "num_experts_per_tok": 1, "intermediate_size_mlp": 28}
    return config("Llama4ForCausalLM", **experts, max_position_embeddings=64, **said)


def test_layers_with_experts_of_llama_4_alternate() -> None:
    shapes = blueprint(llama4(interleave_moe_layer_step=2)).shapes()
    assert shapes["model.layers.1.feed_forward.experts.gate_up_proj"] == (3, 8, 24)
    assert shapes["model.layers.1.feed_forward.experts.down_proj"] == (3, 12, 8)
    assert shapes["model.layers.1.feed_forward.shared_expert.up_proj.weight"] == (12, 8)
    assert shapes["model.layers.0.feed_forward.up_proj.weight"] == (28, 8)
    assert sorted(blueprint(llama4()).layers["moe"]) == [0, 1, 2, 3]  # type: ignore[call-overload]
    listed = llama4(interleave_moe_layer_step=2, moe_layers=[1, 3])
    assert sorted(blueprint(listed).layers["moe"]) == [1, 3]  # type: ignore[call-overload]
    with pytest.raises(BadInputError, match="moe_layers"):
        blueprint(llama4(moe_layers=[1, 3]))


def test_chunks_and_growing_queries_of_llama_4_tell_only_of_longer_sequences() -> None:
    long = llama4(no_rope_layers=[1, 1, 0, 1]) | {"max_position_embeddings": 10000}
    assert setting("layers_without_rope", long) == [0, 0, 1, 0]
    assert setting("attention_chunk", long) == 8192
    assert setting("attention_temperature", long) == [0.1, 8192.0]
    assert setting("attention_temperature", long | {"attn_temperature_tuning": False}) is None
    short = llama4()
    assert (setting("attention_chunk", short), setting("attention_temperature", short)) == (None, None)
    assert setting("layers_without_rope", short) == [0, 0, 0, 1]
    with pytest.raises(BadInputError, match="which not all readers heed"):
        setting("attention_chunk", long | {"layer_types": ["full_attention"] * 4})


def gemma3(**said: Any) -> Json:
    return config("Gemma3ForCausalLM", **said)


def test_gemma_3_rotates_by_two_bases_however_config_json_says_them() -> None:
    published = gemma3(
        rope_theta=64.0, rope_local_base_freq=8.0, rope_scaling={"rope_type": "linear", "factor": 2.0}
    )
    nested = gemma3(
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 64.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 8.0},
        }
    )
    for said in (published, nested):
        assert setting("rope_frequencies", said) == pytest.approx([0.5, 0.125, 0.03125])
        assert setting("rope_local_frequencies", said) == pytest.approx([1, 0.5, 0.25])
    assert setting("rope_frequencies", gemma3()) == pytest.approx([1, 0.01, 0.0001])
    assert setting("rope_local_frequencies", gemma3())[1] == pytest.approx(10000 ** (-1 / 3))
    with pytest.raises(BadInputError, match="rope_frequencies"):
        setting("rope_frequencies", gemma3(rope_parameters={"rope_theta": 64.0}))


def test_gemma_3_multiplies_its_embedding_and_has_a_scale_of_its_own() -> None:
    said = gemma3(query_pre_attn_scalar=16, sliding_window_pattern=2, sliding_window=32)
    assert setting("embedding_scale", said) == pytest.approx(8**0.5)
    assert setting("softmax_scale", said) == 0.25
    assert setting("sliding_windows", said) == [32, 0, 32, 0]
    assert "lm_head.weight" not in blueprint(said).shapes()
    for name in ("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"):
        with pytest.raises(BadInputError, match=name):
            blueprint(gemma3(**{name: 30.0}))


def bailing(**said: Any) -> Json:
    return config("BailingMoeV2ForCausalLM", **ROUTED, **said)


def test_bailing_has_one_tensor_for_queries_keys_and_values() -> None:
    shapes = blueprint(bailing(num_nextn_predict_layers=1)).shapes()
    assert shapes["model.layers.0.attention.query_key_value.weight"] == (48, 8)  # 4 + 2 + 2 heads of 6
    assert shapes["model.layers.1.mlp.shared_experts.up_proj.weight"] == (20, 8)
    assert "model.layers.4.final_layernorm.weight" in shapes
    assert "model.layers.4.mlp.experts.2.up_proj.weight" in shapes
    assert len(setting("rope_frequencies", bailing(partial_rotary_factor=0.5, rotary_dim=3))) == 1


@pytest.mark.parametrize(
    "said",
    [
        {"use_rmsnorm": False},
        {"moe_router_enable_expert_bias": False},
        {"norm_head": True},
        {"use_qkv_bias": True},
        {"moe_shared_expert_intermediate_size": 24},
    ],
    ids=lambda said: next(iter(said)),
)
def test_what_no_row_of_bailing_has_is_refused(said: Json) -> None:
    with pytest.raises(BadInputError, match=next(iter(said))):
        blueprint(bailing(**said))


def test_all_values_that_a_table_does_not_know_are_named() -> None:
    with pytest.raises(BadInputError, match="use_qkv_bias = True, norm_head = True, use_rmsnorm = False"):
        blueprint(bailing(use_qkv_bias=True, norm_head=True, use_rmsnorm=False))


SHARED: Json = {**ROUTED, "shared_expert_intermediate_size": 28}


def delta(architecture: str = "Qwen3NextForCausalLM", **said: Any) -> Json:
    return config(architecture, **SHARED, **said)


def test_every_fourth_layer_has_attention_unless_config_json_says_otherwise() -> None:
    assert setting("linear_attention_layers", delta()) == [1, 1, 1, 0]
    assert setting("linear_attention_layers", delta(full_attention_interval=2)) == [1, 0, 1, 0]
    kinds = ["full_attention", "linear_attention", "linear_attention", "full_attention"]
    assert setting("linear_attention_layers", delta(layer_types=kinds)) == [0, 1, 1, 0]
    none = delta(layer_types=["full_attention"] * 4)
    assert (setting("linear_attention_layers", none), setting("attention_variant", none)) == (None, None)
    for wrong in (kinds[:3], [*kinds[:3], "sliding_attention"]):
        with pytest.raises(BadInputError, match="layer_types"):
            blueprint(delta(layer_types=wrong))


def test_sizes_of_a_delta_net_are_those_of_the_config_class_where_config_json_says_nothing() -> None:
    said = blueprint(delta()).settings()
    names = ("delta_key_heads", "delta_value_heads", "delta_key_dim", "delta_value_dim", "delta_kernel")
    assert [said[name].value for name in names] == [16, 32, 128, 128, 4]
    shapes = blueprint(delta()).shapes()
    assert shapes["model.layers.0.linear_attn.in_proj_qkvz.weight"] == (2 * 2048 + 2 * 4096, 8)
    assert shapes["model.layers.3.self_attn.q_proj.weight"] == (2 * 4 * 6, 8)
    with pytest.raises(BadInputError, match="linear_num_key_heads = 3"):
        blueprint(delta(linear_num_key_heads=3))


def test_a_quarter_of_a_head_of_qwen3_next_rotates_unless_config_json_says_otherwise() -> None:
    assert len(setting("rope_frequencies", delta(head_dim=16))) == 2
    assert len(setting("rope_frequencies", delta(head_dim=16, partial_rotary_factor=0.5))) == 4


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (delta(attention_bias=True), "attention_bias = True"),
        (delta("Qwen3_5MoeForCausalLM", attn_output_gate=False), "attn_output_gate"),
        (delta("Qwen3_5MoeForCausalLM", mtp_use_dedicated_embeddings=True), "mtp_use_dedicated_embeddings"),
        (delta(num_nextn_predict_layers=2), "num_nextn_predict_layers = 2"),
        ({key: value for key, value in delta().items() if key != "head_dim"}, "head_dim"),
    ],
    ids=["bias", "gate", "embeddings", "steps", "head_dim"],
)
def test_what_the_tables_of_delta_nets_do_not_know_is_refused(said: Json, why: str) -> None:
    with pytest.raises(BadInputError, match=why):
        blueprint(said)


def test_readers_of_a_delta_net_have_one_activation() -> None:
    with pytest.raises(BadInputError, match="where a DeltaNet has silu"):
        blueprint(delta(hidden_act="gelu")).settings()


def test_a_step_of_qwen3_next_is_promised_by_a_number_or_by_the_tensors_that_are_there() -> None:
    def steps(said: Json, held: tuple[str, ...] = ()) -> int:
        return len(blueprint(said, held).mtp_layers)

    held = ("mtp.fc.weight",)
    assert (steps(delta()), steps(delta(), held)) == (0, 1)
    assert (steps(delta(num_nextn_predict_layers=1)), steps(delta(num_nextn_predict_layers=0), held)) == (
        1,
        0,
    )
    assert steps(delta("Qwen3_5MoeForCausalLM", mtp_num_hidden_layers=1)) == 1
    mtp = blueprint(delta(), held).architecture.mtp
    assert mtp is not None
    assert steps(dict(mtp.without(delta())), held) == 0
