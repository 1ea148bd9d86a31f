"""The JSON that readers of the checkpoint look at: config.json and the index. Edited as raw JSON, never through
transformers, whose load and save renames keys.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from shardmerge.common import durable
from shardmerge.common.places import CONFIG, HF_QUANT_CONFIG, INDEX

TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def write_config(
    folder: Path,
    config: dict[str, Any],
    dtype: str,
    quantization: Sequence[dict[str, Any] | None] = (None, None),
) -> None:
    """config.json: the reference's, with the checkpoint's dtype; and hf_quant_config.json.

    `quantization`: what the latter holds, and what the former says of it; None for none.
    """
    hf_quant_config, quantization_config = quantization
    if hf_quant_config is not None:
        durable.write_file(folder / HF_QUANT_CONFIG, readable(hf_quant_config))
    durable.write_file(folder / CONFIG, readable(edited(config, dtype, quantization_config)))


def edited(
    config: dict[str, Any], dtype: str, quantization_config: dict[str, Any] | None = None
) -> dict[str, Any]:
    """`torch_dtype` and `dtype` say what plain weights are; a stale `quantization_config` goes; the rest stays."""
    found = {key: value for key, value in config.items() if key != "quantization_config"}
    if dtype in TORCH_NAMES:
        found["torch_dtype"] = found["dtype"] = TORCH_NAMES[dtype]
    if quantization_config is not None:
        found["quantization_config"] = quantization_config
    return found


def write_index(folder: Path, weight_map: dict[str, str], num_parameters: int, total_bytes: int) -> None:
    """Write model.safetensors.index.json, which readers need of more than one shard.

    Args:
        folder: where the shards are.
        weight_map: name of the shard that holds each tensor.
        num_parameters: elements of all tensors together.
        total_bytes: bytes of all tensors together.
    """
    durable.write_file(folder / INDEX, index_bytes(weight_map, num_parameters, total_bytes))


def index_bytes(weight_map: dict[str, str], num_parameters: int, total_bytes: int) -> bytes:
    """As the Hub's tools write it, sorted by name. By orjson: json takes seconds for a million names."""
    sizes = {"total_parameters": num_parameters, "total_size": total_bytes}
    index = {"metadata": sizes, "weight_map": weight_map}
    return orjson.dumps(index, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


def readable(value: dict[str, Any]) -> bytes:
    """JSON as people read it, in the order that it has."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
