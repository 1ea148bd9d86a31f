"""Canonical Megatron keys: prefixes, the layer and routed expert in a key, and the pattern that all of them share."""

from __future__ import annotations

import re

LAYER = "decoder.layers.{layer}."
EXPERT = LAYER + "mlp.experts.experts.{expert}."
HF_LAYER = "model.layers.{layer}."  # as most families call it
EXPERTS = ".experts.experts."  # what keys of routed experts contain, and no other key
_ID = re.compile(r"(?<=\.layers\.)(\d+)(?=\.)|(?<=\.experts\.experts\.)(\d+)(?=\.)")


def key_pattern(key: str) -> str:
    """`decoder.layers.7.mlp...` -> `decoder.layers.{layer}.mlp...`; experts likewise."""
    return _ID.sub(lambda found: "{layer}" if found[1] else "{expert}", key)


def key_ids(key: str) -> tuple[int | None, int | None]:
    """Global layer and global expert id in a canonical key, None where it has none."""
    layer = expert = None
    for found in _ID.finditer(key):
        if found[1]:
            layer = int(found[1])
        else:
            expert = int(found[2])
    return layer, expert


def is_routed_expert(key: str) -> bool:
    """Whether a canonical key is that of a routed expert."""
    return EXPERTS in key
