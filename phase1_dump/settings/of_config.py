"""The settings that a TransformerConfig alone decides, of a live model or as one was recorded.

A config is any object with attributes. Must not know modules, torch or megatron-core, but for names of their code.
Source: megatron/core/transformer/transformer_config.py, and the modules that are named below.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from shardmerge.common.architectures.settings.vocabulary import Value

Settings = dict[str, Value]

# names of activation functions -> what the vocabulary calls them, unless it is the same
ACTIVATIONS = {"squared_relu": "relu2", "fast_gelu": "gelu_tanh", "openai_gelu": "gelu_tanh"}

# kind of attention -> fields of TransformerConfig that it alone reads -> the settings that they are
VARIANTS = {
    "gated_delta_net": {
        "linear_num_key_heads": "delta_key_heads",
        "linear_num_value_heads": "delta_value_heads",
        "linear_key_head_dim": "delta_key_dim",
        "linear_value_head_dim": "delta_value_dim",
        "linear_conv_kernel_dim": "delta_kernel",
    },
    "dsa": {
        "dsa_indexer_n_heads": "indexer_heads",
        "dsa_indexer_head_dim": "indexer_head_dim",
        "dsa_indexer_topk": "indexer_top_k",
    },
}


def grouped_attention(config: Any) -> Settings:
    """Source: megatron/core/transformer/dot_product_attention.py for the scale."""
    return {
        "attention_heads": config.num_attention_heads,
        "key_value_heads": config.num_query_groups or config.num_attention_heads,
        "head_dim": config.kv_channels,
        "softmax_scale": config.softmax_scale or config.kv_channels**-0.5,
        "rope_interleaved": bool(config.rotary_interleaved),
    }


def latent_attention(config: Any, modules: Iterable[tuple[str, Any]]) -> Settings:
    """Source: megatron/core/transformer/multi_latent_attention.py; rotated pairs are neighbours there."""
    scales = {module.softmax_scale for _, module in modules if hasattr(module, "q_head_dim")}
    return {
        "attention_heads": config.num_attention_heads,
        "query_latent": config.q_lora_rank,
        "key_value_latent": config.kv_lora_rank,
        "nope_head_dim": config.qk_head_dim,
        "rope_head_dim": config.qk_pos_emb_head_dim,
        "value_head_dim": config.v_head_dim,
        "rope_interleaved": True,
        **one_of("softmax_scale", scales),
    }


def attention(config: Any) -> Settings:
    variant = config.experimental_attention_variant
    own = {field: getattr(config, field) for field in VARIANTS.get(variant, {})}
    return {
        **{VARIANTS[variant][field]: value for field, value in own.items()},
        **(_indexer(config) if variant == "dsa" else {}),
        "attention_sink": config.softmax_type,
        "attention_gate": bool(config.attention_output_gate),
        "attention_variant": variant,
        "linear_attention_layers": _by_layer(config.linear_attention_freq, config.num_layers),
        "query_key_norm": bool(config.qk_l2_norm),
        # its attention has none of these
        "projection_clip": None,
        "attention_chunk": None,
        "attention_temperature": None,
        "sliding_windows": _windows(config),
    }


def _indexer(config: Any) -> Settings:
    """Up to 0.16, without this option, the last channels of a head are rotated, as two halves.

    Source: megatron/core/transformer/experimental_attention_variant/dsa.py (`DSAIndexer._apply_rope`).
    """
    option = "dsa_indexer_rope_interleaved"
    return {
        "indexer_rope_interleaved": bool(getattr(config, option, False)),
        "indexer_rope_first": hasattr(config, option),
    }


def _windows(config: Any) -> list[int] | None:
    """Return how many tokens each layer sees. Megatron's number is of those to the left, without the token itself.

    Source: megatron/core/transformer/utils.py (`is_layer_window_attention`), where layers count from 1.
    """
    if not config.window_size:
        return None
    pattern = getattr(config, "interleaved_attn_pattern", None)
    if pattern:
        return _windows_by_pattern(config.window_size, pattern, config.num_layers)
    left, skip = config.window_size[0], config.window_attn_skip_freq
    windows = []
    for layer in range(config.num_layers):
        listed = isinstance(skip, list)
        has_one = skip is None or (bool(skip[layer]) if listed else (layer + 1) % skip != 0)
        windows.append(left + 1 if has_one and left >= 0 else 0)
    return windows if any(windows) else None


def _windows_by_pattern(window: Any, pattern: Sequence[int], layers: int) -> list[int] | None:
    """Return how many tokens each layer sees in Bridge's Gemma, whose number includes the token itself.

    Source: megatron-bridge, models/gemma/gemma3_provider.py (`_is_local_attn_layer`), where layers count from 1.
    """
    windows = [window if (layer + 1) % sum(pattern) else 0 for layer in range(layers)]
    return windows if any(windows) else None


def _by_layer(frequency: Any, layers: int) -> list[int] | None:
    """Return 0 or 1 for each layer. A number n is 1 for all but every n-th.

    Source: megatron/core/models/gpt/experimental_attention_variant_module_specs.py.
    """
    if frequency is None:
        return None
    if isinstance(frequency, int):
        return [int((layer + 1) % frequency != 0) for layer in range(layers)]
    return [int(one) for one in frequency]


def feed_forward(config: Any) -> Settings:
    """A fused SwiGLU knows no clamp, and Transformer Engine's activation neither a clamp nor an offset.

    Source: megatron/core/transformer/mlp.py.
    """
    activation, gated = _activation(config), bool(config.gated_linear_unit)
    plain = not config.bias_activation_fusion or activation == "quick_gelu"
    own = gated and not config.use_te_activation_func
    return {
        "activation": activation,
        "gated": gated,
        "activation_clamp": config.activation_func_clamp_value if own and plain else None,
        "gate_offset": float(config.glu_linear_offset) if own else 0.0,
        "moe_latent": config.moe_latent_size,
    }


def _activation(config: Any) -> str:
    """Return the name of the activation. Fused with a bias and in Transformer Engine, gelu is approximated by tanh.

    Source: megatron/core/transformer/mlp.py; megatron/core/fusions/fused_bias_gelu.py.
    """
    function, approximate = config.activation_func, None
    if isinstance(function, partial):
        approximate, function = function.keywords.get("approximate"), function.func
    name = (
        f"gelu_{approximate}" if approximate else getattr(function, "__name__", type(function).__qualname__)
    )
    if name == "gelu" and (config.bias_activation_fusion or config.use_te_activation_func):
        return "gelu_tanh"
    return ACTIVATIONS.get(name, name)


def router(config: Any) -> Settings:
    """Source: megatron/core/transformer/moe/moe_utils.py (`topk_routing_with_score_function`, `group_limited_topk`)."""
    groups, used, top_k = config.moe_router_num_groups, config.moe_router_group_topk, config.moe_router_topk
    limited = bool(groups and used and used < groups)
    return {
        "experts_per_token": top_k,
        "router_score": config.moe_router_score_function,
        "router_normalized": _normalized(config),
        "router_scaling": float(config.moe_router_topk_scaling_factor or 1.0),
        "router_groups": [groups, used] if limited else None,
        "router_group_score": top_k // used if limited else None,
        "router_bias": bool(config.moe_router_enable_expert_bias),
        "router_weights_input": bool(config.moe_apply_probs_on_input),
        "shared_expert_gate": bool(config.moe_shared_expert_gate),
    }


def _normalized(config: Any) -> bool:
    """Whether the weights of a token's experts add up to 1.

    A softmax over the chosen logits does, one over all logits does not; other scores are divided by their sum if there
    are several.
    """
    if config.moe_router_score_function == "softmax":
        return not config.moe_router_pre_softmax
    return bool(config.moe_router_topk > 1)


def one_of(setting: str, values: set[Any]) -> Settings:
    """Return a setting that modules tell: their value, or all of them where they differ, which agrees with nothing."""
    if not values:
        return {}
    return {setting: values.pop() if len(values) == 1 else sorted(values)}
