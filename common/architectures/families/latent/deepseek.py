"""DeepSeek-V3: latent attention, dense first layers, shared experts, and routers with a bias.

The query may be low-rank or not. The norm after a down projection is a module of its own (local spec) or fused into
the up projection (Transformer Engine spec). A step of multi-token prediction is a layer after the last, with experts,
and repeats both embeddings. Kimi-K2 is the same: its config.json names either architecture.
Source: transformers, models/deepseek_v3/modeling_deepseek_v3.py (`DeepseekV3Attention`, `DeepseekV3MoE`);
megatron/core/transformer/multi_latent_attention.py.
"""

from __future__ import annotations

from ...blocks.embeddings import EMBEDDINGS, NORMS, TIED, rms_norms
from ...blocks.experts import OWN_LOADER
from ...blocks.mla import LATENT_ATTENTION, LATENT_SETTINGS, SECOND_NORM, latent_dimensions, latent_flags
from ...blocks.mlp import DENSE_MLP, ROUTED_EXPERTS, SHARED_EXPERTS, activation
from ...blocks.mtp import (
    ALIAS,
    NUMBER,
    copies,
    decoder_and_steps,
    promised_steps,
    step_rows,
    without_steps,
)
from ...blocks.router import biased_router, biased_router_settings
from ...dimensions import common_dimensions, expert_dimensions, integer, set_flags, unbiased_flags
from ...keys import HF_LAYER, STEP_LAYER
from ...rows import Architecture, Config, Layers, MultiTokenPrediction
from ...settings.says import derived


def dimensions(config: Config) -> dict[str, int]:
    """Return the dimensions of a decoder with latent attention, routed and shared experts, and perhaps steps."""
    shared = integer(config, "n_shared_experts", 0)
    return (
        common_dimensions(config)
        | latent_dimensions(config)
        | expert_dimensions(config, config["n_routed_experts"], shared)
        | {"two_hidden": 2 * integer(config, "hidden_size")}
    )


def flags(config: Config) -> frozenset[str]:
    """Return which kind of query there is, and whether there are shared experts and an embedding of the output.

    Raises ValueError for biases, and for dense layers between those with experts, which vLLM would build.
    """
    if config.get("moe_layer_freq", 1) not in (None, 1):
        raise ValueError(f"moe_layer_freq = {config['moe_layer_freq']!r:.40}")
    own = latent_flags(config) | {"shared_experts": config.get("n_shared_experts")}
    return unbiased_flags(config) | set_flags(own)


def _layers(config: Config) -> Layers:
    return decoder_and_steps(config, range(config["first_k_dense_replace"]), promised_steps(config))


def _steps(config: Config) -> tuple[int, int]:
    return promised_steps(config), 1


DEEPSEEK_V3 = Architecture(
    "DeepseekV3ForCausalLM",
    "transformers models/deepseek_v3/modeling_deepseek_v3.py",
    EMBEDDINGS
    + NORMS
    + LATENT_ATTENTION
    + DENSE_MLP
    + biased_router(HF_LAYER + "mlp.gate.")
    + SHARED_EXPERTS
    + ROUTED_EXPERTS
    + step_rows(HF_LAYER, HF_LAYER + "shared_head.norm.weight")
    + copies(),
    dimensions,
    flags,
    _layers,
    model_types=("deepseek_v3", "kimi_k2"),
    mtp=MultiTokenPrediction(
        _steps,
        STEP_LAYER,
        (HF_LAYER, HF_LAYER),
        without_steps,
        "vllm/model_executor/models/deepseek_mtp.py",
    ),
    settings=(
        *LATENT_SETTINGS,
        rms_norms(),
        activation(),
        TIED,
        *biased_router_settings(groups=(8, 4), scaling=2.5),
        derived("mtp_steps", (NUMBER,), promised_steps, (NUMBER, ALIAS)),
    ),
    aliases=("KimiK2ForCausalLM",),
    experts=OWN_LOADER,
    refusals=SECOND_NORM,
    oracles=("Megatron-Bridge", "Model-Optimizer", "transformers"),
)
