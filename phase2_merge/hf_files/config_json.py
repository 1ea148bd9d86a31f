"""config.json and hf_quant_config.json, edited as raw JSON: transformers renames keys when it loads and saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shardmerge.common import durable
from shardmerge.common.places import CONFIG, HF_QUANT_CONFIG
from shardmerge.common.reference import DECLARATION, DECLARATIONS

TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
DTYPES = ("torch_dtype", "dtype")


def write(folder: Path, config: dict[str, Any], hf_quant_config: dict[str, Any] | None) -> None:
    """Write hf_quant_config.json, where there is one, and config.json.

    Args:
        folder: Where both go.
        config: What config.json holds.
        hf_quant_config: What hf_quant_config.json holds, None for a checkpoint that has none.

    Raises:
        OSError: Writing fails.
    """
    if hf_quant_config is not None:
        durable.write_file(folder / HF_QUANT_CONFIG, readable(hf_quant_config))
    durable.write_file(folder / CONFIG, readable(config))


def edited(
    config: dict[str, Any],
    dtype: str,
    quantization_config: dict[str, Any] | None = None,
    inside: str = "",
) -> dict[str, Any]:
    """Make a config say what this checkpoint is; everything else stays, in its order.

    Args:
        config: Of the reference. What it declares of quantization is of another checkpoint, and goes.
        dtype: What plain weights are, as safetensors spells it: `torch_dtype` and `dtype` say so.
        quantization_config: What this checkpoint declares of itself, None for nothing.
        inside: Key under which the config of the language model is, "" if it is not below. It says the same dtype where
            it says one, and no quantization.

    Returns:
        A new dict.
    """
    new = {key: value for key, value in config.items() if key not in DECLARATIONS}
    own = config.get(inside)
    if inside and isinstance(own, dict):
        said = {key: TORCH_NAMES[dtype] for key in DTYPES if key in own and dtype in TORCH_NAMES}
        new[inside] = {key: value for key, value in own.items() if key not in DECLARATIONS} | said
    if dtype in TORCH_NAMES:
        new["torch_dtype"] = new["dtype"] = TORCH_NAMES[dtype]
    if quantization_config is not None:
        new[DECLARATION] = quantization_config
    return new


def readable(value: dict[str, Any]) -> bytes:
    """Return JSON as people read it, with keys in the order that they have."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
