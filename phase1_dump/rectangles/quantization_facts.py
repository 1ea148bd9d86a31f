"""Collects what the manifest says of quantization: formats of modules, KV caches, scalars, who packed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from shardmerge.common.manifest_facts import QuantizationFacts, Scalars
from shardmerge.common.quantization.arithmetic import module_of

from .claims import Claimed


@dataclass(frozen=True, slots=True)
class KVCache:
    """The scales of one attention core: Hugging Face name of each tensor and its value."""

    attention: str
    algorithm: str
    scales: tuple[tuple[str, float], ...]


def facts_of(
    claimed: Sequence[Claimed], caches: Sequence[KVCache], producer: dict[str, str]
) -> QuantizationFacts | None:
    """Return what the manifest says: formats by module, modules without one, KV caches, scalars of every shard.

    Args:
        claimed: all parameters of the rank.
        caches: all its quantized KV caches.
        producer: name and version of the program that both JSON files of the checkpoint will name.

    Returns:
        The entry `quantization`, None if nothing this rank holds is quantized: then the others' facts decide.
    """
    layers: dict[str, set[str]] = defaultdict(set)
    scalars: dict[str, float] = {name: value for cache in caches for name, value in cache.scales}
    excluded, uncalibrated = set[str](), set[str]()
    for entry in claimed:
        for tensor in entry.claim.tensors:
            module = module_of(tensor.name)
            if entry.packed is None:
                if module is not None and len(tensor.shape) > 1:
                    excluded.add(module)
                continue
            assert module is not None  # only weights are packed
            layers[entry.packed.row.name].add(module)
            scalars |= {f"{module}.{suffix}": value for suffix, value in entry.packed.scalars.items()}
            absent = set(entry.packed.row.scalars) - set(entry.packed.scalars)
            uncalibrated.update(f"{module}.{suffix}" for suffix in absent)
    if not layers and not caches:
        return None
    attentions = {cache.algorithm: list[str]() for cache in sorted(caches, key=lambda entry: entry.algorithm)}
    for cache in sorted(caches, key=lambda entry: entry.attention):
        attentions[cache.algorithm].append(cache.attention)
    names = sorted(scalars)
    return QuantizationFacts(
        layers={name: sorted(modules) for name, modules in sorted(layers.items())},
        excluded=sorted(excluded),
        kv_cache=attentions,
        scalars=Scalars(names, [scalars[name] for name in names]),
        uncalibrated=sorted(uncalibrated),
        producer=producer,
    )
