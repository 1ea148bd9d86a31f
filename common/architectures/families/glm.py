"""GLM-4.5 to 4.7 (grouped-query attention) and GLM-4.7-Flash (latent attention), both with DeepSeek-V3's experts.

A step of multi-token prediction is a layer after the last. GLM-4.5 and GLM-4.7-Flash publish both embeddings there once
more, GLM-4.6 does not: readers take the model's own where they are absent, so the reference decides.
Source: transformers, models/glm4_moe/modeling_glm4_moe.py and models/glm4_moe_lite/modeling_glm4_moe_lite.py;
vLLM, model_executor/models/{glm4_moe,glm4_moe_mtp,glm4_moe_lite_mtp}.py.
"""

from __future__ import annotations

from ..blocks.attention import GROUPED_QUERY_ATTENTION, QKV_BIAS, head_norms, rotated_heads
from ..blocks.embeddings import EMBEDDINGS, NORMS, TIED, rms_norms
from ..blocks.experts import EITHER, IN_EITHER, OWN_LOADER
from ..blocks.mla import LATENT_ATTENTION, LATENT_SIZES, ROPE_INTERLEAVED, SECOND_NORM
from ..blocks.mlp import DENSE_MLP, ROUTED_EXPERTS, SHARED_EXPERTS, activation
from ..blocks.mtp import (
    ALIAS,
    NUMBER,
    copies,
    decoder_and_steps,
    promised_steps,
    promising_none,
    step_rows,
    steps_of,
    without_steps,
)
from ..blocks.router import biased_router, biased_router_settings
from ..dimensions import common_dimensions, common_flags, dense_layers, expert_dimensions, integer, set_flags
from ..keys import HF_LAYER, STEP_LAYER
from ..rows import Architecture, Config, Layers, MultiTokenPrediction
from ..settings.rope import HALF
from ..settings.says import derived, key
from .latent import deepseek

EXPERTS = biased_router(HF_LAYER + "mlp.gate.") + SHARED_EXPERTS
STEPS = step_rows(HF_LAYER, HF_LAYER + "shared_head.norm.weight") + copies(if_held=True)
NORM_EPS = 1e-5


def _dimensions(config: Config) -> dict[str, int]:
    experts = expert_dimensions(config, config["n_routed_experts"], integer(config, "n_shared_experts", 1))
    return common_dimensions(config) | experts | {"two_hidden": 2 * integer(config, "hidden_size")}


def _flags(config: Config) -> frozenset[str]:
    own = {
        "qkv_bias": config.get("attention_bias"),
        "head_norms": config.get("use_qk_norm"),
        "shared_experts": config.get("n_shared_experts", 1),
    }
    return common_flags(config) | set_flags(own)


def _layers(config: Config) -> Layers:
    first = config.get("first_k_dense_replace", 1)
    return decoder_and_steps(config, range(first), promised_steps(config))


GLM4_MOE = Architecture(
    "Glm4MoeForCausalLM",
    "transformers models/glm4_moe/modeling_glm4_moe.py",
    EMBEDDINGS
    + NORMS
    + GROUPED_QUERY_ATTENTION
    + QKV_BIAS
    + head_norms(when="head_norms")
    + DENSE_MLP
    + EXPERTS
    + IN_EITHER
    + STEPS,
    _dimensions,
    _flags,
    _layers,
    model_types=("glm4_moe",),
    mtp=MultiTokenPrediction(
        lambda config: (promised_steps(config), 1),
        STEP_LAYER,
        (HF_LAYER, HF_LAYER),
        without_steps,
        "vllm/model_executor/models/glm4_moe_mtp.py",
    ),
    settings=(
        *rotated_heads(rotated=HALF),
        rms_norms(NORM_EPS),
        activation(),
        TIED,
        *biased_router_settings(groups=(1, 1), scaling=1.0),
        derived("mtp_steps", (NUMBER,), promised_steps, (NUMBER, ALIAS)),
    ),
    experts=EITHER,
    oracles=("Megatron-Bridge", "mcore-bridge", "transformers"),
)


def _lite_layers(config: Config) -> Layers:
    return decoder_and_steps(config, dense_layers(config, first=1), steps_of(config))


GLM4_MOE_LITE = Architecture(
    "Glm4MoeLiteForCausalLM",
    "transformers models/glm4_moe_lite/modeling_glm4_moe_lite.py",
    EMBEDDINGS + NORMS + LATENT_ATTENTION + DENSE_MLP + EXPERTS + ROUTED_EXPERTS + STEPS,
    deepseek.dimensions,
    deepseek.flags,
    _lite_layers,
    model_types=("glm4_moe_lite",),
    refusals=SECOND_NORM,
    mtp=MultiTokenPrediction(
        lambda config: (steps_of(config), 1),
        STEP_LAYER,
        (HF_LAYER, HF_LAYER),
        promising_none,
        "vllm/model_executor/models/glm4_moe_lite_mtp.py",
    ),
    settings=(
        *LATENT_SIZES,
        ROPE_INTERLEAVED,
        # vLLM, SGLang and Megatron; transformers takes 1e-6 whatever config.json says
        key("latent_norm_eps", "rms_norm_eps", otherwise=NORM_EPS),
        rms_norms(NORM_EPS),
        activation(),
        TIED,
        *biased_router_settings(groups=(1, 1), scaling=1.8),
        derived("mtp_steps", (NUMBER,), steps_of),
    ),
    experts=OWN_LOADER,
    oracles=("Megatron-Bridge", "mcore-bridge", "transformers"),
)
