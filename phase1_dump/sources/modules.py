"""Reads off a tree of modules its wrappers, stored tensors, local experts and router biases.

Finds the language model in a model that holds others too, and accounts for the parameters of those. Must not know what
becomes of a tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from shardmerge.common.architectures import Blueprint
from shardmerge.common.errors import UnclaimedParameterError, UnsupportedParameterError
from shardmerge.common.errors.several import raise_problems

TRAINED = (
    "it stands beside the language model, which alone is written, and is not frozen (requires_grad). If training did "
    "not change it, or what it learned may be lost: drop_vision=True (--drop-vision), and in the merge --graft vision"
)


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


def language_models(chunks: Sequence[nn.Module], table: Blueprint, rank: int) -> list[Any]:
    """Find the language models.

    Args:
        chunks: this rank's model chunks, wrapped or not.
        table: of the architecture; it says what the language model is called in a model that holds others too.
        rank: for messages.

    Returns:
        The language model of each chunk, without wrappers; it may be the chunk itself.

    Raises:
        UnsupportedParameterError: a chunk has a place for one and leaves it empty.
    """
    return [_language_model(unwrap(chunk), table, rank) for chunk in chunks]


def left_beside(
    chunks: Sequence[nn.Module], models: Sequence[Any], table: Blueprint, rank: int, *, drop_vision: bool
) -> dict[str, int]:
    """Count the parameters beside the language models that are left out.

    Args:
        chunks: this rank's model chunks, wrapped or not.
        models: their language models.
        table: of the architecture; it says what may stand beside.
        rank: for messages.
        drop_vision: leave them out though they are not frozen.

    Returns:
        By reason, how many.

    Raises:
        UnclaimedParameterError: a parameter beside the language model of which the table does not speak.
        UnsupportedParameterError: one that may have been trained, and would be lost without a word.
        ProblemsFoundError: several of the former.
    """
    counts: Counter[str] = Counter()
    unclaimed: list[UnclaimedParameterError] = []
    for chunk, model in zip(map(unwrap, chunks), models, strict=True):
        if chunk is model:
            continue
        own = {id(tensor) for _, tensor in stored_tensors(model)}
        for name, tensor in stored_tensors(chunk):
            if id(tensor) in own:
                continue
            if (reason := table.drop_reason(name)) is None:
                architecture = table.architecture.name
                unclaimed.append(UnclaimedParameterError(name, tuple(tensor.shape), architecture, rank))
            elif tensor.requires_grad and not drop_vision:
                raise UnsupportedParameterError(name, TRAINED, rank)
            else:
                counts[reason] += 1
    raise_problems(unclaimed)
    return dict(counts)


def _language_model(model: nn.Module, table: Blueprint, rank: int) -> Any:
    composite = table.architecture.composite
    name = composite.key_prefix.removesuffix(".") if composite else ""
    if not name or not hasattr(model, name):
        return model
    if (found := getattr(model, name)) is None:
        raise UnsupportedParameterError(name, "this rank holds nothing of the language model", rank)
    return found
