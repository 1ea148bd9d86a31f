"""ERNIE 4.5 with experts: dense first layers, shared experts, and a router whose bias has a first dimension of one.

Readers choose experts by the softmax of all logits and the bias, and let the weights of the chosen add up to 1. No
megatron-core has that: with a bias it knows sigmoids alone, and trains another router than the published one.
Source: transformers, models/ernie4_5_moe/{configuration,modeling}_ernie4_5_moe.py; vllm, ernie45_moe.py.
"""

from __future__ import annotations

from ..blocks.attention import GROUPED_QUERY_ATTENTION, rotated_heads
from ..blocks.embeddings import EMBEDDINGS, NORMS, rms_norms
from ..blocks.experts import EITHER, IN_EITHER
from ..blocks.mlp import DENSE_MLP, SHARED_EXPERTS, activation
from ..blocks.router import plain_router
from ..dimensions import (
    common_dimensions,
    divisor,
    expert_dimensions,
    one_of,
    refuse_true,
    set_flags,
    unless_absent,
)
from ..keys import HF_LAYER, LAYER
from ..rows import Architecture, Config, Layers, Layout, Row, Target
from ..settings.says import always, key

EXPERTS, TOP_K = ("moe_num_experts", "num_experts"), ("moe_k", "num_experts_per_tok")
BIAS = "mlp.moe_statics.e_score_correction_bias"


def _dimensions(config: Config) -> dict[str, int]:
    experts = expert_dimensions(config, one_of(config, *EXPERTS), _shared_experts(config))
    return common_dimensions(config) | experts | {"one": 1}


def _shared_experts(config: Config) -> int:
    """Return how many there are. A config.json that says nothing has two, as transformers reads it."""
    return unless_absent(config, "moe_num_shared_experts", 2)


def _flags(config: Config) -> frozenset[str]:
    refuse_true(config, "use_bias")
    untied = not config.get("tie_word_embeddings", True)
    return set_flags({"untied": untied, "shared_experts": _shared_experts(config)})


def _layers(config: Config) -> Layers:
    """Source: `Ernie4_5_MoeDecoderLayer.__init__`; an end of -1 is the last layer."""
    every = range(config["num_hidden_layers"])
    first, last = config.get("moe_layer_start_index", 1), config.get("moe_layer_end_index", -1)
    interval = divisor(config, "moe_layer_interval", 1)
    chosen = every[first : len(every) if last == -1 else last + 1]
    moe = frozenset(layer for layer in chosen if (layer + 1) % interval == 0)
    return {"layers": every, "moe": moe, "dense": frozenset(every) - moe}


ERNIE4_5_MOE = Architecture(
    "Ernie4_5_MoeForCausalLM",
    "transformers models/ernie4_5_moe/modeling_ernie4_5_moe.py",
    EMBEDDINGS
    + NORMS
    + GROUPED_QUERY_ATTENTION
    + DENSE_MLP
    + plain_router(HF_LAYER + "mlp.gate.")
    + (
        Row(
            (LAYER + "mlp.router.expert_bias",),
            (Target(HF_LAYER + BIAS, ("one", "num_experts")),),
            Layout.LIFTED,
            where="moe",
            float32=True,
        ),
    )
    + SHARED_EXPERTS
    + IN_EITHER,
    _dimensions,
    _flags,
    _layers,
    model_types=("ernie4_5_moe",),
    settings=(
        *rotated_heads(5e5),
        always("rope_interleaved", True),
        rms_norms(1e-5),
        activation(),
        key("tied_embeddings", "tie_word_embeddings", otherwise=True),
        key("experts_per_token", *TOP_K, otherwise=6),
        always("router_bias", True),
        always("router_normalized", True),
    ),
    experts=EITHER,
    oracles=("Megatron-Bridge",),
)
