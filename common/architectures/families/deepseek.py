"""DeepSeek-V3: latent attention, dense first layers, shared experts, and routers with a bias.

The query may be low-rank or not. The norm after a down projection is a module of its own (local spec) or fused into
the up projection (Transformer Engine spec).
Source: transformers, models/deepseek_v3/modeling_deepseek_v3.py (`DeepseekV3Attention`, `DeepseekV3MoE`);
megatron/core/transformer/multi_latent_attention.py.
"""

from __future__ import annotations

from ..blocks.embeddings import EMBEDDINGS, NORMS
from ..blocks.mla import LATENT_ATTENTION
from ..blocks.mlp import DENSE_MLP, gated_mlp
from ..blocks.router import biased_router
from ..dimensions import common_dimensions, common_flags, integer, set_flags
from ..keys import EXPERT, HF_LAYER, LAYER
from ..rows import Architecture, Config, Layers


def _dimensions(config: Config) -> dict[str, int]:
    heads, moe_ffn = integer(config, "num_attention_heads"), integer(config, "moe_intermediate_size")
    nope, rope = integer(config, "qk_nope_head_dim"), integer(config, "qk_rope_head_dim")
    value, latent = integer(config, "v_head_dim"), integer(config, "kv_lora_rank")
    return common_dimensions(config) | {
        "num_experts": config["n_routed_experts"],
        "moe_ffn": moe_ffn,
        "shared_ffn": moe_ffn * integer(config, "n_shared_experts", 0),
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
