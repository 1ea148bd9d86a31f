"""OLMoE: every layer has routed experts, and queries and keys are normed over all heads at once.

Source: transformers, models/olmoe/{configuration,modeling}_olmoe.py; allenai/OLMoE-1B-7B-0924.
"""

from __future__ import annotations

from ..blocks.attention import FULL_WIDTH_NORMS, GROUPED_QUERY_ATTENTION, rotated_heads
from ..blocks.embeddings import EMBEDDINGS, NORMS, TIED, rms_norms
from ..blocks.experts import EITHER, both_spellings
from ..blocks.mlp import activation, gated_mlp
from ..blocks.router import EXPERTS_PER_TOKEN, plain_router
from ..dimensions import common_dimensions, common_flags, layers_alike, one_of, refuse_true
from ..keys import EXPERT, HF_LAYER
from ..rows import Architecture, Config
from ..settings.says import key


def _dimensions(config: Config) -> dict[str, int]:
    return common_dimensions(config) | {"num_experts": one_of(config, "num_experts", "num_local_experts")}


def _flags(config: Config) -> frozenset[str]:
    refuse_true(
        config, "attention_bias"
    )  # megatron-core has no model with these biases that has none in experts
    return common_flags(config)


OLMOE = Architecture(
    "OlmoeForCausalLM",
    "transformers models/olmoe/modeling_olmoe.py",
    EMBEDDINGS
    + NORMS
    + GROUPED_QUERY_ATTENTION
    + FULL_WIDTH_NORMS
    + plain_router(HF_LAYER + "mlp.gate.")
    + both_spellings(gated_mlp(EXPERT, HF_LAYER + "mlp.experts.{expert}.", "ffn", "moe")),
    _dimensions,
    _flags,
    layers_alike("moe"),
    model_types=("olmoe",),
    settings=(
        *rotated_heads(),
        key("projection_clip", "clip_qkv"),
        rms_norms(1e-5),
        activation(),
        TIED,
        EXPERTS_PER_TOKEN,
        key("router_normalized", "norm_topk_prob", otherwise=False),
    ),
    experts=EITHER,
    oracles=("Megatron-Bridge", "mcore-bridge", "transformers"),
)
