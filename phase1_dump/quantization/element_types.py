"""The torch dtypes that weights may have, by their safetensors names."""

from __future__ import annotations

import torch

from shardmerge.common.errors import BadInputError

PLAIN = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
TORCH = PLAIN | {"F8_E4M3": torch.float8_e4m3fn, "U8": torch.uint8}
NAMES = {dtype: name for name, dtype in PLAIN.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """Return the safetensors name of a dtype. Raises BadInputError for a dtype that weights are not kept in."""
    if dtype not in NAMES:
        raise BadInputError(f"params_dtype {dtype}", f"Supported: {', '.join(map(str, NAMES))}.")
    return NAMES[dtype]
