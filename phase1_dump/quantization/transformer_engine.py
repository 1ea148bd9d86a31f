"""Recognises Transformer Engine's quantized parameters by class: which can be written, and their parts.

A parameter is never sliced or indexed: that would dequantize it, or read a storage of no bytes. Its raw tensors are
plain and may be cut. `get_metadata()` is the way in that versions 2.8 to 2.20 share.
Source: transformer_engine/pytorch/tensor/storage/*_storage.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch

from shardmerge.common.quantization.arithmetic import in_blocks
from shardmerge.common.quantization.formats import FORMATS
from shardmerge.common.quantization.rows import Format

from .derived import Cache, Derived, Readable
from .element_types import TORCH

CLASSES = ("Float8Tensor", "Float8BlockwiseQTensor", "MXFP8Tensor", "NVFP4Tensor", "GroupedTensor")
WRITTEN = {row.transformer_engine: row for row in FORMATS.values() if row.transformer_engine}
DISPUTED = ("Float8Tensor",)  # readers of checkpoints do not agree on its form
INSTEAD = "dump it with dequantize=True (--dequantize)"


def te_class(tensor: Any) -> str | None:
    """Return the name of the Transformer Engine class that a parameter is of, or None."""
    return _te_class_of(tensor.__class__)


@cache
def _te_class_of(wanted: type) -> str | None:
    """Return the name of the Transformer Engine class that a class is or derives from. Every tensor is asked often."""
    for kind in wanted.__mro__:
        name = kind.__name__.removesuffix("Storage").removesuffix("Base")
        if kind.__module__.startswith("transformer_engine.") and name in CLASSES:
            return name
    return None


def members(tensor: Any) -> list[Any]:
    """Return the matrices of a parameter: a GroupedTensor holds one per expert, any other is one itself."""
    if te_class(tensor) != "GroupedTensor":
        return [tensor]
    return list(getattr(tensor, "quantized_tensors", None) or tensor.split_into_quantized_tensors())


def te_refusal(tensor: Any, *, dequantize: bool) -> str | None:
    """Return why a parameter of Transformer Engine cannot be written, or None."""
    for member in members(tensor):
        if te_class(member) is not None and (reason := _refusal(member, dequantize=dequantize)):
            return reason
    return None


def raw_address(tensor: Any) -> int:
    """Return where the bytes of a parameter lie. A quantized one has no storage of its own."""
    if te_class(tensor) is None:
        return int(tensor.data_ptr())
    return next((int(raw.data_ptr()) for raw in _raw(tensor)), 0)


def te_format(tensor: Any) -> Format:
    """Return the format that a parameter which is not refused is written in."""
    return WRITTEN[te_class(tensor) or ""]


def te_parts(tensor: Any) -> Mapping[str, Readable]:
    """Return the plain tensors by suffix, without padding: [N, K] weights and [ceil(N/n), ceil(K/k)] scales."""
    row, facts = te_format(tensor), tensor.get_metadata()
    data, scale = facts["rowwise_data"], facts["rowwise_scale_inv"]
    weight, scales = row.companions
    rows, columns = in_blocks(data.shape, row.block)
    return {weight.suffix: data.view(TORCH[weight.dtype]), scales.suffix: scale[:rows, :columns]}


def dequantized(tensor: Any, cache: Cache) -> Derived:
    """Return the parameter as Transformer Engine dequantizes it: whole, when its first part is read."""
    shape = tuple(tensor.shape)
    whole = lambda: tensor.dequantize().detach()  # noqa: E731
    return Derived(
        (shape[0], shape[1]),
        (1, 1),
        1,
        tensor.dtype,
        tensor.device,
        lambda rows, columns: cache.get(tensor, whole)[rows, columns],
    )


def _refusal(tensor: Any, *, dequantize: bool) -> str | None:
    name, facts = te_class(tensor) or "", tensor.get_metadata()
    if not any(raw.numel() for raw in _raw(tensor)):
        return f"it is a {name} whose data is freed"
    why = None if dequantize else _why_not(name, facts)
    return None if why is None else f"it is a {name} {why}; {INSTEAD}"


def _why_not(name: str, facts: Mapping[str, Any]) -> str | None:
    """Return why a parameter of this class cannot be written packed, or None."""
    if name not in WRITTEN:
        disputed = "on whose form the readers of checkpoints do not agree"
        return disputed if name in DISPUTED else "which shardmerge does not write"
    rows, columns = WRITTEN[name].block
    refused = (
        (facts.get("rowwise_data") is None, "that holds columnwise data only"),
        ("E4M3" not in _numbers(facts), f"of {_numbers(facts)}, not E4M3"),
        (
            not facts.get("is_2D_scaled", True),
            f"with blocks of one row; only blocks of {rows}x{columns} can be written",
        ),
        (facts.get("with_gemm_swizzled_scales"), "whose scales are swizzled for a kernel"),
    )
    return next((why for applies, why in refused if applies), None)


def _numbers(facts: Mapping[str, Any]) -> str:
    """Return the name of the element type, which is an enum, in C++ or in Python."""
    return str(getattr(facts.get("fp8_dtype"), "name", None))


def _raw(tensor: Any) -> Iterator[torch.Tensor]:
    """Yield the raw tensors, first the one that is written."""
    facts = tensor.get_metadata()
    names = ("rowwise_data", "data", "columnwise_data", "data_transpose")
    yield from (facts[name] for name in names if facts.get(name) is not None)
