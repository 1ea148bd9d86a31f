"""Gemma 3, its text class: norms before and after each half of a layer, and two rotary bases.

Five of six layers have a window, and rotate by a base of their own. All norms add one to their weights, what is
embedded is multiplied by the root of its width, and the output embedding is the input's.
Source: transformers, models/gemma3/{configuration,modeling}_gemma3.py (`Gemma3TextConfig.convert_rope_params_to_dict`);
megatron-bridge, models/gemma/gemma3_{bridge,provider}.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ...blocks.attention import GROUPED_QUERY_ATTENTION, HEAD_NORMS, HEADS, windows_by_layer
from ...blocks.embeddings import EMBEDDINGS, rms_norms
from ...blocks.mlp import DENSE_MLP, activation
from ...dimensions import (
    common_dimensions,
    head_channels,
    integer,
    layers_alike,
    refuse_true,
    set_flags,
    unless_absent,
)
from ...keys import HF_LAYER, LAYER
from ...rows import Architecture, Config, Row, Target, same
from ...settings.rope import NEW, OLD, THETA, rope
from ...settings.says import Says, Synonyms, always, derived, key

GLOBAL, LOCAL = "full_attention", "sliding_attention"  # kinds of layers, as transformers calls them
LOCAL_THETA = "rope_local_base_freq"
WINDOW_KEYS = ("sliding_window", "layer_types", "sliding_window_pattern")
TIE = "tie_word_embeddings"


def _norm(keys: tuple[str, ...], name: str) -> Row:
    return Row(tuple(LAYER + one for one in keys), (Target(HF_LAYER + name, ("hidden",)),), where="layers")


NORMS = (
    _norm(
        ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"), "input_layernorm.weight"
    ),
    _norm(
        ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"), "pre_feedforward_layernorm.weight"
    ),
    same(
        LAYER + "self_attention.linear_proj.post_layernorm.weight",
        HF_LAYER + "post_attention_layernorm.weight",
        "hidden",
    ),
    same(
        LAYER + "mlp.linear_fc2.post_layernorm.weight",
        HF_LAYER + "post_feedforward_layernorm.weight",
        "hidden",
    ),
)


def _flags(config: Config) -> frozenset[str]:
    capped = ("final_logit_softcapping", "attn_logit_softcapping")  # which no megatron-core computes
    refuse_true(config, "attention_bias", "use_bidirectional_attention", *capped)
    return set_flags({"untied": not config.get(TIE, True)})


def _windows(config: Config) -> list[int] | None:
    layers, every = range(integer(config, "num_hidden_layers")), integer(config, "sliding_window_pattern", 6)
    kinds = config.get("layer_types") or [LOCAL if (layer + 1) % every else GLOBAL for layer in layers]
    return windows_by_layer(unless_absent(config, "sliding_window", 4096), kinds)


def _inside(config: Config, kind: str) -> dict[str, Any]:
    """Return what config.json says of rotation in layers of a kind. Raises ValueError unless it says it by kind."""
    said = config.get(NEW) or {}
    if not all(isinstance(one, Mapping | None) for one in said.values()):
        raise ValueError(f"{NEW} = {said!r:.60}")
    return dict(said.get(kind) or {})


def _of_global(config: Config) -> Config:
    """Return the config of a model all of whose layers rotate as those that see all."""
    return {**config, NEW: {**_inside(config, GLOBAL), **(config.get(OLD) or {})}, OLD: None}


def _of_local(config: Config) -> Config:
    return {**config, NEW: _inside(config, LOCAL), OLD: None, THETA: config.get(LOCAL_THETA)}


def _synonyms(kind: str, theta: str, *names: str) -> tuple[Synonyms, ...]:
    inside = f"{NEW}.{kind}."
    return ((inside + THETA, theta), *((f"{OLD}.{name}", inside + name) for name in names))


def _rotated(theta: float, seen_as: Callable[[Config], Config], keys: tuple[str, ...]) -> tuple[Says, ...]:
    """Return the settings of rotation, read from a config.json that is seen as that of one kind of layers."""

    def reading(row: Says) -> Says:
        return replace(row, keys=keys, value=lambda config: row.value(seen_as(config)), synonyms=())

    return tuple(map(reading, rope(head_channels, theta)))


FREQUENCIES, FACTOR = _rotated(1e6, _of_global, (f"{NEW}.{GLOBAL}", THETA, OLD))
LOCAL_FREQUENCIES, _ = _rotated(10000.0, _of_local, (f"{NEW}.{LOCAL}", LOCAL_THETA))


GEMMA3 = Architecture(
    "Gemma3ForCausalLM",
    "transformers models/gemma3/modeling_gemma3.py",
    EMBEDDINGS + NORMS + GROUPED_QUERY_ATTENTION + HEAD_NORMS + DENSE_MLP,
    common_dimensions,
    _flags,
    layers_alike("dense"),
    model_types=("gemma3_text",),
    settings=(
        *(row for row in HEADS if row.setting != "softmax_scale"),
        key("softmax_scale", "query_pre_attn_scalar", otherwise=256**-0.5, reads=lambda scalar: scalar**-0.5),
        replace(FREQUENCIES, synonyms=_synonyms(GLOBAL, THETA, "rope_type", "factor")),
        FACTOR,
        replace(LOCAL_FREQUENCIES, setting="rope_local_frequencies", synonyms=_synonyms(LOCAL, LOCAL_THETA)),
        derived("sliding_windows", WINDOW_KEYS, _windows),
        always("zero_centred_norms", True),
        rms_norms(),
        activation("hidden_activation", "gelu_tanh"),
        key("tied_embeddings", TIE, otherwise=True),
        derived("embedding_scale", ("hidden_size",), lambda config: integer(config, "hidden_size") ** 0.5),
    ),
    oracles=("Megatron-Bridge", "transformers"),
)
