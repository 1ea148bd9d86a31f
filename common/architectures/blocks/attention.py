"""Rows of grouped-query attention: fused projection, output projection, biases, norms of heads.

Source: megatron/core/transformer/attention.py.
"""

from __future__ import annotations

from ..keys import HF_LAYER, LAYER
from ..rows import Layout, Row, Target, same


def grouped_query_attention(hf_prefix: str, where: str) -> tuple[Row, ...]:
    """Return the rows of the fused projection of queries, keys and values, and of the output projection."""
    return (
        Row(
            (LAYER + "self_attention.linear_qkv.weight",),
            (
                Target(hf_prefix + "q_proj.weight", ("q", "hidden")),
                Target(hf_prefix + "k_proj.weight", ("kv", "hidden")),
                Target(hf_prefix + "v_proj.weight", ("kv", "hidden")),
            ),
            Layout.QKV,
            where=where,
        ),
        same(
            LAYER + "self_attention.linear_proj.weight",
            hf_prefix + "o_proj.weight",
            "hidden",
            "q",
            where=where,
        ),
    )


GROUPED_QUERY_ATTENTION = grouped_query_attention(HF_LAYER + "self_attn.", "layers")

QKV_BIAS = (
    Row(
        (LAYER + "self_attention.linear_qkv.bias",),
        (
            Target(HF_LAYER + "self_attn.q_proj.bias", ("q",)),
            Target(HF_LAYER + "self_attn.k_proj.bias", ("kv",)),
            Target(HF_LAYER + "self_attn.v_proj.bias", ("kv",)),
        ),
        Layout.QKV,
        where="layers",
        when="qkv_bias",
    ),
)

HEAD_NORMS = (
    same(LAYER + "self_attention.q_layernorm.weight", HF_LAYER + "self_attn.q_norm.weight", "head_dim"),
    same(LAYER + "self_attention.k_layernorm.weight", HF_LAYER + "self_attn.k_norm.weight", "head_dim"),
)
