"""The names of settings: everything that changes what a model computes and shows in no shape of a tensor.

A value is what JSON holds: true, false, a number, a text, a list of numbers, or null where the model does without. Both
sides spell it alike: what the live model says (phase one), and what config.json says (the tables).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

Value = Any
TOLERANCE = 1e-5  # relative: megatron-core computes rotary frequencies in float32


class _Unspoken:
    """What a table computes with that does not mention a setting, where that depends on the architecture."""


UNSPOKEN: Final = _Unspoken()


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting.

    Attributes:
        meaning: In words, for messages and the documentation.
        neutral: What an architecture computes with whose table does not mention it. UNSPOKEN: it is then not compared.
    """

    meaning: str
    neutral: Value = UNSPOKEN


# Numbers are counts unless they are said to be something else.
SETTINGS: Final[dict[str, Setting]] = {
    # attention
    "attention_heads": Setting("heads of queries"),
    "key_value_heads": Setting("heads of keys and values"),
    "head_dim": Setting("channels of a head"),
    "query_latent": Setting("rank of the query's down projection; null without one"),
    "key_value_latent": Setting("rank of the down projection of keys and values"),
    "nope_head_dim": Setting("channels of a head of queries and keys that are not rotated"),
    "rope_head_dim": Setting("channels of a head of queries and keys that are rotated"),
    "value_head_dim": Setting("channels of a head of values"),
    "softmax_scale": Setting("factor on queries times keys"),
    "attention_sink": Setting("what the softmax adds to its denominator", "vanilla"),
    "attention_gate": Setting("whether a gate multiplies the output of attention", False),
    "attention_variant": Setting("attention that is neither grouped-query nor latent", None),
    "linear_attention_layers": Setting("layers of linear attention, as 0 and 1", None),
    "query_key_norm": Setting("a norm of queries and keys without weights", False),
    "sliding_windows": Setting("tokens that each layer sees, 0 for all; null if each sees all", None),
    "rope_frequencies": Setting("radians a token of each rotated pair of channels", []),
    "rope_factor": Setting("factor on the rotary cosine and sine", 1.0),
    "rope_interleaved": Setting("whether a rotated pair is two neighbours, not two halves", False),
    "rope_sections": Setting("pairs for each axis of multimodal positions", None),
    "layers_without_rope": Setting("layers that do not rotate, as 0 and 1", None),
    # norms
    "norm": Setting("kind of the norms", "RMSNorm"),
    "norm_eps": Setting("what norms add to the mean square"),
    "latent_norm_eps": Setting("what norms of latent queries, keys and values add"),
    "mamba_norm_eps": Setting("what the gated norm of a Mamba mixer adds"),
    # feed-forward
    "activation": Setting("activation of feed-forward layers", "silu"),
    "gated": Setting("whether the activation multiplies a second projection", True),
    "activation_clamp": Setting("bound on what goes into the activation; null for none", None),
    "gate_offset": Setting("what is added to the second projection", 0.0),
    "moe_latent": Setting("width in which routed experts work; null for that of the model", None),
    # router
    "experts_per_token": Setting("experts that a token is sent to"),
    "router_score": Setting("function that turns logits into scores", "softmax"),
    "router_normalized": Setting("whether the weights of a token's experts add up to 1"),
    "router_scaling": Setting("factor on the weights of a token's experts", 1.0),
    "router_groups": Setting(
        "groups of experts, and how many of them a token may use; null for no limit", None
    ),
    "router_group_score": Setting("how many best experts score a group; null without groups", None),
    "router_bias": Setting("whether a bias is added when experts are chosen", False),
    "router_weights_input": Setting("whether a token's weight multiplies an expert's input", False),
    "shared_expert_gate": Setting("whether a gate multiplies the output of shared experts", False),
    # Mamba and DeltaNet
    "mamba_heads": Setting("heads of a Mamba mixer"),
    "mamba_head_dim": Setting("channels of a head of a Mamba mixer"),
    "mamba_groups": Setting("groups of B and C in a Mamba mixer"),
    "mamba_state": Setting("size of the state of a Mamba mixer"),
    "mamba_activation": Setting("activation after a Mamba mixer's convolution"),
    "mamba_time_step": Setting("least and largest time step of a Mamba mixer; null for no bound"),
    "delta_key_heads": Setting("heads of keys in a DeltaNet"),
    "delta_value_heads": Setting("heads of values in a DeltaNet"),
    "delta_key_dim": Setting("channels of a head of keys in a DeltaNet"),
    "delta_value_dim": Setting("channels of a head of values in a DeltaNet"),
    "delta_kernel": Setting("width of a DeltaNet's convolution"),
    "indexer_heads": Setting("heads of the indexer of sparse attention"),
    "indexer_head_dim": Setting("channels of a head of the indexer"),
    "indexer_top_k": Setting("tokens that sparse attention sees"),
    # embeddings and multi-token prediction
    "tied_embeddings": Setting("whether input and output embeddings are one tensor"),
    "embedding_scale": Setting("factor on what is embedded", 1.0),
    "logit_scale": Setting("factor on the logits", 1.0),
    "mtp_steps": Setting("stored steps of multi-token prediction", 0),
    "mtp_pattern": Setting("kinds of the layers of a step of multi-token prediction"),
}
MTP_SETTINGS: Final = frozenset({"mtp_steps", "mtp_pattern"})


def agree(one: Value, other: Value) -> bool:
    """Whether two values of a setting are the same: numbers within TOLERANCE, everything else exactly."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(agree, one, other))
    if _is_number(one) and _is_number(other):
        return math.isclose(one, other, rel_tol=TOLERANCE)
    return type(one) is type(other) and bool(one == other)


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
