"""Rows that several families share: embeddings, norms, grouped-query attention, gated MLPs, routed experts.

Keys are canonical megatron-core keys: `ShardedTensor.key` with `non_homogeneous_layers` and
`singleton_local_shards`, where a gated fc1 appears as `weight_w` (gate) and `weight_v` (up).
Source: megatron/core/transformer/mlp.py (`apply_swiglu_sharded_factory`), attention.py, models/gpt/gpt_layer_specs.py
(`sharded_state_dict_keys_map`: the same norm has two keys, depending on the layer spec).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .table import Config, Layout, Row, Target

LAYER = "decoder.layers.{layer}."
HF_LAYER = "model.layers.{layer}."
EXPERT = LAYER + "mlp.experts.experts.{expert}."


def common_dimensions(config: Config) -> dict[str, int]:
    """Dimensions that every decoder has. `q` and `kv` are rows of the projections."""
    heads, groups = (
        config["num_attention_heads"],
        config.get("num_key_value_heads") or config["num_attention_heads"],
    )
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return {
        "num_layers": config["num_hidden_layers"],
        "num_experts": 0,
        "hidden": config["hidden_size"],
        "vocab": config["vocab_size"],
        "heads": heads,
        "groups": groups,
        "head_dim": head_dim,
        "q": heads * head_dim,
        "kv": groups * head_dim,
        "ffn": config["intermediate_size"],
    }


def common_flags(config: Config) -> frozenset[str]:
    """`untied` is set unless input and output embeddings are one tensor."""
    return frozenset() if config.get("tie_word_embeddings", False) else frozenset({"untied"})


def set_flags(flags: Mapping[str, Any]) -> frozenset[str]:
    """The names whose value is true."""
    return frozenset(name for name, value in flags.items() if value)


def same(
    key: str, name: str, *shape: str, where: str = "layers", when: str = "", float32: bool = False
) -> Row:
    """A Megatron tensor that is one Hugging Face tensor, element for element."""
    return Row((key,), (Target(name, shape),), Layout.SAME, where, when, float32)


def embeddings(name: str, norm_key: str, norm_name: str) -> tuple[Row, ...]:
    """Input and output embeddings, and the norm after the last layer."""
    return (
        Row(("embedding.word_embeddings.weight",), (Target(name, ("vocab", "hidden")),), Layout.VOCAB),
        Row(
            ("output_layer.weight",),
            (Target("lm_head.weight", ("vocab", "hidden")),),
            Layout.VOCAB,
            when="untied",
        ),
        same(norm_key, norm_name, "hidden", where="model"),
    )


EMBEDDINGS = embeddings("model.embed_tokens.weight", "decoder.final_layernorm.weight", "model.norm.weight")

NORMS = (
    Row(
        (
            LAYER + "self_attention.linear_qkv.layer_norm_weight",
            LAYER + "input_layernorm.weight",
        ),
        (Target(HF_LAYER + "input_layernorm.weight", ("hidden",)),),
        where="layers",
    ),
    Row(
        (LAYER + "mlp.linear_fc1.layer_norm_weight", LAYER + "pre_mlp_layernorm.weight"),
        (Target(HF_LAYER + "post_attention_layernorm.weight", ("hidden",)),),
        where="layers",
    ),
)


def grouped_query_attention(hf_prefix: str, where: str) -> tuple[Row, ...]:
    """The fused projection of queries, keys and values, and the output projection."""
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


def gated_mlp(prefix: str, hf_prefix: str, width: str, where: str, when: str = "") -> tuple[Row, ...]:
    """Gate, up and down of a gated MLP whose Hugging Face names are gate_proj, up_proj, down_proj."""
    names = (hf_prefix + "gate_proj.weight", hf_prefix + "up_proj.weight", hf_prefix + "down_proj.weight")
    return gated_mlp_named(prefix, names, width, where, when)


def gated_mlp_named(
    prefix: str, names: tuple[str, str, str], width: str, where: str, when: str = ""
) -> tuple[Row, ...]:
    """The same with other names for (gate, up, down)."""
    gate, up, down = names
    return (
        same(prefix + "linear_fc1.weight_w", gate, width, "hidden", where=where, when=when),
        same(prefix + "linear_fc1.weight_v", up, width, "hidden", where=where, when=when),
        same(prefix + "linear_fc2.weight", down, "hidden", width, where=where, when=when),
    )


DENSE_MLP = gated_mlp(LAYER + "mlp.", HF_LAYER + "mlp.", "ffn", "dense")


def biased_router(hf_prefix: str) -> tuple[Row, ...]:
    """A router whose scores are corrected by a bias for each expert, which stays float32."""
    return (
        same(LAYER + "mlp.router.weight", hf_prefix + "weight", "num_experts", "hidden", where="moe"),
        same(
            LAYER + "mlp.router.expert_bias",
            hf_prefix + "e_score_correction_bias",
            "num_experts",
            where="moe",
            float32=True,
        ),
    )
