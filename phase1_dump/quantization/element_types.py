"""torch dtypes by their safetensors names, and which dtype a tensor is written in."""

from __future__ import annotations

from collections.abc import Callable

import torch

from shardmerge.common.architectures import Tensor
from shardmerge.common.errors import BadInputError
from shardmerge.common.reference import Reference

PLAIN = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
TORCH = PLAIN | {"F8_E4M3": torch.float8_e4m3fn, "U8": torch.uint8}
NAMES = {dtype: name for name, dtype in PLAIN.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """The safetensors name. Raises BadInputError for a dtype that weights are not kept in."""
    if dtype not in NAMES:
        raise BadInputError(f"params_dtype {dtype}", f"Supported: {', '.join(map(str, NAMES))}.")
    return NAMES[dtype]


def dtype_chooser(
    reference: Reference, params_dtype: str, *, dtype_from_reference: bool
) -> Callable[[Tensor], str]:
    """What each tensor is written in.

    The reference's dtype for that name if it holds weights in plain floating point, else `params_dtype`: torch norms
    hold bf16 values in float32. The table's keep-list stays float32 unless `dtype_from_reference`.
    """

    def choose(tensor: Tensor) -> str:
        known = reference.plain_dtype(tensor.name)
        if tensor.float32 and not (dtype_from_reference and known):
            return "F32"
        return known or params_dtype

    return choose
