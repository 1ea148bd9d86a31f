"""Lists the parameters of a model as megatron-core describes them: key, local data, place in the whole.

`sharded_state_dict` is the only source of sharding; no rank arithmetic is done here. A `ShardedTensorFactory` is
never built on live data (it would chunk, and so dequantize, what it touches): it is built on a meta tensor of the
same shape, and where its pieces lie is read off their storage offsets.
Source: megatron/core/dist_checkpointing/mapping.py (`ShardedTensor`, `ShardedTensorFactory`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory
from torch import nn

from shardmerge.common.errors import UnsupportedParameterError
from shardmerge.common.rectangle import Shape

from ..quantization.transformer_engine import members, raw_address
from ..rectangles.parameter import Parameter
from .modules import stored_tensors, unwrap
from .process_groups import dp_cp_group

METADATA = {"non_homogeneous_layers": True, "singleton_local_shards": True}
CALIBRATION = re.compile(
    r"\.[a-z_]*_quantizer\."
)  # ranges that modelopt keeps beside weights: scales are made of them


def parameters_of(chunk: nn.Module, rank: int) -> Iterator[Parameter]:
    """Yield every parameter of one model chunk, including copies that another pipeline stage owns.

    Calibration ranges are left out. The handle `data` of each is the live tensor. `rank` is for messages.

    Raises UnsupportedParameterError for a description without a plain box of local data, and for a parameter
    without a description.
    """
    model: Any = unwrap(chunk)
    described = model.sharded_state_dict(metadata=METADATA | {"dp_cp_group": dp_cp_group(model)})
    seen: list[torch.Tensor] = []
    for name, entry in _flatten(described):
        if isinstance(entry, ShardedObject):
            continue  # extra states, which are not tensors of the model
        seen.append(entry.data)
        if CALIBRATION.search(entry.key):
            continue
        if isinstance(entry, ShardedTensorFactory):
            yield from _from_factory(name, entry, rank)
        else:
            yield _from_tensor(name, entry, entry.data, (0,) * len(entry.local_shape), rank)
    _require_all_described(model, seen, rank)


def _from_factory(name: str, factory: ShardedTensorFactory, rank: int) -> Iterator[Parameter]:
    base = torch.empty(tuple(factory.data.shape), device="meta")
    built = factory.build_fn(factory.key, base, factory.replica_id, factory.flattened_range)
    for _, piece in _flatten(built):
        start = _start_in(base, piece.data)
        if start is None:
            raise UnsupportedParameterError(
                name, f"megatron-core rearranges it into {piece.key}, not by slicing", rank
            )
        yield _from_tensor(name, piece, factory.data, start, rank)


def _from_tensor(name: str, entry: ShardedTensor, data: torch.Tensor, start: Shape, rank: int) -> Parameter:
    if entry.prepend_axis_num or getattr(entry, "flattened_range", None) is not None:
        raise UnsupportedParameterError(
            name, "megatron-core describes it with prepended or flattened axes", rank
        )
    return Parameter(
        entry.key,
        name,
        data,
        tuple(data.shape),
        start,
        tuple(entry.local_shape),
        tuple(entry.global_shape),
        tuple(entry.global_offset),
        _pp_replica(entry.replica_id),
    )


def _start_in(base: torch.Tensor, view: torch.Tensor) -> Shape | None:
    """Return where a view starts in its contiguous base, or None if it is not a plain box of it."""
    if view.untyped_storage()._cdata != base.untyped_storage()._cdata or view.ndim != base.ndim:
        return None
    same_steps = all(
        n == 1 or step == whole
        for n, step, whole in zip(view.shape, view.stride(), base.stride(), strict=True)
    )
    if not same_steps:
        return None
    start, rest = [], view.storage_offset()
    for step in base.stride():
        start.append(rest // step)
        rest %= step
    return tuple(start)


def _flatten(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested dicts and lists, each with its live name, the innermost key."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flatten(value, str(key))
    elif isinstance(tree, Sequence) and not isinstance(tree, str):
        for value in tree:
            yield from _flatten(value, name)
    else:
        yield name, tree


def _pp_replica(replica_id: int | tuple[int, ...]) -> int:
    return replica_id[0] if isinstance(replica_id, tuple) else replica_id


def _require_all_described(model: nn.Module, described: Sequence[torch.Tensor], rank: int) -> None:
    """Raise UnsupportedParameterError for a parameter or buffer that `sharded_state_dict` does not mention."""
    addresses = {raw_address(tensor) for tensor in described}  # storages would not do: DDP puts all into one
    for name, tensor in stored_tensors(model):
        if tensor.numel() and not {raw_address(one) for one in members(tensor)} <= addresses:
            reason = f"{type(model).__name__}.sharded_state_dict does not tell where it belongs"
            raise UnsupportedParameterError(name, reason, rank)
