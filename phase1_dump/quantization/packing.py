"""Which claimed weights are written packed, what each becomes, and what the manifest says of it.

Joins the two sources of quantization, modelopt's quantizers and Transformer Engine's parameters, to the formats of
the shared table. Knows neither files nor layouts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from shardmerge.common.architectures import Layout
from shardmerge.common.errors import UnsupportedParameterError
from shardmerge.common.manifest_facts import QuantizationFacts, Scalars
from shardmerge.common.quantization.arithmetic import module_of
from shardmerge.common.quantization.formats import KV_CACHE_TENSORS

from ..fragments.manifest import versions
from ..rectangles.holdings import Claimed
from ..sources.parameters import Parameter
from . import modelopt as modelopt_weights
from .derived import Cache, Packed, Scales
from .modelopt import Quantizers, is_quantizer, quantizers_of
from .transformer_engine import dequantized, te_class, te_format, te_parts


@dataclass(frozen=True, slots=True)
class KVCache:
    """The scales of one attention core: Hugging Face name of each tensor and its value."""

    attention: str
    algorithm: str
    scales: tuple[tuple[str, float], ...]


def is_quantized(model: nn.Module) -> bool:
    """Whether a model carries quantizers of modelopt, enabled or not. Imports nothing."""
    return any(map(is_quantizer, model.modules()))


def pack_claims(
    model: nn.Module, claimed: Sequence[Claimed], rank: int, *, dequantize: bool
) -> list[Claimed]:
    """The claims of one model chunk, each with the packed form of its weight if it has one.

    Raises UnsupportedParameterError, BadScaleError.
    """
    found = dict(quantizers_of(model, rank)) if is_quantized(model) else {}
    packed: dict[str, Packed | None] = {}
    cache, scales, done = Cache(), Scales(), list[Claimed]()
    for one in claimed:
        parameter = one.parameter
        if parameter.name in found:
            if parameter.name not in packed:  # gate and up are two parts of one weight
                packed[parameter.name] = _by_modelopt(parameter, found[parameter.name], scales, rank)
            done.append(replace(one, packed=packed[parameter.name], has_quantizer=True))
        elif te_class(parameter.data) is not None:
            done.append(_by_transformer_engine(one, cache, dequantize=dequantize))
        else:
            done.append(one)
    _require_all_claimed(found, packed, rank)
    return done


def kv_caches(model: nn.Module, claimed: Iterable[Claimed], rank: int) -> list[KVCache]:
    """Scales of the KV caches of one model chunk. Raises UnsupportedParameterError for latent attention."""
    if not is_quantized(model):
        return []
    attentions = {
        one.parameter.name.rpartition(".linear_qkv.")[0]: one.claim.tensors[0].name.rpartition(".q_proj.")[0]
        for one in claimed
        if one.claim.row.layout is Layout.QKV
    }
    return [
        _kv_cache(attentions.get(name.rpartition(".")[0]), name, algorithm, values, rank)
        for name, algorithm, values in modelopt_weights.kv_cache_of(model, rank)
    ]


def facts_of(claimed: Sequence[Claimed], caches: Sequence[KVCache]) -> QuantizationFacts | None:
    """What the manifest says: formats by module, modules without, KV caches, scalars of every shard.

    None if nothing this rank holds is quantized: then the others' facts decide.
    """
    layers: dict[str, set[str]] = defaultdict(set)
    scalars: dict[str, float] = {name: value for cache in caches for name, value in cache.scales}
    excluded, uncalibrated = set[str](), set[str]()
    for one in claimed:
        for tensor in one.claim.tensors:
            module = module_of(tensor.name)
            if one.packed is None:
                if module is not None and len(tensor.shape) > 1:
                    excluded.add(module)
                continue
            assert module is not None  # only weights are packed
            layers[one.packed.row.name].add(module)
            scalars |= {f"{module}.{suffix}": value for suffix, value in one.packed.scalars.items()}
            absent = set(one.packed.row.scalars) - set(one.packed.scalars)
            uncalibrated.update(f"{module}.{suffix}" for suffix in absent)
    if not layers and not caches:
        return None
    attentions = {cache.algorithm: list[str]() for cache in sorted(caches, key=lambda one: one.algorithm)}
    for cache in sorted(caches, key=lambda one: one.attention):
        attentions[cache.algorithm].append(cache.attention)
    names = sorted(scalars)
    return QuantizationFacts(
        layers={name: sorted(modules) for name, modules in sorted(layers.items())},
        excluded=sorted(excluded),
        kv_cache=attentions,
        scalars=Scalars(names, [scalars[name] for name in names]),
        uncalibrated=sorted(uncalibrated),
        producer=_producer(claimed, caches),
    )


def _by_modelopt(parameter: Parameter, found: Quantizers, scales: Scales, rank: int) -> Packed | None:
    row = modelopt_weights.row_of(found)
    if row is None:
        return None
    name, live = parameter.name, tuple(found.weight.shape)
    if len(live) != 2 or tuple(parameter.data.shape) != live:
        raise UnsupportedParameterError(
            name, f"a quantized weight of shape {list(live)} is not a matrix", rank
        )
    ranged = modelopt_weights.with_range(name, found, row, cut=parameter.is_cut, rank=rank)
    known = modelopt_weights.scalars(name, ranged, row, rank)
    return Packed(row, modelopt_weights.packed_parts(ranged, row, known, scales), known)


def _by_transformer_engine(one: Claimed, cache: Cache, *, dequantize: bool) -> Claimed:
    data = one.parameter.data
    if dequantize:
        return replace(one, parameter=replace(one.parameter, data=dequantized(data, cache)))
    return replace(one, packed=Packed(te_format(data), te_parts(data), {}))


def _kv_cache(
    attention: str | None, name: str, algorithm: str, values: tuple[float, float], rank: int
) -> KVCache:
    if attention is None:
        reason = (
            "its KV cache is quantized, but it is not a grouped-query attention: no reader takes such scales"
        )
        raise UnsupportedParameterError(name, reason, rank)
    names = (f"{attention}.{suffix}" for suffix in KV_CACHE_TENSORS)
    return KVCache(attention, algorithm, tuple(zip(names, values, strict=True)))


def _require_all_claimed(
    found: Mapping[str, Quantizers], packed: Mapping[str, Packed | None], rank: int
) -> None:
    for name, one in found.items():
        if one.modelopt is not None and name not in packed:
            raise UnsupportedParameterError(
                name, "it is quantized, but no claimed parameter has this name", rank
            )


def _producer(claimed: Sequence[Claimed], caches: Sequence[KVCache]) -> dict[str, str]:
    if caches or any(one.has_quantizer for one in claimed):
        return modelopt_weights.producer()
    return {"name": "shardmerge", "version": dict(versions())["shardmerge"]}
