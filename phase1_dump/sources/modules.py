"""Reads off a tree of modules its wrappers, stored tensors, local experts and router biases.

Must not know tables, nor what becomes of a tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn


def wrappers(chunk: nn.Module) -> Iterator[nn.Module]:
    """Yield the chunk and every module it wraps, outermost first: DDP, Float16Module, the model."""
    while True:
        yield chunk
        inner = getattr(chunk, "module", None)
        if not isinstance(inner, nn.Module):
            return
        chunk = inner


def unwrap(chunk: nn.Module) -> nn.Module:
    """Return the model inside DDP and Float16Module."""
    return list(wrappers(chunk))[-1]


def stored_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield parameters, and the buffers that a checkpoint would hold.

    `state_dict` is not called: in it routers cast their bias to float32, before anyone has seen what it was.
    """
    yield from model.named_parameters()
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set and buffer.dtype.is_floating_point:
                yield f"{prefix}.{name}" if prefix else name, buffer


def local_experts(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the global ids of the local experts that every MoE layer says it has, by the name of the layer."""
    return {
        name: tuple(int(index) for index in module.local_expert_indices)
        for name, module in model.named_modules()
        if getattr(module, "local_expert_indices", None) is not None and hasattr(module, "experts")
    }


def router_bias_dtypes(chunks: Iterable[nn.Module]) -> dict[str, int]:
    """Count the router biases in each dtype: training may have rounded what is exported as float32."""
    counts: dict[str, int] = {}
    for chunk in chunks:
        for name, buffer in unwrap(chunk).named_buffers():
            if name.endswith("router.expert_bias"):
                counts[str(buffer.dtype)] = counts.get(str(buffer.dtype), 0) + 1
    return counts
