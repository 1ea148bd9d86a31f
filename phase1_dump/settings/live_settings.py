"""Reads the settings of a live model: from its TransformerConfig, and from modules where only they know.

What this rank cannot tell, as the sizes of a Mamba mixer on a stage without one, is left out: other ranks tell it.
Source: megatron/core/transformer/transformer_config.py, and the modules that are named below.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from shardmerge.common.architectures.settings.vocabulary import MTP_SETTINGS, Value

from . import rotary

Settings = dict[str, Value]

# names of activation functions -> what the vocabulary calls them, unless it is the same
ACTIVATIONS = {"squared_relu": "relu2", "fast_gelu": "gelu_tanh", "openai_gelu": "gelu_tanh"}


# classes that multiply what is embedded by the root of its width; megatron-bridge, models/gemma/gemma3_provider.py
SCALING_EMBEDDINGS = {"Gemma3LanguageModelEmbedding"}

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


def settings_of(models: Sequence[Any], *, drop_mtp: bool = False) -> Settings:
    """Return the settings that this rank can tell.

    Args:
        models: This rank's chunks, without wrappers. They share a config.
        drop_mtp: Multi-token prediction is left out, and nothing is said of it.

    Returns:
        Values by the names of the vocabulary.
    """
    config = models[0].config
    modules = [(name, module) for model in models for name, module in model.named_modules()]
    found = {
        **(
            _latent_attention(config, modules)
            if config.multi_latent_attention
            else _grouped_attention(config)
        ),
        **_attention(config),
        **_norms_without_rope(config, modules),
        **_causal(modules),
        **rotary.settings(models, modules),
        **_norms(config, modules),
        **_feed_forward(config),
        **(_router(config) if config.num_moe_experts else {}),
        **_mixers(modules),
        **_embeddings(models, config),
        **_mtp(models, config),
    }
    return {name: value for name, value in found.items() if not (drop_mtp and name in MTP_SETTINGS)}


def _grouped_attention(config: Any) -> Settings:
    """Source: megatron/core/transformer/dot_product_attention.py for the scale."""
    return {
        "attention_heads": config.num_attention_heads,
        "key_value_heads": config.num_query_groups or config.num_attention_heads,
        "head_dim": config.kv_channels,
        "softmax_scale": config.softmax_scale or config.kv_channels**-0.5,
        "rope_interleaved": bool(config.rotary_interleaved),
    }


def _latent_attention(config: Any, modules: Iterable[tuple[str, Any]]) -> Settings:
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
        **_one("softmax_scale", scales),
    }


def _attention(config: Any) -> Settings:
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


def _norms_without_rope(config: Any, modules: Iterable[tuple[str, Any]]) -> Settings:
    """Read whether layers that do not rotate norm queries and keys too, as all layers of megatron-core's own specs do.

    Layers count from 1; steps of multi-token prediction come after the last and are not listed.
    """
    without = config.no_rope_freq or []
    if not config.qk_l2_norm:
        return {}
    found = {
        type(module.q_layernorm).__name__ != "IdentityOp"
        for _, module in modules
        if hasattr(module, "q_layernorm") and any(without[module.layer_number - 1 : module.layer_number])
    }
    return _one("query_key_norm_without_rope", found)


def _indexer(config: Any) -> Settings:
    """Up to 0.16, without this option, the last channels of a head are rotated, as two halves.

    Source: megatron/core/transformer/experimental_attention_variant/dsa.py (`DSAIndexer._apply_rope`).
    """
    option = "dsa_indexer_rope_interleaved"
    return {
        "indexer_rope_interleaved": bool(getattr(config, option, False)),
        "indexer_rope_first": hasattr(config, option),
    }


def _causal(modules: Iterable[tuple[str, Any]]) -> Settings:
    """Read the masks that layer specs give to attention; what an arbitrary one hides, the model does not know."""
    masks = {
        module.attn_mask_type.name
        for name, module in modules
        if name.endswith("self_attention") and hasattr(module, "attn_mask_type")
    }
    return _one("causal", {"causal" in mask for mask in masks if mask != "arbitrary"})


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


def _norms(config: Any, modules: Iterable[tuple[str, Any]]) -> Settings:
    """Read the eps of every norm, whether a module of its own or fused into a projection."""
    seen: dict[str, set[float]] = {}
    for name, module in modules:
        eps = getattr(module, "eps", None)
        if isinstance(eps, float):
            seen.setdefault(_norm_setting(config, name), set()).add(eps)
    found: Settings = {
        "norm": config.normalization,
        "zero_centred_norms": bool(config.layernorm_zero_centered_gamma),
    }
    for setting, values in seen.items():
        found |= _one(setting, values)
    return found


def _norm_setting(config: Any, name: str) -> str:
    """Return the setting that the eps of a module belongs to, by the module's name."""
    last = name.rpartition(".")[2]
    if name.endswith("mixer.norm"):
        return "mamba_norm_eps"
    if name.endswith("indexer.k_norm"):
        return "indexer_norm_eps"
    latent = ("q_layernorm", "kv_layernorm", "linear_q_up_proj", "linear_kv_up_proj")
    return "latent_norm_eps" if config.multi_latent_attention and last in latent else "norm_eps"


def _feed_forward(config: Any) -> Settings:
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


def _router(config: Any) -> Settings:
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


def _mixers(modules: Iterable[tuple[str, Any]]) -> Settings:
    """Source: megatron/core/ssm/mamba_mixer.py, which bounds no time step."""
    mixers = [module for _, module in modules if hasattr(module, "d_state") and hasattr(module, "nheads")]
    if not mixers:
        return {}
    return {
        **_one("mamba_heads", {mixer.nheads for mixer in mixers}),
        **_one("mamba_head_dim", {mixer.headdim for mixer in mixers}),
        **_one("mamba_groups", {mixer.ngroups for mixer in mixers}),
        **_one("mamba_state", {mixer.d_state for mixer in mixers}),
        **_one("mamba_activation", {mixer.activation for mixer in mixers}),
        "mamba_time_step": [0.0, None],
    }


def _embeddings(models: Sequence[Any], config: Any) -> Settings:
    """Source: megatron/core/models/common/language_module/language_module.py, from 0.17 for the factors."""
    scaled = getattr(config, "use_mup", False)
    factor = float(config.mup_embedding_mult) if scaled else 1.0
    kinds = {type(model.embedding).__name__ for model in models if hasattr(model, "embedding")}
    return {
        "tied_embeddings": bool(models[0].share_embeddings_and_output_weights),
        "logit_scale": float(config.mup_output_mult) if scaled else 1.0,
        **_one(
            "embedding_scale",
            {factor * (config.hidden_size**0.5 if kind in SCALING_EMBEDDINGS else 1) for kind in kinds},
        ),
    }


def _mtp(models: Sequence[Any], config: Any) -> Settings:
    """A step that is repeated is stored once. Only hybrids know kinds of layers."""
    steps = config.mtp_num_layers or 0
    found: Settings = {
        "mtp_steps": min(steps, 1) if getattr(config, "mtp_use_repeated_layer", False) else steps
    }
    if steps and hasattr(models[0], "mtp_pattern"):
        found["mtp_pattern"] = models[0].mtp_pattern
    return found


def _one(setting: str, values: set[Any]) -> Settings:
    """Return a setting that modules tell: their value, or all of them where they differ, which agrees with nothing."""
    if not values:
        return {}
    return {setting: values.pop() if len(values) == 1 else sorted(values)}
