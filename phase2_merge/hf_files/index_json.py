"""model.safetensors.index.json: which shard holds which tensor.

Decides how it is written: by orjson, because the standard library takes seconds for a million names.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from shardmerge.common import durable
from shardmerge.common.places import INDEX


def write(folder: Path, weight_map: dict[str, str], num_parameters: int, total_bytes: int) -> None:
    """Write the index, which readers need where there is more than one shard.

    Args:
        folder: Where it goes.
        weight_map: Name of each tensor to the name of its shard.
        num_parameters: Elements of all tensors.
        total_bytes: Bytes of all tensors.

    Raises:
        OSError: Writing fails.
    """
    durable.write_file(folder / INDEX, encode(weight_map, num_parameters, total_bytes))


def encode(weight_map: dict[str, str], num_parameters: int, total_bytes: int) -> bytes:
    """Return the index as the Hub's tools write it, sorted by name.

    Args:
        weight_map: Name of each tensor to the name of its shard.
        num_parameters: Elements of all tensors.
        total_bytes: Bytes of all tensors.

    Returns:
        JSON with a newline at the end.
    """
    sizes = {"total_parameters": num_parameters, "total_size": total_bytes}
    index = {"metadata": sizes, "weight_map": weight_map}
    return orjson.dumps(index, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
