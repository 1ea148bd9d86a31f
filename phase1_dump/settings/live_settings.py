"""Reads the settings of a live model: from its TransformerConfig, and from modules where only they know.

What this rank cannot tell, as the sizes of a Mamba mixer on a stage without one, is left out: other ranks tell it.
Source: megatron/core/transformer/transformer_config.py, and the modules that are named below.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from shardmerge.common import canonical_json
from shardmerge.common.architectures.settings.vocabulary import MTP_SETTINGS
from shardmerge.common.errors import BadInputError

from . import rotary
from .of_config import Settings, attention, feed_forward, grouped_attention, latent_attention, one_of, router

# classes that multiply what is embedded by the root of its width; megatron-bridge, models/gemma/gemma3_provider.py
SCALING_EMBEDDINGS = {"Gemma3LanguageModelEmbedding"}


def settings_of(models: Sequence[Any], *, drop_mtp: bool = False) -> Settings:
    """Return the settings that this rank can tell.

    Args:
        models: This rank's chunks, without wrappers. They share a config.
        drop_mtp: Multi-token prediction is left out, and nothing is said of it.

    Returns:
        Values by the names of the vocabulary, in plain types.

    Raises:
        BadInputError: a value is nothing that JSON holds.
    """
    config = models[0].config
    modules = [(name, module) for model in models for name, module in model.named_modules()]
    found = {
        **(latent_attention(config, modules) if config.multi_latent_attention else grouped_attention(config)),
        **attention(config),
        **_norms_without_rope(config, modules),
        **_causal(modules),
        **rotary.settings(models, modules),
        **_norms(config, modules),
        **feed_forward(config),
        **(router(config) if config.num_moe_experts else {}),
        **_mixers(modules),
        **_embeddings(models, config),
        **_mtp(models, config),
    }
    return {
        name: _as_json(name, value)
        for name, value in found.items()
        if not (drop_mtp and name in MTP_SETTINGS)
    }


def _as_json(name: str, value: Any) -> Any:
    """Return the value of a setting as a manifest holds it. The training program's own classes are known here alone."""
    try:
        return canonical_json.decode(canonical_json.encode(value))
    except (TypeError, ValueError) as error:
        raise BadInputError(
            f"The model says {value!r} for the setting {name}, which JSON does not hold: {error}",
            "Give its config plain numbers, texts and lists.",
        ) from None


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
    return one_of("query_key_norm_without_rope", found)


def _causal(modules: Iterable[tuple[str, Any]]) -> Settings:
    """Read the masks that layer specs give to attention; what an arbitrary one hides, the model does not know."""
    masks = {
        module.attn_mask_type.name
        for name, module in modules
        if name.endswith("self_attention") and hasattr(module, "attn_mask_type")
    }
    return one_of("causal", {"causal" in mask for mask in masks if mask != "arbitrary"})


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
        found |= one_of(setting, values)
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


def _mixers(modules: Iterable[tuple[str, Any]]) -> Settings:
    """Source: megatron/core/ssm/mamba_mixer.py, which bounds no time step."""
    mixers = [module for _, module in modules if hasattr(module, "d_state") and hasattr(module, "nheads")]
    if not mixers:
        return {}
    return {
        **one_of("mamba_heads", {mixer.nheads for mixer in mixers}),
        **one_of("mamba_head_dim", {mixer.headdim for mixer in mixers}),
        **one_of("mamba_groups", {mixer.ngroups for mixer in mixers}),
        **one_of("mamba_state", {mixer.d_state for mixer in mixers}),
        **one_of("mamba_activation", {mixer.activation for mixer in mixers}),
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
        **one_of(
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
