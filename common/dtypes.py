"""The element types of safetensors, by their names in its headers.

Source: safetensors, safetensors/src/tensor.rs, `enum Dtype` and `bitsize`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from .errors import BadInputError

BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
DTYPES = tuple(sorted(BITS))  # a ledger stores a dtype as its place in this list


def byte_size(dtype: str, shape: Sequence[int]) -> int:
    """Return the bytes of a dense tensor of `dtype` and `shape`.

    Raises BadInputError for an unknown dtype or a packed tensor that ends inside a byte.
    """
    if dtype not in BITS:
        raise BadInputError(f"dtype {dtype} is not one of safetensors", f"Known: {', '.join(sorted(BITS))}.")
    bits = prod(shape) * BITS[dtype]
    if bits % 8:
        raise BadInputError(f"{dtype} {list(shape)} ends inside a byte", "Pack to whole bytes first.")
    return bits // 8
