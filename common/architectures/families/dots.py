"""dots.llm1: grouped-query attention with norms of heads, and DeepSeek-V3's experts.

Source: transformers, models/dots1/{configuration,modeling}_dots1.py.
"""

from __future__ import annotations

from ..blocks.attention import GROUPED_QUERY_ATTENTION, HEAD_NORMS, rotated_heads, windows_from
from ..blocks.embeddings import EMBEDDINGS, NORMS, TIED, rms_norms
from ..blocks.experts import ONE_READER
from ..blocks.mlp import DENSE_MLP, ROUTED_EXPERTS, SHARED_EXPERTS, activation
from ..blocks.mtp import decoder_and_steps
from ..blocks.router import biased_router, biased_router_settings
from ..dimensions import common_dimensions, common_flags, expert_dimensions, integer, set_flags
from ..keys import HF_LAYER
from ..rows import Architecture, Config, Layers
from ..settings.says import derived

WINDOW_KEYS = ("sliding_window", "max_window_layers", "layer_types")


def _dimensions(config: Config) -> dict[str, int]:
    shared = integer(config, "n_shared_experts", 0)
    return common_dimensions(config) | expert_dimensions(config, config["n_routed_experts"], shared)


def _flags(config: Config) -> frozenset[str]:
    if config.get("attention_bias"):
        raise ValueError("attention_bias: no published model has one, also of the output projection")
    return common_flags(config) | set_flags({"shared_experts": config.get("n_shared_experts")})


def _layers(config: Config) -> Layers:
    return decoder_and_steps(config, range(integer(config, "first_k_dense_replace", 0)), steps=0)


def _windows(config: Config) -> list[int] | None:
    """Return the window of each layer, 0 for none: of listed kinds, or of all from a certain layer on."""
    window = config.get("sliding_window", 4096) or 0
    return windows_from(config, window, config.get("max_window_layers", 62))


DOTS1 = Architecture(
    "Dots1ForCausalLM",
    "transformers models/dots1/modeling_dots1.py",
    EMBEDDINGS
    + NORMS
    + GROUPED_QUERY_ATTENTION
    + HEAD_NORMS
    + DENSE_MLP
    + biased_router(HF_LAYER + "mlp.gate.")
    + SHARED_EXPERTS
    + ROUTED_EXPERTS,
    _dimensions,
    _flags,
    _layers,
    model_types=("dots1",),
    settings=(
        *rotated_heads(),
        rms_norms(),
        activation(),
        TIED,
        *biased_router_settings(groups=(1, 1), scaling=1.0, normalized=False),
        derived("sliding_windows", WINDOW_KEYS, _windows),
    ),
    experts=ONE_READER,
    oracles=("mcore-bridge", "transformers"),
)
