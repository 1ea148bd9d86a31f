"""The names of settings: everything that changes what a model computes and shows in no shape of a tensor.

A value is what JSON holds: true, false, a number, a text, a list of numbers, or null where the model does without. Both
sides spell it alike: what the live model says (phase one), and what config.json says (the tables).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

Value = Any
SHOWN_CHARACTERS = 200
TOLERANCE = 1e-5  # relative: megatron-core computes rotary frequencies in float32


class _Unspoken:
    """What a table computes with that does not mention a setting, where that depends on the architecture."""


UNSPOKEN: Final = _Unspoken()


class Kind(StrEnum):
    """What the values of a setting are, unless they are null."""

    COUNT = "an integer"
    NUMBER = "a number"
    FLAG = "true or false"
    WORD = "a text"
    LIST = "a list of numbers"


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting.

    Attributes:
        meaning: In words, for messages and the documentation.
        kind: What its values are.
        neutral: What an architecture computes with whose table does not mention it. UNSPOKEN: it is then not compared.
    """

    meaning: str
    kind: Kind
    neutral: Value = UNSPOKEN


SETTINGS: Final[dict[str, Setting]] = {
    # attention
    "attention_heads": Setting("heads of queries", Kind.COUNT),
    "key_value_heads": Setting("heads of keys and values", Kind.COUNT),
    "head_dim": Setting("channels of a head", Kind.COUNT),
    "query_latent": Setting("rank of the query's down projection; null without one", Kind.COUNT),
    "key_value_latent": Setting("rank of the down projection of keys and values", Kind.COUNT),
    "nope_head_dim": Setting("channels of a head of queries and keys that are not rotated", Kind.COUNT),
    "rope_head_dim": Setting("channels of a head of queries and keys that are rotated", Kind.COUNT),
    "value_head_dim": Setting("channels of a head of values", Kind.COUNT),
    "softmax_scale": Setting("factor on queries times keys", Kind.NUMBER),
    "causal": Setting("whether a token sees none that come later", Kind.FLAG, True),
    "attention_sink": Setting("what the softmax adds to its denominator", Kind.WORD, "vanilla"),
    "attention_gate": Setting("whether a gate multiplies the output of attention", Kind.FLAG, False),
    "attention_variant": Setting("attention that is neither grouped-query nor latent", Kind.WORD, None),
    "linear_attention_layers": Setting("layers of linear attention, as 0 and 1", Kind.LIST, None),
    "query_key_norm": Setting("a norm of queries and keys without weights", Kind.FLAG, False),
    "query_key_norm_without_rope": Setting(
        "whether layers that do not rotate have that norm as well", Kind.FLAG
    ),
    "attention_chunk": Setting(
        "tokens of a chunk, within which rotating layers see; null if they see all", Kind.COUNT, None
    ),
    "attention_temperature": Setting(
        "of layers that do not rotate: by how much queries grow, and after how many tokens; null if they do not",
        Kind.LIST,
        None,
    ),
    "projection_clip": Setting("bound on queries, keys and values; null for none", Kind.NUMBER, None),
    "sliding_windows": Setting(
        "tokens that each layer sees, 0 for all; null if each sees all", Kind.LIST, None
    ),
    "rope_frequencies": Setting("radians a token of each rotated pair of channels", Kind.LIST, []),
    "rope_local_frequencies": Setting(
        "the same in layers with a window, null where these rotate as all do", Kind.LIST, None
    ),
    "rope_factor": Setting("factor on the rotary cosine and sine", Kind.NUMBER, 1.0),
    "rope_interleaved": Setting("whether a rotated pair is two neighbours, not two halves", Kind.FLAG, False),
    "rope_sections": Setting("pairs for each axis of multimodal positions", Kind.LIST, None),
    "rope_sections_interleaved": Setting(
        "whether the axes of multimodal positions turn pairs in turn, not one block of pairs each",
        Kind.FLAG,
        False,
    ),
    "layers_without_rope": Setting("layers that do not rotate, as 0 and 1", Kind.LIST, None),
    # norms
    "norm": Setting("kind of the norms", Kind.WORD, "RMSNorm"),
    "zero_centred_norms": Setting("whether 1 is added to the weights of norms", Kind.FLAG, False),
    "norm_eps": Setting("what norms add to the mean square", Kind.NUMBER),
    "latent_norm_eps": Setting("what norms of latent queries, keys and values add", Kind.NUMBER),
    "mamba_norm_eps": Setting("what the gated norm of a Mamba mixer adds", Kind.NUMBER),
    # feed-forward
    "activation": Setting("activation of feed-forward layers", Kind.WORD, "silu"),
    "gated": Setting("whether the activation multiplies a second projection", Kind.FLAG, True),
    "activation_clamp": Setting("bound on what goes into the activation; null for none", Kind.NUMBER, None),
    "gate_offset": Setting("what is added to the second projection", Kind.NUMBER, 0.0),
    "moe_latent": Setting("width in which routed experts work; null for that of the model", Kind.COUNT, None),
    # router
    "experts_per_token": Setting("experts that a token is sent to", Kind.COUNT),
    "router_score": Setting("function that turns logits into scores", Kind.WORD, "softmax"),
    "router_normalized": Setting("whether the weights of a token's experts add up to 1", Kind.FLAG),
    "router_scaling": Setting("factor on the weights of a token's experts", Kind.NUMBER, 1.0),
    "router_groups": Setting(
        "groups of experts, and how many of them a token may use; null for no limit", Kind.LIST, None
    ),
    "router_group_score": Setting(
        "how many best experts score a group; null without groups", Kind.COUNT, None
    ),
    "router_bias": Setting("whether a bias is added when experts are chosen", Kind.FLAG, False),
    "router_weights_input": Setting(
        "whether a token's weight multiplies an expert's input", Kind.FLAG, False
    ),
    "shared_expert_gate": Setting("whether a gate multiplies the output of shared experts", Kind.FLAG, False),
    # Mamba and DeltaNet
    "mamba_heads": Setting("heads of a Mamba mixer", Kind.COUNT),
    "mamba_head_dim": Setting("channels of a head of a Mamba mixer", Kind.COUNT),
    "mamba_groups": Setting("groups of B and C in a Mamba mixer", Kind.COUNT),
    "mamba_state": Setting("size of the state of a Mamba mixer", Kind.COUNT),
    "mamba_activation": Setting("activation after a Mamba mixer's convolution", Kind.WORD),
    "mamba_time_step": Setting("least and largest time step of a Mamba mixer; null for no bound", Kind.LIST),
    "delta_key_heads": Setting("heads of keys in a DeltaNet", Kind.COUNT),
    "delta_value_heads": Setting("heads of values in a DeltaNet", Kind.COUNT),
    "delta_key_dim": Setting("channels of a head of keys in a DeltaNet", Kind.COUNT),
    "delta_value_dim": Setting("channels of a head of values in a DeltaNet", Kind.COUNT),
    "delta_kernel": Setting("width of a DeltaNet's convolution", Kind.COUNT),
    "indexer_heads": Setting("heads of the indexer of sparse attention", Kind.COUNT),
    "indexer_head_dim": Setting("channels of a head of the indexer", Kind.COUNT),
    "indexer_top_k": Setting("tokens that sparse attention sees", Kind.COUNT),
    "indexer_rope_interleaved": Setting(
        "whether a pair that the indexer rotates is two neighbours, not two halves", Kind.FLAG
    ),
    "indexer_rope_first": Setting("whether the indexer rotates the first channels of a head", Kind.FLAG),
    "indexer_norm_eps": Setting("what the norm of the indexer's keys adds", Kind.NUMBER),
    # embeddings and multi-token prediction
    "tied_embeddings": Setting("whether input and output embeddings are one tensor", Kind.FLAG),
    "embedding_scale": Setting("factor on what is embedded", Kind.NUMBER, 1.0),
    "logit_scale": Setting("factor on the logits", Kind.NUMBER, 1.0),
    "mtp_steps": Setting("stored steps of multi-token prediction", Kind.COUNT, 0),
    "mtp_pattern": Setting("kinds of the layers of a step of multi-token prediction", Kind.WORD),
}
FREQUENCIES: Final = frozenset({"rope_frequencies", "rope_local_frequencies"})
MTP_SETTINGS: Final = frozenset({"mtp_steps", "mtp_pattern"})


def is_valid(name: str, value: Value) -> bool:
    """Whether a setting can have this value."""
    return value is None or FITS[SETTINGS[name].kind](value)


def spell(name: str, value: Value) -> str:
    """Return a value for a message. Rotary frequencies are told by their base where they have one."""
    try:
        if name in FREQUENCIES and _is_list(value) and len(value) > 1 and min(value) > 0:
            return _spell_frequencies(value)
    except (ArithmeticError, TypeError):  # null, or numbers that no model has
        pass
    text = json.dumps(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def agree(one: Value, other: Value) -> bool:
    """Whether two values of a setting are the same: numbers within TOLERANCE, everything else exactly."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(agree, one, other))
    if _is_number(one) and _is_number(other):
        try:
            return math.isclose(one, other, rel_tol=TOLERANCE)
        except OverflowError:  # an integer that no float can hold
            return bool(one == other)
    return type(one) is type(other) and bool(one == other)


def _spell_frequencies(value: list[float]) -> str:
    ratio, pairs = value[1] / value[0], len(value)
    spread = f"{pairs} pairs, from {value[0]:.4g} to {value[-1]:.4g}"
    plain = agree(value, [value[0] * ratio**pair for pair in range(pairs)])
    return f"{spread}, as of base {ratio**-pairs:.6g}" if plain else f"{spread}, scaled"


def _is_list(value: Value) -> bool:
    return isinstance(value, list) and all(one is None or _is_number(one) for one in value)


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


FITS: Final[dict[Kind, Callable[[Value], bool]]] = {
    Kind.COUNT: lambda value: isinstance(value, int) and not isinstance(value, bool),
    Kind.NUMBER: _is_number,
    Kind.FLAG: lambda value: isinstance(value, bool),
    Kind.WORD: lambda value: isinstance(value, str),
    Kind.LIST: _is_list,
}
