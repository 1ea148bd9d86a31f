"""Canonical Megatron keys: their prefixes, and the ids of the layer and the routed expert in them."""

from __future__ import annotations

import re

LAYER = "decoder.layers.{layer}."
EXPERT = LAYER + "mlp.experts.experts.{expert}."
HF_LAYER = "model.layers.{layer}."  # as most families call it
EXPERTS = ".experts.experts."  # what keys of routed experts contain, and no other key
_ID = re.compile(r"(?<=\.layers\.)(\d+)(?=\.)|(?<=\.experts\.experts\.)(\d+)(?=\.)")


def key_pattern(key: str) -> str:
    """Return a key without its ids: `decoder.layers.7.mlp` gives `decoder.layers.{layer}.mlp`."""
    return _ID.sub(lambda match: "{layer}" if match[1] else "{expert}", key)


def key_ids(key: str) -> tuple[int | None, int | None]:
    """Return the global layer and the global expert id in a canonical key, None for one that it lacks."""
    layer = expert = None
    for match in _ID.finditer(key):
        if match[1]:
            layer = int(match[1])
        else:
            expert = int(match[2])
    return layer, expert


def is_routed_expert(key: str) -> bool:
    """Whether a canonical key is that of a routed expert."""
    return EXPERTS in key
