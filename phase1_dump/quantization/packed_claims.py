"""Decides which claimed weights are written packed, and what each becomes.

Joins the two origins of quantization, modelopt's quantizers and Transformer Engine's parameters, to the formats of
the shared table. Must not know files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from shardmerge.common.architectures.keys import is_mtp
from shardmerge.common.errors import UnsupportedParameterError
from shardmerge.common.quantization.formats import KV_CACHE_TENSORS

from ..rectangles.claims import Claimed
from ..rectangles.layouts import LAYOUTS
from ..rectangles.packed_pieces import Packed
from ..rectangles.parameter import Parameter
from ..rectangles.quantization_facts import KVCache
from . import modelopt as modelopt_weights
from .derived import Cache, Scales
from .modelopt import Quantizers, is_quantizer, quantizers_of
from .transformer_engine import dequantized, te_class, te_format, te_parts

# Ends of keys of a DeltaNet's gates, a row for each head: published checkpoints hold them plain. Megatron has them in
# one weight with queries, keys and values, so that a recipe cannot name them.
# Source: modelopt/torch/export/unified_export_megatron.py (`_gated_delta_net_slicing`)
GATES = (".in_proj.weight.beta", ".in_proj.weight.alpha")


def is_quantized(model: nn.Module) -> bool:
    """Whether a model carries quantizers of modelopt, enabled or not. Nothing is imported for that."""
    return any(map(is_quantizer, model.modules()))


def pack_claims(
    model: nn.Module, claimed: Sequence[Claimed], rank: int, *, dequantize: bool
) -> list[Claimed]:
    """Give each claim of one model chunk the packed form of its weight, if it has one.

    Args:
        model: the unwrapped chunk.
        claimed: its parameters.
        rank: for messages.
        dequantize: write quantized parameters of Transformer Engine in the precision they stand for.

    Returns:
        The same claims, in their order.

    Raises:
        UnsupportedParameterError: a weight is quantized in a way that cannot be written.
        BadScaleError: a calibrated range cannot be a scale.
    """
    quantizers = dict(quantizers_of(model, rank)) if is_quantized(model) else {}
    packed: dict[str, Packed | None] = {}
    cache, scales, done = Cache(), Scales(), list[Claimed]()
    for entry in claimed:
        parameter = entry.parameter
        if parameter.name in quantizers:
            if parameter.name not in packed:  # gate and up are two parts of one weight
                packed[parameter.name] = packed_of(parameter, quantizers[parameter.name], scales, rank)
            own = None if parameter.key.endswith(GATES) else packed[parameter.name]
            done.append(replace(entry, packed=own, has_quantizer=True))
        elif te_class(parameter.data) is not None:
            plain = dequantize or parameter.key.endswith(GATES)
            done.append(_by_transformer_engine(entry, cache, dequantize=plain))
        else:
            done.append(entry)
    _require_all_claimed(quantizers, packed, rank)
    return done


def kv_caches(model: nn.Module, claimed: Iterable[Claimed], rank: int) -> list[KVCache]:
    """Return the scales of the KV caches of one model chunk.

    Args:
        model: the unwrapped chunk.
        claimed: its parameters; they give an attention its Hugging Face name.
        rank: for messages.

    Returns:
        One entry for each attention whose cache is quantized.

    Raises:
        UnsupportedParameterError: the cache is one of latent attention.
    """
    if not is_quantized(model):
        return []
    attentions = attention_names((entry.parameter.name, entry) for entry in claimed)
    return [
        kv_cache(attentions.get(name.rpartition(".")[0]), name, algorithm, values, rank)
        for name, algorithm, values in modelopt_weights.kv_cache_of(model, rank)
        if not is_mtp(name) or name.rpartition(".")[0] in attentions  # else it is left out
    ]


def attention_names(named: Iterable[tuple[str, Claimed]]) -> dict[str, str]:
    """Return the Hugging Face name of each attention with keys and values, by what Megatron calls it.

    Args:
        named: parameters, each with the name or key that modules are called after.
    """
    return {
        name.rpartition(".linear_qkv.")[0]: entry.claim.tensors[0].name.rpartition(".q_proj.")[0]
        for name, entry in named
        if LAYOUTS[entry.claim.row.layout].is_attention
    }


def packed_of(parameter: Parameter, quantizers: Quantizers, scales: Scales, rank: int) -> Packed | None:
    """Pack a weight that has quantizers of modelopt.

    Args:
        parameter: the weight.
        quantizers: its quantizers.
        scales: shares block scales among the tensors of the rank.
        rank: for messages.

    Returns:
        The packed form, None if the quantizers are off.

    Raises:
        UnsupportedParameterError: the weight is not a matrix, or has no range.
        BadScaleError: a calibrated range cannot be a scale.
    """
    row = modelopt_weights.row_of(quantizers)
    if row is None:
        return None
    name, live = parameter.name, tuple(quantizers.weight.shape)
    if len(live) != 2 or parameter.live_shape != live:
        raise UnsupportedParameterError(
            name, f"a quantized weight of shape {list(live)} is not a matrix", rank
        )
    ranged = modelopt_weights.with_range(name, quantizers, row, cut=parameter.is_cut, rank=rank)
    known = modelopt_weights.scalars(name, ranged, row, rank)
    return Packed(row, modelopt_weights.packed_parts(ranged, row, known, scales), known)


def _by_transformer_engine(entry: Claimed, cache: Cache, *, dequantize: bool) -> Claimed:
    data = entry.parameter.data
    if dequantize:
        return replace(entry, parameter=replace(entry.parameter, data=dequantized(data, cache)))
    return replace(entry, packed=Packed(te_format(data), te_parts(data), {}))


def kv_cache(
    attention: str | None, name: str, algorithm: str, values: tuple[float, float], rank: int
) -> KVCache:
    """Name the scales of a quantized KV cache.

    Args:
        attention: Hugging Face name of its attention, None if it has none with keys and values.
        name: of the attention core, for messages.
        algorithm: as modelopt calls it.
        values: the scales of keys and of values.
        rank: for messages.

    Returns:
        What is written of it.

    Raises:
        UnsupportedParameterError: there is no such attention.
    """
    if attention is None:
        reason = (
            "its KV cache is quantized, but it is not a grouped-query attention with a projection of keys and one of "
            "values: no reader takes such scales"
        )
        raise UnsupportedParameterError(name, reason, rank)
    names = (f"{attention}.{suffix}" for suffix in KV_CACHE_TENSORS)
    return KVCache(attention, algorithm, tuple(zip(names, values, strict=True)))


def _require_all_claimed(
    quantizers: Mapping[str, Quantizers], packed: Mapping[str, Packed | None], rank: int
) -> None:
    for name, own in quantizers.items():
        if own.modelopt is not None and name not in packed:
            raise UnsupportedParameterError(
                name, "it is quantized, but no claimed parameter has this name", rank
            )
