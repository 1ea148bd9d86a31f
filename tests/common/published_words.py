"""What config.json of published models says of sizes: what families share, and whole ones that several models have.

Must not know tables, nor how many parameters there are.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def config(
    architecture: str, hidden: int, ffn: int, layers: int, heads: tuple[int, int], vocab: int, **said: Any
) -> Json:
    """What config.json says; `heads` are those of queries, and of keys and values."""
    return {
        "architectures": [architecture],
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocab,
        **said,
    }


def latent(query: int | None, nope: int = 128, value: int = 128) -> Json:
    return {
        "q_lora_rank": query,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": 64,
        "v_head_dim": value,
    }


def deepseek(routed: int, shared: int, width: int, dense: int) -> Json:
    return {
        "n_routed_experts": routed,
        "n_shared_experts": shared,
        "moe_intermediate_size": width,
        "first_k_dense_replace": dense,
    }


def glm(hidden: int, ffn: int, layers: int, experts: Json, *, norms: bool) -> Json:
    own = {"head_dim": 128, "attention_bias": True, "use_qk_norm": norms, "num_nextn_predict_layers": 1}
    return config("Glm4MoeForCausalLM", hidden, ffn, layers, (96, 8), 151552, **own, **experts)


def ling(hidden: int, ffn: int, layers: int, heads: tuple[int, int], width: int) -> Json:
    own = {"head_dim": 128, "num_experts": 256, "num_shared_experts": 1, "moe_intermediate_size": width}
    return config(
        "BailingMoeV2ForCausalLM", hidden, ffn, layers, heads, 157184, first_k_dense_replace=1, **own
    )


def llama4(experts: int, step: int) -> Json:
    own = {"head_dim": 128, "num_local_experts": experts, "intermediate_size_mlp": 16384}
    return config("Llama4ForCausalLM", 5120, 8192, 48, (40, 8), 202048, interleave_moe_layer_step=step, **own)


DEEPSEEK_V3 = config(
    "DeepseekV3ForCausalLM",
    7168,
    18432,
    61,
    (128, 128),
    129280,
    num_nextn_predict_layers=1,
    **latent(1536),
    **deepseek(256, 1, 2048, 3),
)
DEEPSEEK_V32 = DEEPSEEK_V3 | {
    "architectures": ["DeepseekV32ForCausalLM"],
    "num_nextn_predict_layers": 0,
    "index_n_heads": 64,
    "index_head_dim": 128,
}
GLM_45 = glm(5120, 12288, 92, deepseek(160, 1, 1536, 3), norms=True)
GLM_45_AIR = glm(4096, 10944, 46, deepseek(128, 1, 1408, 1), norms=False)


def delta(value_heads: int, **said: Any) -> Json:
    """Every fourth layer has attention, the others a Gated DeltaNet."""
    return {
        "head_dim": 256,
        "full_attention_interval": 4,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": value_heads,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        **said,
    }


def composite(architecture: str, text: Json, vision: Json) -> Json:
    """A language model beside a vision tower; `text` is what its own config.json would say."""
    tied = {"tie_word_embeddings": text.get("tie_word_embeddings", False)}
    return {"architectures": [architecture], "text_config": text, "vision_config": vision, **tied}


def qwen_vision(out: int, *, depth: int = 27, hidden: int = 1152, ffn: int = 4304, **said: Any) -> Json:
    return {
        "depth": depth,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_heads": 16,
        "out_hidden_size": out,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "num_position_embeddings": 2304,
        **said,
    }


QWEN = {"num_experts": 128, "head_dim": 128}
QWEN3_8B = config("Qwen3ForCausalLM", 4096, 12288, 36, (32, 8), 151936, head_dim=128)
QWEN3_30B = config("Qwen3MoeForCausalLM", 2048, 6144, 48, (32, 4), 151936, moe_intermediate_size=768, **QWEN)
QWEN35_27B = config(
    "Qwen3_5ForCausalLM", 5120, 17408, 64, (24, 4), 248320, **delta(48, mtp_num_hidden_layers=1)
)
QWEN35_35B = config(
    "Qwen3_5MoeForCausalLM",
    2048,
    0,
    40,
    (16, 2),
    248320,
    **delta(32, mtp_num_hidden_layers=1),
    num_experts=256,
    moe_intermediate_size=512,
    shared_expert_intermediate_size=512,
)
KIMI_K2 = (
    DEEPSEEK_V3
    | {"num_attention_heads": 64, "num_key_value_heads": 64, "vocab_size": 163840}
    | {"n_routed_experts": 384, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0}
)
KIMI_VISION = {
    "num_hidden_layers": 27,
    "hidden_size": 1152,
    "num_attention_heads": 16,
    "intermediate_size": 4304,
    "pos_emb_height": 64,
    "pos_emb_width": 64,
}
LLAMA4_VISION = {
    "num_hidden_layers": 34,
    "hidden_size": 1408,
    "num_attention_heads": 16,
    "intermediate_size": 5632,
    "projector_input_dim": 4096,
    "projector_output_dim": 4096,
    "vision_output_dim": 4096,
    "image_size": 336,
    "patch_size": 14,
}
DEEPSTACK = [8, 16, 24]  # layers of the tower whose output is added to the first ones of the language model
GLM_5 = config(
    "GlmMoeDsaForCausalLM",
    6144,
    12288,
    78,
    (64, 64),
    154880,
    num_nextn_predict_layers=1,
    index_n_heads=32,
    index_head_dim=128,
    **latent(2048, nope=192, value=256),
    **deepseek(256, 1, 2048, 3),
)
