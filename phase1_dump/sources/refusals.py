"""Refuses models before megatron-core is called, because the call would already communicate or mislead.

On DTensor, FSDP2, GTP and meta parameters `sharded_state_dict` itself enters collectives or describes no data.
Without torch.distributed every process passes for rank 0 of 1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor

from shardmerge.common.errors import (
    BadInputError,
    NotInitializedError,
    StaleParametersError,
    UnsupportedParameterError,
)

from ..quantization.modelopt import compressed_refusal, is_compressed
from ..quantization.transformer_engine import te_class, te_refusal
from .modules import stored_tensors, unwrap, wrappers

PLAIN_TYPES = (torch.Tensor, nn.Parameter, nn.Buffer)
PARALLEL_SIZES = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
)
LAUNCHER_SIZES = ("WORLD_SIZE", "SLURM_NTASKS")
GTP_SIZES = ("gtp_weight_remat_size", "expert_gtp_weight_remat_size")


def refuse_foreign(chunks: Sequence[nn.Module]) -> None:
    """Raise BadInputError unless these are modules of megatron-core, each given once."""
    if not chunks:
        raise BadInputError("no model chunk was given", "Pass the module, or the list of this rank's chunks.")
    models = [unwrap(chunk) for chunk in chunks]
    for model in models:
        if not (hasattr(model, "sharded_state_dict") and hasattr(model, "config")):
            raise BadInputError(
                f"{type(model).__module__}.{type(model).__qualname__} is not a model of megatron-core",
                "Pass the GPTModel, wrapped or not: it must have sharded_state_dict() and config.",
            )
    if len({id(model) for model in models}) < len(models):
        raise BadInputError("a model chunk was given twice", "Pass each of this rank's chunks once.")


def refuse_uninitialized(chunks: Sequence[nn.Module], environment: Mapping[str, str] = os.environ) -> None:
    """Raise NotInitializedError if torch.distributed is down but more than one rank is meant."""
    if distributed.is_available() and distributed.is_initialized():
        return
    for name in LAUNCHER_SIZES:
        if environment.get(name, "1").strip() not in ("", "0", "1"):
            raise NotInitializedError(f"{name}={environment[name]}")
    for chunk in chunks:
        config = getattr(unwrap(chunk), "config", None)
        for name in PARALLEL_SIZES:
            if (getattr(config, name, 1) or 1) > 1:
                raise NotInitializedError(f"the model's config says {name}={getattr(config, name)}")


def refuse_stale(chunks: Sequence[nn.Module]) -> None:
    """Raise StaleParametersError for a DDP chunk whose parameters are gathered lazily, in the next forward.

    Source: megatron/core/distributed/distributed_data_parallel.py, `enable_forward_pre_hook`.
    """
    for index, chunk in enumerate(chunks):
        for layer in wrappers(chunk):
            overlaps = getattr(getattr(layer, "ddp_config", None), "overlap_param_gather", False)
            if overlaps and getattr(layer, "remove_forward_pre_hook_handles", None):
                raise StaleParametersError(index)


def refuse_parameters(chunks: Sequence[nn.Module], rank: int, *, dequantize: bool = False) -> None:
    """Raise UnsupportedParameterError for the first parameter or buffer whose bytes cannot be taken as they are.

    Args:
        chunks: the model chunks of this rank, wrapped or not.
        rank: for messages.
        dequantize: whether quantized parameters of Transformer Engine will be dequantized.
    """
    for chunk in chunks:
        model = unwrap(chunk)
        for name, tensor in stored_tensors(model):
            reason = refusal(tensor, dequantize=dequantize)
            if reason:
                raise UnsupportedParameterError(name, reason, rank)
        config = getattr(model, "config", None)
        for size in GTP_SIZES:
            if (getattr(config, size, 1) or 1) > 1:
                first = next((name for name, _ in model.named_parameters()), "the model")
                raise UnsupportedParameterError(
                    first, f"the model's config says {size}={getattr(config, size)}", rank
                )


def refusal(tensor: torch.Tensor, *, dequantize: bool = False) -> str | None:
    """Return why this parameter cannot be dumped, or None."""
    if isinstance(tensor, DTensor):
        return "it is a DTensor (FSDP2 or tensor parallelism of PyTorch); gather it or use a Megatron model"
    if getattr(tensor, "is_gtp_weight_remat", False):
        return "it is sharded by GTP (gtp_remat), which only a collective can undo"
    if te_class(tensor) is not None or is_compressed(tensor):
        return te_refusal(tensor, dequantize=dequantize) or compressed_refusal(tensor)
    if type(tensor) not in PLAIN_TYPES:
        return f"it is a {type(tensor).__module__}.{type(tensor).__qualname__}; quantized storage is not supported"
    if tensor.device.type == "meta":
        return "it is on the meta device and holds no data"
    return _storage_refusal(tensor)


def _storage_refusal(tensor: torch.Tensor) -> str | None:
    if tensor.numel() and not tensor.untyped_storage().nbytes():
        return "its storage is freed (as FSDP and ZeRO-3 do between uses); gather it or use a Megatron model"
    if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
        return f"its dtype is {tensor.dtype}; floating point of 16 bits and more is supported"
    return None
