"""What only the module of a parameter shows: whether a norm is stored minus one, and other orders of fused projections.

A model may store the weights of norms minus one, and so may the checkpoint that readers take: the table says what they
add to each norm, its own module what Megatron adds. Where these differ, 1 is added or subtracted, in float32, and the
sum is rounded once to the dtype that is written: of bfloat16 that costs bits of whatever is not a multiple of 1/128,
which no reader of bfloat16 could use, and is told. Attention with an output gate is refused if its class takes the
projection apart in another way than megatron-core, as key and shape are the same.
Source: megatron/core/transformer/attention.py (queries of a group, then their gates); mcore-bridge,
model/modules/gated_self_attention.py (each query followed by its gate) and model/gpts/qwen3_next_gdn.py (the norm of a
DeltaNet is stored as it is); transformer_engine, pytorch/module/{rmsnorm,layernorm_linear}.py;
megatron/core/{fusions/fused_layer_norm,transformer/torch_norm,ssm/mamba_mixer}.py.
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
# classes that add nothing to their weight, whatever the model's config says, by module and name
ADD_NOTHING = {
    ("torch.nn.modules.normalization", "LayerNorm"),
    ("torch.nn.modules.normalization", "RMSNorm"),
    ("megatron.core.ssm.mamba_mixer", "ExtendedRMSNorm"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Shifted:
    """A tensor of which `by` more than each element is read, computed in float32."""

    tensor: torch.Tensor
    by: int

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

    def detach(self) -> Shifted:
        return self

    def __getitem__(self, box: tuple[slice, ...]) -> torch.Tensor:
        """Return the elements of a box of slices."""
        return self.tensor.detach()[box].float() + self.by


def norms_as_read(
    model: nn.Module, claimed: Iterable[Claimed], *, centred: bool, rank: int
) -> Iterator[Claimed]:
    """Yield claims with the weights of norms as readers of the checkpoint take them.

    Args:
        model: the unwrapped chunk.
        claimed: its parameters.
        centred: whether readers add 1 to the weights of norms, but for those whose row says otherwise.
        rank: for messages.

    Raises:
        UnsupportedParameterError: nobody says how a norm is stored, and the model's config differs from its readers.
    """
    modules = dict(model.named_modules())
    for entry in claimed:
        if not entry.parameter.is_weight_of_norm:
            yield entry
            continue
        module = modules.get(entry.parameter.name.rpartition(".")[0], model)
        added, own = _added(module, model)
        by = added - int(centred and not entry.claim.row.plain_norm)
        if by and not own:
            kind = f"{type(module).__module__}.{type(module).__qualname__}"
            says = f"the model's config says layernorm_zero_centered_gamma={bool(added)}"
            readers = "add one to it" if by < 0 else "add nothing to it"
            reason = f"{kind} does not say whether it adds one to its weight, {says}, and readers {readers}"
            raise UnsupportedParameterError(entry.parameter.name, reason, rank)
        yield _shifted(entry, by) if by else entry


def _shifted(entry: Claimed, by: int) -> Claimed:
    return replace(entry, parameter=replace(entry.parameter, data=Shifted(entry.parameter.data, by)))


def _added(module: nn.Module, model: nn.Module) -> tuple[int, bool]:
    """Return what a norm adds to its weight, and whether it says so itself, rather than its config or the model's."""
    own: Any = getattr(module, "zero_centered_gamma", None)
    if own is not None:
        return int(bool(own)), True
    if (type(module).__module__, type(module).__qualname__) in ADD_NOTHING:
        return 0, True
    config: Any = getattr(module, "config", None) or model.config
    return int(bool(config.layernorm_zero_centered_gamma)), False


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
