"""Decides which dtype a tensor that is not packed is written in. Dtypes are safetensors names."""

from __future__ import annotations

from collections.abc import Callable

from shardmerge.common.architectures import Tensor
from shardmerge.common.reference import Reference


def dtype_chooser(
    reference: Reference, params_dtype: str, *, dtype_from_reference: bool
) -> Callable[[Tensor], str]:
    """Return a function that chooses the dtype of each tensor.

    It is the reference's dtype for that name if it holds weights in plain floating point, else `params_dtype`: torch
    norms hold bf16 values in float32. What the table keeps float32 stays so unless `dtype_from_reference` is set.

    Args:
        reference: the Hugging Face directory; it may hold no weights.
        params_dtype: the dtype that the parameters are trained in.
        dtype_from_reference: let the reference narrow what is kept float32.

    Returns:
        A function from a tensor of the table to the name of its dtype.
    """

    def choose(tensor: Tensor) -> str:
        known = reference.plain_dtype(tensor.name)
        if tensor.float32 and not (dtype_from_reference and known):
            return "F32"
        return known or params_dtype

    return choose
