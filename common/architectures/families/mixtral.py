"""Mixtral: every layer has routed experts, whose gate, up and down are called w1, w3 and w2.

Source: transformers, models/mixtral/configuration_mixtral.py; names as published in mistralai/Mixtral-8x7B-v0.1,
model.safetensors.index.json.
"""

from __future__ import annotations

from ..blocks.attention import GROUPED_QUERY_ATTENTION, rotated_heads, window_of_all
from ..blocks.embeddings import EMBEDDINGS, NORMS, TIED, rms_norms
from ..blocks.experts import TWO_NAMES
from ..blocks.mlp import activation, gated_mlp_named
from ..blocks.router import EXPERTS_PER_TOKEN
from ..dimensions import common_dimensions, common_flags, layers_alike
from ..keys import EXPERT, HF_LAYER, LAYER
from ..rows import Architecture, Config, same
from ..settings.says import always

MOE = HF_LAYER + "block_sparse_moe."
HF_EXPERT = MOE + "experts.{expert}."


def _dimensions(config: Config) -> dict[str, int]:
    return common_dimensions(config) | {"num_experts": config["num_local_experts"]}


MIXTRAL = Architecture(
    "MixtralForCausalLM",
    "mistralai/Mixtral-8x7B-v0.1 model.safetensors.index.json",
    EMBEDDINGS
    + NORMS
    + GROUPED_QUERY_ATTENTION
    + (same(LAYER + "mlp.router.weight", MOE + "gate.weight", "num_experts", "hidden", where="moe"),)
    + gated_mlp_named(
        EXPERT, (HF_EXPERT + "w1.weight", HF_EXPERT + "w3.weight", HF_EXPERT + "w2.weight"), "ffn", "moe"
    ),
    _dimensions,
    common_flags,
    layers_alike("moe"),
    model_types=("mixtral",),
    settings=(
        *rotated_heads(1e6),
        rms_norms(1e-5),
        activation(),
        TIED,
        EXPERTS_PER_TOKEN,
        always("router_normalized", True),
        window_of_all(switch=None),
    ),
    experts=TWO_NAMES,
    oracles=("Model-Optimizer",),
)
