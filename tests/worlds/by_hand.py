"""Families whose classes transformers lacks: published models bring their own code, and config.json is written by hand.

Must not know weights or megatron-core. Source: megatron-bridge, models/bailing/configuration_bailing_moe_v2.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.worlds.families import Experts, Family, Steps

Json = dict[str, Any]

BAILING = Family(
    "bailing_moe_v2",
    "BailingMoeV2ForCausalLM",
    qk_norm=True,
    rotated=0.5,
    norm_eps=1e-6,
    rope_theta=600000,
    experts=Experts(
        shared_width=80, dense_layers=1, router_bias=True, router_groups=2, groups_kept=1, scaling=2.5
    ),
)
BY_HAND: tuple[Family, ...] = (
    BAILING,
    replace(BAILING, name="bailing_moe_v2_mtp", mtp=Steps()),
)


def _bailing(family: Family) -> Json:
    """As published: it says twice which part of a head rotates."""
    experts = family.experts
    assert experts is not None
    return {
        "model_type": "bailing_moe_v2",
        "vocab_size": family.vocab,
        "hidden_size": family.hidden,
        "intermediate_size": family.dense_width,
        "num_hidden_layers": family.layers,
        "num_attention_heads": family.heads,
        "num_key_value_heads": family.groups,
        "head_dim": family.head_channels,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
        "rms_norm_eps": family.norm_eps,
        "rope_theta": family.rope_theta,
        "rope_scaling": None,
        "rotary_dim": int(family.head_channels * family.rotated),
        "partial_rotary_factor": family.rotated,
        "tie_word_embeddings": family.tied,
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "output_dropout": 0.0,
        "use_bias": False,
        "use_qkv_bias": False,
        "use_qk_norm": family.qk_norm,
        "use_rmsnorm": True,
        "num_experts": experts.num_experts,
        "num_shared_experts": experts.shared_width // experts.width,
        "num_experts_per_tok": experts.top_k,
        "n_group": experts.router_groups,
        "topk_group": experts.groups_kept,
        "moe_intermediate_size": experts.width,
        "first_k_dense_replace": experts.dense_layers,
        "norm_topk_prob": experts.normalized,
        "score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "routed_scaling_factor": experts.scaling,
        "num_nextn_predict_layers": family.mtp.count if family.mtp else 0,
    }


# architecture -> what its config.json says, but for `architectures` and the dtype
CONFIGS: dict[str, Callable[[Family], Json]] = {"BailingMoeV2ForCausalLM": _bailing}
