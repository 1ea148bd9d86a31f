"""The digest of a table: what phase two compares, so that a dump is merged with the table that it was dumped with.

It is of the rows and drops, and of how keys and names of multi-token prediction and of composites begin: whatever joins
a Megatron key to a Hugging Face name, its layout and its shape. It is not of functions, whose source tells little (they
call others).
What they return is proven all the same: a dump holds the dimensions, and they are compared; flags and sets of layers
decide which tensors there must be, and all must be there; settings are compared with what the live model computes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from .rows import Architecture

DIGITS = 16  # against mistakes, not against forgers


def table_digest(table: Architecture) -> str:
    """Return what changes with any row of a table.

    What a row leaves at its default does not count, so that a field that is added to rows later changes no digest.
    """
    mtp = table.mtp
    composite = table.composite
    beside = [mtp.key, mtp.hf_layers] if mtp else []
    beside += [composite.key_prefix, composite.vision] if composite else []
    return digest([[without_defaults(one) for one in (*table.rows, *table.drops)], beside])


def without_defaults(value: Any) -> Any:
    """Return a dataclass as lists and dicts of JSON, without the fields that are at their default."""
    if isinstance(value, tuple):
        return [without_defaults(one) for one in value]
    if not dataclasses.is_dataclass(value):
        return value
    return {
        field.name: without_defaults(held)
        for field in dataclasses.fields(value)
        if (held := getattr(value, field.name)) != field.default
    }


def digest(value: Any) -> str:
    """Return the digest of what JSON can spell."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:DIGITS]
