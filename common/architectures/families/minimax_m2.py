"""MiniMax-M2: every layer has routed experts named as Mixtral's, norms over all heads, and a router with a bias.

A part of each head rotates: published files say how many channels, `rotary_dim`, and transformers 5 which part. MTP, of
which published config.json speak, is in none of the published files.
Source: transformers, models/minimax_m2/{configuration,modeling}_minimax_m2.py and conversion_mapping.py; names of the
published files as megatron-bridge, models/minimax_m2/minimax_m2_bridge.py, has them.
"""

from __future__ import annotations

from ..blocks.attention import BY_CHANNELS, FULL_WIDTH_NORMS, GROUPED_QUERY_ATTENTION, rotated_heads
from ..blocks.embeddings import EMBEDDINGS, NORMS, TIED, rms_norms
from ..blocks.experts import TWO_NAMES
from ..blocks.mlp import activation, gated_mlp_named
from ..blocks.router import EXPERTS_PER_TOKEN, router_with_bias
from ..dimensions import common_dimensions, common_flags, layers_alike, one_of, refuse_true
from ..keys import EXPERT, HF_LAYER
from ..rows import Architecture, Config
from ..settings.says import always, key

MOE = HF_LAYER + "block_sparse_moe."
HF_EXPERT = MOE + "experts.{expert}."


def _dimensions(config: Config) -> dict[str, int]:
    return common_dimensions(config) | {"num_experts": one_of(config, "num_local_experts", "num_experts")}


def _flags(config: Config) -> frozenset[str]:
    refuse_true(config, "attention_bias", "shared_intermediate_size", false=("use_qk_norm",))
    known = {"qk_norm_type": "per_layer", "attn_type_list": [1] * config["num_hidden_layers"]}
    if other := {name: config[name] for name in known if config.get(name, known[name]) != known[name]}:
        raise ValueError(f"{other!r:.80}")  # as the code beside the published files reads it
    return common_flags(config)


MINIMAX_M2 = Architecture(
    "MiniMaxM2ForCausalLM",
    "megatron-bridge models/minimax_m2/minimax_m2_bridge.py",
    EMBEDDINGS
    + NORMS
    + GROUPED_QUERY_ATTENTION
    + FULL_WIDTH_NORMS
    + router_with_bias(MOE + "gate.weight", MOE + "e_score_correction_bias")
    + gated_mlp_named(
        EXPERT, (HF_EXPERT + "w1.weight", HF_EXPERT + "w3.weight", HF_EXPERT + "w2.weight"), "ffn", "moe"
    ),
    _dimensions,
    _flags,
    layers_alike("moe"),
    model_types=("minimax_m2",),
    settings=(
        *rotated_heads(5e6, rotated=BY_CHANNELS),
        rms_norms(),
        activation(),
        TIED,
        EXPERTS_PER_TOKEN,
        key("router_score", "scoring_func", otherwise="sigmoid"),
        key("router_bias", "use_routing_bias", otherwise=True),
        always("router_normalized", True),
    ),
    experts=TWO_NAMES,
    oracles=("Megatron-Bridge", "transformers"),
)
