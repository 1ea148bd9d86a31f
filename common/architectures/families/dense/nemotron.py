"""Nemotron: dense layers without a gate, and norms that subtract the mean, have biases, and add one to their weights.

Half of each head rotates unless config.json says otherwise.
Source: transformers, models/nemotron/{configuration,modeling}_nemotron.py (`NemotronLayerNorm1P`).
"""

from __future__ import annotations

from ...blocks.attention import GROUPED_QUERY_ATTENTION, rotated_heads
from ...blocks.embeddings import EMBEDDINGS, NORMS, TIED
from ...blocks.mlp import activation, plain_mlp
from ...dimensions import common_dimensions, common_flags, layers_alike, refuse_true
from ...keys import HF_LAYER, LAYER
from ...rows import Architecture, Config, Row, Target, same
from ...settings.rope import HALF
from ...settings.says import always, key


def _flags(config: Config) -> frozenset[str]:
    refuse_true(config, "attention_bias", "mlp_bias")
    return common_flags(config)


# beside the weights, under the same two spellings
NORM_BIASES = (
    Row(
        (LAYER + "self_attention.linear_qkv.layer_norm_bias", LAYER + "input_layernorm.bias"),
        (Target(HF_LAYER + "input_layernorm.bias", ("hidden",)),),
        where="layers",
    ),
    Row(
        (LAYER + "mlp.linear_fc1.layer_norm_bias", LAYER + "pre_mlp_layernorm.bias"),
        (Target(HF_LAYER + "post_attention_layernorm.bias", ("hidden",)),),
        where="layers",
    ),
    same("decoder.final_layernorm.bias", "model.norm.bias", "hidden", where="model"),
)

NEMOTRON = Architecture(
    "NemotronForCausalLM",
    "transformers models/nemotron/modeling_nemotron.py",
    EMBEDDINGS
    + NORMS
    + NORM_BIASES
    + GROUPED_QUERY_ATTENTION
    + plain_mlp(LAYER + "mlp.", HF_LAYER + "mlp.", width="ffn", outside="hidden", where="dense"),
    common_dimensions,
    _flags,
    layers_alike("dense"),
    model_types=("nemotron",),
    settings=(
        *rotated_heads(rotated=HALF),
        always("norm", "LayerNorm"),
        always("zero_centred_norms", True),
        key("norm_eps", "norm_eps", otherwise=1e-5),
        activation(otherwise="relu2"),
        always("gated", False),
        TIED,
    ),
    oracles=("Megatron-Bridge", "transformers"),
)
