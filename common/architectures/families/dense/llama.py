"""Dense decoders: Llama, Mistral, Qwen2, Qwen3.

Source: transformers, models/{llama,mistral,qwen2,qwen3}/{configuration,modeling}_*.py (names, biases, norms).
"""

from __future__ import annotations

from ...blocks.attention import (
    GROUPED_QUERY_ATTENTION,
    HEAD_NORMS,
    QKV_BIAS,
    WINDOW_BY_LAYER,
    rotated_heads,
    window_of_all,
    windows_by_layer,
)
from ...blocks.embeddings import EMBEDDINGS, NORMS, TIED, rms_norms
from ...blocks.mlp import DENSE_MLP, activation
from ...dimensions import common_dimensions, common_flags, integer, layers_alike, unbiased_flags
from ...rows import Architecture, Config
from ...settings.says import derived


def _flags_always_biased(config: Config) -> frozenset[str]:
    return common_flags(config) | {"qkv_bias"}


def _windows(config: Config) -> list[int] | None:
    """Read the window of Llama's layers, which vLLM heeds and transformers does not."""
    kinds = config.get("layer_types") or ()
    return windows_by_layer(integer(config, "sliding_window", 0), kinds)


DENSE_SETTINGS = (*rotated_heads(), rms_norms(), activation(), TIED)
DENSE_ROWS = EMBEDDINGS + NORMS + GROUPED_QUERY_ATTENTION + DENSE_MLP

LLAMA = Architecture(
    "LlamaForCausalLM",
    "transformers models/llama/modeling_llama.py",
    DENSE_ROWS,
    common_dimensions,
    unbiased_flags,
    layers_alike("dense"),
    model_types=("llama", "internlm3", "iquestcoder"),
    settings=(*DENSE_SETTINGS, derived("sliding_windows", ("sliding_window", "layer_types"), _windows)),
    oracles=("Megatron-Bridge", "Model-Optimizer", "mcore-bridge"),
)
MISTRAL = Architecture(
    "MistralForCausalLM",
    "transformers models/mistral/modeling_mistral.py: Llama, but a window of 4,096 unless config.json says null",
    DENSE_ROWS,
    common_dimensions,
    unbiased_flags,
    layers_alike("dense"),
    model_types=("mistral",),
    settings=(*DENSE_SETTINGS, window_of_all(switch=None, otherwise=4096)),
    oracles=("Megatron-Bridge", "transformers"),
)
QWEN2 = Architecture(
    "Qwen2ForCausalLM",
    "transformers models/qwen2/modeling_qwen2.py: q, k and v have biases, o has none",
    DENSE_ROWS + QKV_BIAS,
    common_dimensions,
    _flags_always_biased,
    layers_alike("dense"),
    model_types=("qwen2",),
    settings=(*DENSE_SETTINGS, WINDOW_BY_LAYER),
    oracles=("Megatron-Bridge", "Model-Optimizer", "mcore-bridge"),
)
QWEN3 = Architecture(
    "Qwen3ForCausalLM",
    "transformers models/qwen3/modeling_qwen3.py: q_norm and k_norm per head",
    DENSE_ROWS + HEAD_NORMS,
    common_dimensions,
    unbiased_flags,
    layers_alike("dense"),
    model_types=("qwen3",),
    settings=(*DENSE_SETTINGS, WINDOW_BY_LAYER),
    oracles=("Megatron-Bridge", "Model-Optimizer", "mcore-bridge"),
)
