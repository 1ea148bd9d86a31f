"""Qwen2-MoE: routed experts, and beside them one shared expert, whose output a gate multiplies.

Source: transformers, models/qwen2_moe/{configuration,modeling}_qwen2_moe.py (`Qwen2MoeSparseMoeBlock`).
"""

from __future__ import annotations

from ..blocks.attention import GROUPED_QUERY_ATTENTION, QKV_BIAS, rotated_heads, windows_by_layer
from ..blocks.embeddings import EMBEDDINGS, NORMS, TIED, rms_norms
from ..blocks.experts import EITHER, IN_EITHER
from ..blocks.mlp import DENSE_MLP, GATED_SHARED_EXPERT, activation
from ..blocks.router import EXPERTS_PER_TOKEN, plain_router
from ..dimensions import common_dimensions, common_flags, integer, set_flags
from ..keys import HF_LAYER
from ..rows import Architecture, Config
from ..settings.says import always, derived, key
from .qwen3_moe import layers_with_experts, number_of_experts


def _dimensions(config: Config) -> dict[str, int]:
    return common_dimensions(config) | {
        "num_experts": number_of_experts(config),
        "moe_ffn": config["moe_intermediate_size"],
        "shared_ffn": config["shared_expert_intermediate_size"],
        "one": 1,
    }


def _flags(config: Config) -> frozenset[str]:
    return common_flags(config) | set_flags({"qkv_bias": config.get("qkv_bias", True)})


def _windows(config: Config) -> list[int] | None:
    """Return the window of each layer. Without a list of kinds every other layer has one.

    Source: `Qwen2MoeConfig.__post_init__`.
    """
    window = integer(config, "sliding_window", 4096) if config.get("use_sliding_window") else 0
    first, layers = config.get("max_window_layers", 28), range(integer(config, "num_hidden_layers"))
    listed = config.get("layer_types")
    kinds = (
        ["sliding_attention" if window and (layer + 1) % 2 and layer < first else "" for layer in layers]
        if listed is None
        else listed
    )
    return windows_by_layer(window, kinds)


QWEN2_MOE = Architecture(
    "Qwen2MoeForCausalLM",
    "transformers models/qwen2_moe/modeling_qwen2_moe.py",
    EMBEDDINGS
    + NORMS
    + GROUPED_QUERY_ATTENTION
    + QKV_BIAS
    + DENSE_MLP
    + plain_router(HF_LAYER + "mlp.gate.")
    + GATED_SHARED_EXPERT
    + IN_EITHER,
    _dimensions,
    _flags,
    layers_with_experts,
    model_types=("qwen2_moe",),
    settings=(
        *rotated_heads(),
        rms_norms(),
        activation(),
        TIED,
        EXPERTS_PER_TOKEN,
        key("router_normalized", "norm_topk_prob", otherwise=False),
        always("shared_expert_gate", True),
        derived(
            "sliding_windows",
            ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
            _windows,
        ),
    ),
    experts=EITHER,
    oracles=("mcore-bridge", "transformers"),
)
