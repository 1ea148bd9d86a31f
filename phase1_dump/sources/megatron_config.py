"""Compares the model's own config with config.json where shapes cannot show a difference.

Two head layouts can give a fused q/k/v of the same size, and some fields of megatron-core's config change what the
numbers of a weight mean but no shape (`settings.fields`). Both would be exported wrong without a word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from shardmerge.common.architectures import Blueprint
from shardmerge.common.errors import MismatchError, UnsupportedParameterError

from ..rectangles.layouts import LAYOUTS
from ..settings.fields import differing, refusals

# dimension that a layout needs -> attribute of TransformerConfig
ATTRIBUTES = {
    "heads": "num_attention_heads",
    "groups": "num_query_groups",
    "head_dim": "kv_channels",
    "mamba_groups": "mamba_num_groups",
    "mamba_state": "mamba_state_dim",
    "delta_key_heads": "linear_num_key_heads",
    "delta_value_heads": "linear_num_value_heads",
    "delta_key_dim": "linear_key_head_dim",
    "delta_value_dim": "linear_value_head_dim",
}
DELTA = ("delta_key_heads", "delta_value_heads", "delta_key_dim", "delta_value_dim")
# size of a section that is a product or a quotient, which hides its factors -> its factors
FACTORS = {
    "state": ("mamba_groups", "mamba_state"),
    **dict.fromkeys(("delta_keys", "delta_values", "delta_key_dim", "group_values", "group_heads"), DELTA),
}


IS_LAYER = re.compile(r"layers\.\d+$")
IS_ATTENTION = re.compile(r"layers\.\d+\.self_attention$")
HEADS = ("num_attention_heads", "kv_channels")


def check_agreement(config: Any, blueprint: Blueprint, rank: int) -> None:
    """Compare a model's TransformerConfig with the table that is to describe it.

    Args:
        config: the TransformerConfig.
        blueprint: the table, bound to config.json.
        rank: for messages.

    Raises:
        MismatchError: the heads are not those of config.json.
        UnsupportedParameterError: a field has an effect that no config.json can say.
    """
    for field, value, effect in refusals(config):
        what_is_missing = f"{effect}, of which no config.json of {blueprint.architecture.name} speaks"
        raise UnsupportedParameterError(f"{field}={value}", what_is_missing, rank)
    if config.multi_latent_attention and config.rotary_interleaved:
        effect = "latent attention rotates neighbours already, and would exchange them once more"
        raise UnsupportedParameterError("rotary_interleaved=True", effect, rank)
    for row in blueprint.rows:
        factors = (factor for section in row.sections for factor in FACTORS.get(section, ()))
        for dimension in (*LAYOUTS[row.layout].dimensions, *factors):
            _check_dimension(config, blueprint, dimension, row.targets[0].name, rank)


def check_one_config(models: Sequence[Any], rank: int) -> None:
    """Refuse a layer that was given a config of its own which computes otherwise than the model's.

    Modules inside a layer have copies by megatron-core itself, as where tensor parallelism repeats a key head. Heads of
    an attention must be the model's: no table has layers with others.

    Args:
        models: chunks, without wrappers.
        rank: for messages.

    Raises:
        UnsupportedParameterError: what one layer computes with differs from what is told of the model.
    """
    config = models[0].config
    seen = {id(config)}
    for model in models:
        for name, module in model.named_modules():
            own = getattr(module, "config", None)
            if own is None or id(own) in seen or not (IS_LAYER.search(name) or IS_ATTENTION.search(name)):
                continue
            seen.add(id(own))
            fields = differing(config, own)
            if IS_ATTENTION.search(name):
                fields = [field for field in fields if field in HEADS]
            if fields:
                told = ", ".join(f"{field}={getattr(own, field)}" for field in fields)
                raise UnsupportedParameterError(name, f"its own config says {told}, unlike the model's", rank)


def _check_dimension(config: Any, blueprint: Blueprint, dimension: str, tensor: str, rank: int) -> None:
    attribute = ATTRIBUTES[dimension]
    got, expected = getattr(config, attribute), blueprint.dimensions[dimension]
    if got != expected:
        raise MismatchError(
            tensor, f"{attribute} of the model", str(got), f"{expected} by config.json", (rank,)
        )
