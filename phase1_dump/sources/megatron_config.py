"""Compares the model's own config with config.json where shapes cannot show a difference.

Two head layouts can give a fused q/k/v of the same size, and some options of megatron-core change what the numbers
of a weight mean but no shape. Both would be exported wrong without a word.
"""

from __future__ import annotations

from typing import Any

from shardmerge.common.architectures import Blueprint
from shardmerge.common.errors import MismatchError, UnsupportedParameterError

from ..rectangles.layouts import LAYOUTS

# dimension that a layout needs -> attribute of TransformerConfig
ATTRIBUTES = {
    "heads": "num_attention_heads",
    "groups": "num_query_groups",
    "head_dim": "kv_channels",
    "mamba_groups": "mamba_num_groups",
    "mamba_state": "mamba_state_dim",
}
# size of a section that is a product, which hides its factors -> its factors
FACTORS = {"state": ("mamba_groups", "mamba_state")}

# Option of TransformerConfig -> what it does to weights that no row undoes.
# Source: megatron/core/transformer/transformer_config.py
REARRANGING = {
    "layernorm_zero_centered_gamma": "norm weights are stored minus one",
    "rotary_interleaved": "rotary pairs are neighbours in q and k, not halves of a head",
    "moe_mlp_glu_interleave_size": "rows of gate and up alternate in the experts' fc1",
    "moe_shared_expert_glu_interleave_size": "rows of gate and up alternate in the shared experts' fc1",
}


def check_agreement(config: Any, blueprint: Blueprint, rank: int) -> None:
    """Compare a model's TransformerConfig with the table that is to describe it.

    Args:
        config: the TransformerConfig.
        blueprint: the table, bound to config.json.
        rank: for messages.

    Raises:
        MismatchError: the heads are not those of config.json.
        UnsupportedParameterError: an option rearranges weights.
    """
    for option, effect in REARRANGING.items():
        if getattr(config, option, None):
            raise UnsupportedParameterError(
                f"{option}={getattr(config, option)}",
                f"{effect}, which {blueprint.architecture.name} does not undo",
                rank,
            )
    for row in blueprint.rows:
        factors = (factor for section in row.sections for factor in FACTORS.get(section, ()))
        for dimension in (*LAYOUTS[row.layout].dimensions, *factors):
            _check_dimension(config, blueprint, dimension, row.targets[0].name, rank)


def _check_dimension(config: Any, blueprint: Blueprint, dimension: str, tensor: str, rank: int) -> None:
    attribute = ATTRIBUTES[dimension]
    got, expected = getattr(config, attribute), blueprint.dimensions[dimension]
    if got != expected:
        raise MismatchError(
            tensor, f"{attribute} of the model", str(got), f"{expected} by config.json", (rank,)
        )
