"""Reads from config.json the dimensions and flags that every decoder has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .rows import Config


def common_dimensions(config: Config) -> dict[str, int]:
    """Return the dimensions that every decoder has. `q` and `kv` are rows of the projections."""
    heads, groups = (
        config["num_attention_heads"],
        config.get("num_key_value_heads") or config["num_attention_heads"],
    )
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return {
        "num_layers": config["num_hidden_layers"],
        "num_experts": 0,
        "hidden": config["hidden_size"],
        "vocab": config["vocab_size"],
        "heads": heads,
        "groups": groups,
        "head_dim": head_dim,
        "q": heads * head_dim,
        "kv": groups * head_dim,
        "ffn": config["intermediate_size"],
    }


def common_flags(config: Config) -> frozenset[str]:
    """Return {"untied"} unless input and output embeddings are one tensor."""
    return frozenset() if config.get("tie_word_embeddings", False) else frozenset({"untied"})


def set_flags(flags: Mapping[str, Any]) -> frozenset[str]:
    """Return the names whose value is true."""
    return frozenset(name for name, value in flags.items() if value)
