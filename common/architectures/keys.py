"""Canonical Megatron keys: their prefixes, and the ids of step, layer and routed expert in them.

Layers of multi-token prediction (MTP) are numbered by step, and where a step has several layers, within their step.
Source: megatron/core/transformer/multi_token_prediction.py (`sharded_state_dict` of `MultiTokenPredictionLayer`).
"""

from __future__ import annotations

import re
from typing import NamedTuple

LAYER = "decoder.layers.{layer}."
EXPERT = LAYER + "mlp.experts.experts.{expert}."
HF_LAYER = "model.layers.{layer}."  # as most families call it
STEP = "mtp.layers.{step}."
STEP_LAYER = STEP + "transformer_layer."  # of GPT models: a step has one layer
STEP_HYBRID_LAYER = STEP + "mtp_model_layer.layers.{layer}."
EXPERTS = ".experts.experts."  # what keys of routed experts contain, and no other key
_ID = re.compile(
    r"(?<=^mtp\.layers\.)(?P<step>\d+)(?=\.)"
    r"|(?<=\.layers\.)(?P<layer>\d+)(?=\.)"
    r"|(?<=\.experts\.experts\.)(?P<expert>\d+)(?=\.)"
)


class KeyIds(NamedTuple):
    """The ids in a canonical key, None for one that it lacks.

    Of a decoder's layer `layer` is global, of an MTP layer it counts from the first of its step. `expert` is global.
    """

    step: int | None = None
    layer: int | None = None
    expert: int | None = None


def key_pattern(key: str) -> str:
    """Return a key without its ids: `decoder.layers.7.mlp` gives `decoder.layers.{layer}.mlp`."""
    return _ID.sub(lambda match: f"{{{match.lastgroup}}}", key)


def key_ids(key: str) -> KeyIds:
    """Return the ids in a canonical key."""
    return KeyIds(**{str(match.lastgroup): int(match[0]) for match in _ID.finditer(key)})


def is_mtp(key: str) -> bool:
    """Whether a canonical key is that of a layer of multi-token prediction."""
    return key.startswith("mtp.")


def is_routed_expert(key: str) -> bool:
    """Whether a canonical key is that of a routed expert."""
    return EXPERTS in key
