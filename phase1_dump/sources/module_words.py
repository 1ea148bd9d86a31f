"""What only the module of a parameter shows: norms that are stored minus one, and fused projections in another order.

To such a norm 1 is added where readers add nothing, and any other disagreement is refused. Of each norm its own module
says how it is stored: programs change that of single norms. Attention with an output gate is refused if its class takes
the projection apart in another way than megatron-core, as key and shape are the same.
Source: megatron/core/transformer/attention.py (queries of a group, then their gates); mcore-bridge,
model/modules/gated_self_attention.py (each query followed by its gate) and model/gpts/qwen3_next_gdn.py (the norm of a
DeltaNet is stored as it is); transformer_engine, pytorch/module/{rmsnorm,layernorm_linear}.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from shardmerge.common.architectures import Layout
from shardmerge.common.errors import UnsupportedParameterError

from ..rectangles.claims import Claimed

TAKES_APART, OWN = "get_query_key_value_tensors", "megatron.core."


@dataclass(frozen=True, slots=True, eq=False)
class PlusOne:
    """A tensor of which 1 more than each element is read, computed in float32."""

    tensor: torch.Tensor

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def is_cuda(self) -> bool:
        return self.tensor.is_cuda

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape

    def detach(self) -> PlusOne:
        return self

    def __getitem__(self, box: tuple[slice, ...]) -> torch.Tensor:
        """Return the elements of a box of slices."""
        return self.tensor.detach()[box].float() + 1


def with_ones_added(
    model: nn.Module, claimed: Iterable[Claimed], *, centred: bool, rank: int
) -> Iterator[Claimed]:
    """Yield claims with the weights of norms as readers of the checkpoint take them.

    Args:
        model: the unwrapped chunk.
        claimed: its parameters.
        centred: whether readers add 1 to the weights of norms, but for those whose row says otherwise.
        rank: for messages.

    Raises:
        UnsupportedParameterError: a norm is stored otherwise than its readers expect.
    """
    modules = dict(model.named_modules())
    for entry in claimed:
        module = modules.get(entry.parameter.name.rpartition(".")[0], model)
        if entry.claim.row.plain_norm:
            data = entry.parameter.data
            is_centred = _is_centred(module, model)
            yield (
                replace(entry, parameter=replace(entry.parameter, data=PlusOne(data)))
                if is_centred
                else entry
            )
            continue
        own = getattr(module, "zero_centered_gamma", None)
        if own is not None and bool(own) != centred:
            stored = "stored minus one" if own else "stored as it is"
            readers = "add one to it" if centred else "add nothing to it"
            reason = f"its module says zero_centered_gamma={own}, so that its norm is {stored}, and readers {readers}"
            raise UnsupportedParameterError(entry.parameter.name, reason, rank)
        yield entry


def _is_centred(module: nn.Module, model: nn.Module) -> bool:
    """Whether a norm is stored minus one: its own word counts, then that of its config, then that of the model's."""
    own: Any = getattr(module, "zero_centered_gamma", None)
    config: Any = getattr(module, "config", None) or model.config
    return bool(config.layernorm_zero_centered_gamma if own is None else own)


def refuse_other_orders(model: nn.Module, claimed: Iterable[Claimed], rank: int) -> None:
    """Raise UnsupportedParameterError for a gated projection that another program's method takes apart.

    Args:
        model: the unwrapped chunk.
        claimed: its parameters.
        rank: for messages.
    """
    modules = dict(model.named_modules())
    for entry in claimed:
        if entry.claim.row.layout is not Layout.GATED_QKV:
            continue
        attention = modules.get(entry.parameter.name.rpartition(".linear_qkv.")[0])
        method = getattr(type(attention), TAKES_APART, None)
        if method is None or not method.__module__.startswith(OWN):
            kind = f"{type(attention).__module__}.{type(attention).__qualname__}"
            reason = f"{kind} takes it apart in a way of its own: the order of queries and gates in it is not known"
            raise UnsupportedParameterError(entry.parameter.name, reason, rank)
