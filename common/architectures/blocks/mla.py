"""Rows of latent attention, with or without a low-rank query; its settings.

A norm has two keys: a module of its own (local spec), or fused into the up projection (Transformer Engine spec).
Source: megatron/core/transformer/multi_latent_attention.py.
"""

from __future__ import annotations

from ..dimensions import integer
from ..keys import HF_LAYER, LAYER
from ..rows import Refusal, Row, Target, same
from ..settings import rope
from ..settings.says import Config, always, derived, flag, key
from .attention import CAUSAL

ATTENTION = LAYER + "self_attention."
HF_ATTENTION = HF_LAYER + "self_attn."


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


# From 0.19 on megatron-core's specs of Transformer Engine norm what a full query is projected from, a second time
SECOND_NORM = (
    Refusal(
        ATTENTION + "linear_q_proj.layer_norm_weight",
        "it belongs to a norm between input_layernorm and the query, which no reader has: whatever its weights, it "
        "divides each token by the root mean square of what input_layernorm returns. Train with a layer spec whose "
        "linear_q_proj is a plain projection",
    ),
)


def latent_dimensions(config: Config) -> dict[str, int]:
    """Return the dimensions that rows of latent attention name.

    A full query must be said: where `q_lora_rank` is absent, readers build a low-rank one of their own size.
    """
    heads, latent = integer(config, "num_attention_heads"), integer(config, "kv_lora_rank")
    nope, rotated = integer(config, "qk_nope_head_dim"), _rope_channels(config)
    value = integer(config, "v_head_dim")
    return {
        "q": heads * (nope + rotated),
        "q_latent": config["q_lora_rank"] or 0,
        "kv_latent": latent,
        "kv_down": latent + rotated,
        "kv_up": heads * (nope + value),
        "attention_out": heads * value,
    }


def latent_flags(config: Config) -> dict[str, bool]:
    """Return whether the query is low-rank or full."""
    low_rank = bool(config.get("q_lora_rank"))
    return {"q_lora": low_rank, "q_full": not low_rank}


def _rope_channels(config: Config) -> int:
    return integer(config, "qk_rope_head_dim")


def _softmax_scale(config: Config) -> float:
    """Return the factor on queries times keys, which YaRN enlarges.

    Source: transformers, models/deepseek_v3/modeling_deepseek_v3.py (`yarn_apply_mscale`).
    """
    said = rope.parameters(config, rope.THETA_OF_MOST)
    plain = float((integer(config, "qk_nope_head_dim") + _rope_channels(config)) ** -0.5)
    all_dim = said.get("mscale_all_dim") if said["rope_type"] != "default" else None
    return plain * rope.magnitude(said["factor"], all_dim) ** 2 if all_dim else plain


LATENT_SIZES = (
    CAUSAL,
    key("attention_heads", "num_attention_heads"),
    key("query_latent", "q_lora_rank"),
    key("key_value_latent", "kv_lora_rank"),
    key("nope_head_dim", "qk_nope_head_dim"),
    key("rope_head_dim", "qk_rope_head_dim"),
    key("value_head_dim", "v_head_dim"),
    derived(
        "softmax_scale",
        ("qk_nope_head_dim", "qk_rope_head_dim", "rope_scaling", "rope_parameters"),
        _softmax_scale,
    ),
    *rope.rope(_rope_channels),
)
ROPE_INTERLEAVED = flag("rope_interleaved", "rope_interleave", otherwise=True)
FIXED_NORM_EPS = always("latent_norm_eps", 1e-6)  # transformers gives these norms no eps of config.json
LATENT_SETTINGS = (*LATENT_SIZES, ROPE_INTERLEAVED, FIXED_NORM_EPS)
