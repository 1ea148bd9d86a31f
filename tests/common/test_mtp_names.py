"""Names of tensors of multi-token prediction (MTP), against those that the loaders of vLLM and SGLang ask for.

The lists were written by hand from the sources of the loaders. Both loaders of Nemotron-H skip a name that they do not
know in silence, so that a wrong one would go unseen: what drafts would be noise.

Sources: vllm 0.32.0, vllm/model_executor/models/nemotron_h_mtp.py (`NemotronHMTP.load_weights`, parameters of
`NemotronHMTPAttentionDecoderLayer` and `NemotronHMTPMoEDecoderLayer`) and deepseek_mtp.py (`DeepSeekMTP.load_weights`,
`_rewrite_spec_layer_name`); sglang 0.5.23, sglang/srt/models/nemotron_h_mtp.py and nemotron_h.py
(`NemotronHForCausalLM.load_weights(is_mtp=True)`) and deepseek_common/deepseek_weight_loader.py (`do_load_weights`,
`_initialize_nextn_conf`).
"""

from __future__ import annotations

from typing import Any

import pytest

from shardmerge.common.architectures import blueprint

NEMOTRON_H: dict[str, Any] = {
    "architectures": ["NemotronHForCausalLM"], "hidden_size": 16, "vocab_size": 24, "hybrid_override_pattern": "ME*",
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 5, "mamba_num_heads": 4, "mamba_head_dim": 3,
    "n_groups": 2, "ssm_state_size": 7, "conv_kernel": 4, "n_routed_experts": 2, "moe_intermediate_size": 20,
    "moe_shared_expert_intermediate_size": 40, "moe_latent_size": 9, "num_nextn_predict_layers": 1,
    "mtp_hybrid_override_pattern": "*E",
}  # fmt: skip
DEEPSEEK_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "num_hidden_layers": 3, "hidden_size": 16, "intermediate_size": 12,
    "vocab_size": 24, "num_attention_heads": 4, "n_routed_experts": 2, "moe_intermediate_size": 20,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "q_lora_rank": 6, "kv_lora_rank": 7, "qk_nope_head_dim": 5,
    "qk_rope_head_dim": 2, "v_head_dim": 3, "num_nextn_predict_layers": 1,
}  # fmt: skip

# vLLM and SGLang ask for the same. Embedding and head are the model's own, without a copy.
OF_LATENT_EXPERTS = {"mtp.layers.1.mixer.fc1_latent_proj.weight", "mtp.layers.1.mixer.fc2_latent_proj.weight"}
OF_NEMOTRON_H = OF_LATENT_EXPERTS | {
    "mtp.layers.0.enorm.weight",
    "mtp.layers.0.hnorm.weight",
    "mtp.layers.0.eh_proj.weight",
    "mtp.layers.0.norm.weight",
    "mtp.layers.0.mixer.q_proj.weight",
    "mtp.layers.0.mixer.k_proj.weight",
    "mtp.layers.0.mixer.v_proj.weight",
    "mtp.layers.0.mixer.o_proj.weight",
    "mtp.layers.1.norm.weight",
    "mtp.layers.1.mixer.gate.weight",
    "mtp.layers.1.mixer.gate.e_score_correction_bias",
    "mtp.layers.1.mixer.shared_experts.up_proj.weight",
    "mtp.layers.1.mixer.shared_experts.down_proj.weight",
    "mtp.layers.1.mixer.experts.0.up_proj.weight",
    "mtp.layers.1.mixer.experts.0.down_proj.weight",
    "mtp.layers.1.mixer.experts.1.up_proj.weight",
    "mtp.layers.1.mixer.experts.1.down_proj.weight",
    "mtp.layers.1.final_layernorm.weight",
}

# SGLang passes over these two, in words, and takes the model's own; vLLM reads them.
COPIES = {"model.layers.3.embed_tokens.weight", "model.layers.3.shared_head.head.weight"}
OF_DEEPSEEK_V3 = COPIES | {
    "model.layers.3.enorm.weight",
    "model.layers.3.hnorm.weight",
    "model.layers.3.eh_proj.weight",
    "model.layers.3.shared_head.norm.weight",
    "model.layers.3.input_layernorm.weight",
    "model.layers.3.post_attention_layernorm.weight",
    "model.layers.3.self_attn.q_a_proj.weight",
    "model.layers.3.self_attn.q_a_layernorm.weight",
    "model.layers.3.self_attn.q_b_proj.weight",
    "model.layers.3.self_attn.kv_a_proj_with_mqa.weight",
    "model.layers.3.self_attn.kv_a_layernorm.weight",
    "model.layers.3.self_attn.kv_b_proj.weight",
    "model.layers.3.self_attn.o_proj.weight",
    "model.layers.3.mlp.gate.weight",
    "model.layers.3.mlp.gate.e_score_correction_bias",
    "model.layers.3.mlp.shared_experts.gate_proj.weight",
    "model.layers.3.mlp.shared_experts.up_proj.weight",
    "model.layers.3.mlp.shared_experts.down_proj.weight",
    "model.layers.3.mlp.experts.0.gate_proj.weight",
    "model.layers.3.mlp.experts.0.up_proj.weight",
    "model.layers.3.mlp.experts.0.down_proj.weight",
    "model.layers.3.mlp.experts.1.gate_proj.weight",
    "model.layers.3.mlp.experts.1.up_proj.weight",
    "model.layers.3.mlp.experts.1.down_proj.weight",
}


def mtp_names(config: dict[str, Any]) -> list[str]:
    table = blueprint(config)
    return sorted(tensor.name for tensor in table.tensors() if table.is_mtp(tensor.name))


@pytest.mark.parametrize(
    "spelling",
    [
        {},
        {"mtp_layers_block_type": ["attention", "moe"], "mtp_hybrid_override_pattern": None},
        {"mtp_layers_block_type": ["full_attention", "moe"], "mtp_hybrid_override_pattern": None},
    ],
)
def test_a_step_of_nemotron_h_has_the_names_that_vllm_and_sglang_load(spelling: dict[str, Any]) -> None:
    assert mtp_names(NEMOTRON_H | spelling) == sorted(OF_NEMOTRON_H)


def test_a_step_of_nemotron_h_without_latent_experts_has_no_latent_projections() -> None:
    assert mtp_names(NEMOTRON_H | {"moe_latent_size": None}) == sorted(OF_NEMOTRON_H - OF_LATENT_EXPERTS)


def test_a_step_of_deepseek_v3_has_the_names_that_vllm_loads_and_sglang_loads_all_but_copies() -> None:
    assert mtp_names(DEEPSEEK_V3) == sorted(OF_DEEPSEEK_V3)
    assert set(blueprint(DEEPSEEK_V3).copies()) == COPIES
