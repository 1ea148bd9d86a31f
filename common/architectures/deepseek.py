"""DeepSeek-V3: latent attention with or without a low-rank query, first layers dense, shared experts, router bias.

`norm` spellings: the norm after a down projection is a module of its own (local spec) or fused into the up
projection (Transformer Engine spec).
Source: transformers, models/deepseek_v3/modeling_deepseek_v3.py (`DeepseekV3Attention`, `DeepseekV3MoE`);
megatron/core/transformer/multi_latent_attention.py.
"""

from __future__ import annotations

from .blocks import (
    DENSE_MLP,
    EMBEDDINGS,
    EXPERT,
    HF_LAYER,
    LAYER,
    NORMS,
    biased_router,
    common_dimensions,
    common_flags,
    gated_mlp,
    same,
    set_flags,
)
from .table import Architecture, Config, Layers, Row, Target

ATTENTION = LAYER + "self_attention."
HF_ATTENTION = HF_LAYER + "self_attn."


def _dimensions(config: Config) -> dict[str, int]:
    heads, nope, rope = config["num_attention_heads"], config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    value, latent = config["v_head_dim"], config["kv_lora_rank"]
    return common_dimensions(config) | {
        "num_experts": config["n_routed_experts"],
        "moe_ffn": config["moe_intermediate_size"],
        "shared_ffn": config["moe_intermediate_size"] * (config.get("n_shared_experts") or 0),
        "q": heads * (nope + rope),
        "q_latent": config.get("q_lora_rank") or 0,
        "kv_latent": latent,
        "kv_down": latent + rope,
        "kv_up": heads * (nope + value),
        "attention_out": heads * value,
    }


def _flags(config: Config) -> frozenset[str]:
    low_rank = bool(config.get("q_lora_rank"))
    own = {"q_lora": low_rank, "q_full": not low_rank, "shared_experts": config.get("n_shared_experts")}
    return common_flags(config) | set_flags(own)


def _layers(config: Config) -> Layers:
    every, first = range(config["num_hidden_layers"]), config["first_k_dense_replace"]
    return {"layers": every, "dense": every[:first], "moe": every[first:]}


def _norm(side: str, name: str, dim: str, when: str = "") -> Row:
    keys = (ATTENTION + f"{side}_layernorm.weight", ATTENTION + f"linear_{side}_up_proj.layer_norm_weight")
    return Row(keys, (Target(HF_ATTENTION + name, (dim,)),), where="layers", when=when)


LATENT_ATTENTION = (
    same(ATTENTION + "linear_q_proj.weight", HF_ATTENTION + "q_proj.weight", "q", "hidden", when="q_full"),
    same(
        ATTENTION + "linear_q_down_proj.weight",
        HF_ATTENTION + "q_a_proj.weight",
        "q_latent",
        "hidden",
        when="q_lora",
    ),
    same(
        ATTENTION + "linear_q_up_proj.weight",
        HF_ATTENTION + "q_b_proj.weight",
        "q",
        "q_latent",
        when="q_lora",
    ),
    same(
        ATTENTION + "linear_kv_down_proj.weight",
        HF_ATTENTION + "kv_a_proj_with_mqa.weight",
        "kv_down",
        "hidden",
    ),
    same(ATTENTION + "linear_kv_up_proj.weight", HF_ATTENTION + "kv_b_proj.weight", "kv_up", "kv_latent"),
    same(ATTENTION + "linear_proj.weight", HF_ATTENTION + "o_proj.weight", "hidden", "attention_out"),
    _norm("q", "q_a_layernorm.weight", "q_latent", when="q_lora"),
    _norm("kv", "kv_a_layernorm.weight", "kv_latent"),
)

DEEPSEEK_V3 = Architecture(
    "DeepseekV3ForCausalLM",
    "transformers models/deepseek_v3/modeling_deepseek_v3.py",
    EMBEDDINGS
    + NORMS
    + LATENT_ATTENTION
    + DENSE_MLP
    + biased_router(HF_LAYER + "mlp.gate.")
    + gated_mlp(
        LAYER + "mlp.shared_experts.", HF_LAYER + "mlp.shared_experts.", "shared_ffn", "moe", "shared_experts"
    )
    + gated_mlp(EXPERT, HF_LAYER + "mlp.experts.{expert}.", "moe_ffn", "moe"),
    _dimensions,
    _flags,
    _layers,
)
