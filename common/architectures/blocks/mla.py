"""Rows of latent attention, with or without a low-rank query.

A norm has two keys: a module of its own (local spec), or fused into the up projection (Transformer Engine spec).
Source: megatron/core/transformer/multi_latent_attention.py.
"""

from __future__ import annotations

from ..keys import HF_LAYER, LAYER
from ..rows import Row, Target, same

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
