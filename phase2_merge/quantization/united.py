"""What all ranks together say of quantization: one structure, from which tensors and JSON files follow.

Every rank reports formats of modules under global names, and the scalars of every shard. Decides whether they agree.
Numbers are compared, never computed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, TypeAlias

from shardmerge.common.errors import (
    BadScaleError,
    QuantizationMismatchError,
    ScalarMismatchError,
    ShardmergeError,
    UncalibratedError,
    UnsupportedQuantizationError,
)
from shardmerge.common.errors.wording import counted
from shardmerge.common.manifest import Manifest
from shardmerge.common.manifest_facts import QuantizationFacts
from shardmerge.common.quantization.arithmetic import companions_of, module_of
from shardmerge.common.quantization.formats import FORMATS, KV_CACHE_TENSORS, KV_CACHES
from shardmerge.common.rectangle import Shape

from ..ledger.names import EXPERT, grouped
from ..options import Uncalibrated
from . import joined

EXCLUDED = "not quantized"
NEVER = "never calibrated"
QuantizedRanks: TypeAlias = Sequence[tuple[int, QuantizationFacts]]  # (rank, what it says of quantization)


@dataclass(frozen=True, slots=True)
class Quantization:
    """The quantization of a model.

    Attributes:
        layers: Module -> format.
        kv_cache: Attention -> algorithm.
        producer: Who packed the weights: name and version.
        filled_from: Tensor that calibration never saw -> the one whose value it gets.
    """

    layers: Mapping[str, str]
    kv_cache: Mapping[str, str]
    producer: Mapping[str, str]
    filled_from: Mapping[str, str] = field(default_factory=dict)

    def tensors_of(self, name: str, shape: Shape) -> Iterator[tuple[str, Shape, str]] | None:
        """Return (name, shape, dtype) of what a weight is stored as, None if it is stored as it is."""
        module = module_of(name)
        if module is None or module not in self.layers:
            return None
        return companions_of(module, shape, FORMATS[self.layers[module]])

    def cache_tensors(self) -> Iterator[tuple[str, Shape, str]]:
        """Yield (name, shape, dtype) of the scales of KV caches."""
        for attention in self.kv_cache:
            for suffix in KV_CACHE_TENSORS:
                yield f"{attention}.{suffix}", (), "F32"

    def filled_in(self) -> list[str]:
        """Return a warning for each kind and layer of tensors that were filled in."""
        return [
            f"{line}: the largest of the layer, never calibrated itself"
            for line in grouped(sorted(self.filled_from))
        ]


def united(
    manifests: Sequence[Manifest], uncalibrated: Uncalibrated = "error"
) -> tuple[Quantization | None, list[ShardmergeError]]:
    """Unite what all ranks say. Returns the quantization, None if there is none, and everything that is wrong."""
    quantized = [
        (manifest.rank, manifest.quantization) for manifest in manifests if manifest.quantization is not None
    ]
    if not quantized:
        return None, []
    problems = list(_unknown(quantized))
    if problems:
        return None, problems
    layers, differing = _one_each(lambda: _modules(quantized))
    caches, cache_problems = _one_each(lambda: _caches(quantized))
    disagreements = (*differing.items(), *cache_problems.items())
    problems = [QuantizationMismatchError(name, by_value) for name, by_value in disagreements]
    scalars, scalar_problems = _scalars(quantized)
    problems += [*scalar_problems, *_bad_blocks(quantized), *_unmixable(set(layers.values()))]
    problems += joined.differences(layers, scalars)
    absent = sorted({name for _, facts in quantized for name in facts.uncalibrated or ()} - set(scalars))
    filled_from = _layer_max(absent, scalars) if uncalibrated == "layer-max" else {}
    if unfilled := tuple(name for name in absent if name not in filled_from):
        problems.append(UncalibratedError(unfilled, tuple(grouped(unfilled))))
    quantized_only = {module: name for module, name in layers.items() if name != EXCLUDED}
    producer = max(
        (facts.producer or {} for _, facts in quantized), key=lambda p: (p.get("name") == "modelopt", str(p))
    )
    return Quantization(quantized_only, caches, producer, filled_from), problems


def _unknown(quantized: QuantizedRanks) -> Iterator[ShardmergeError]:
    """Yield what ranks do not say, and what they say that this shardmerge does not know."""
    ranks: dict[str, list[int]] = defaultdict(list)
    for rank, facts in quantized:
        strange = [f"without {key}" for key in facts.missing]
        strange += [name for name in facts.layers or () if name not in FORMATS]
        strange += [f"KV cache {name}" for name in facts.kv_cache or () if name not in KV_CACHES]
        for name in strange:
            ranks[name].append(rank)
    for name, members in ranks.items():
        yield UnsupportedQuantizationError(name, tuple(members))


def _modules(quantized: QuantizedRanks) -> Iterator[tuple[str, str, int]]:
    """Yield (module, its format or EXCLUDED, rank)."""
    for rank, facts in quantized:
        for name, modules in (facts.layers or {}).items():
            yield from ((module, name, rank) for module in modules)
        yield from ((module, EXCLUDED, rank) for module in facts.excluded or ())


def _caches(quantized: QuantizedRanks) -> Iterator[tuple[str, str, int]]:
    """Yield (attention, algorithm, rank)."""
    for rank, facts in quantized:
        for algorithm, attentions in (facts.kv_cache or {}).items():
            yield from ((attention, algorithm, rank) for attention in attentions)


def _one_each(
    statements: Callable[[], Iterable[tuple[str, Any, int]]], wrong: Callable[[Any], bool] = lambda _: False
) -> tuple[dict[str, Any], dict[str, dict[Any, tuple[int, ...]]]]:
    """Find the one value that all ranks state of each name, where `statements` yields (name, value, rank).

    Returns the first value of each name, and for names with several values or a wrong one all values with their ranks.
    Ranks are looked for only where something is not right: ten thousand of them state millions of values.
    """
    first: dict[str, Any] = {}
    several = set()
    for name, value, _ in statements():
        if first.setdefault(name, value) != value:
            several.add(name)
    several |= {name for name, value in first.items() if wrong(value)}
    ranks: dict[str, dict[Any, list[int]]] = defaultdict(lambda: defaultdict(list))
    for name, value, rank in statements() if several else ():
        if name in several:
            ranks[name][value].append(rank)
    by_value = {
        name: {value: tuple(members) for value, members in ranks[name].items()} for name in sorted(ranks)
    }
    return dict(sorted(first.items())), by_value


def _scalars(quantized: QuantizedRanks) -> tuple[dict[str, float], list[ShardmergeError]]:
    """Return name -> value of scalars that are the same on every shard, and problems of those that are not."""
    first, strange = _one_each(lambda: _stated_scalars(quantized), _is_bad)
    problems: list[ShardmergeError] = []
    for name, values in strange.items():
        if len(values) > 1:
            problems.append(ScalarMismatchError(name, {str(value): ranks for value, ranks in values.items()}))
        problems += [
            BadScaleError(name, str(value), ranks) for value, ranks in values.items() if _is_bad(value)
        ]
    return {
        name: value for name, value in first.items() if value != NEVER and NEVER not in strange.get(name, ())
    }, problems


def _stated_scalars(quantized: QuantizedRanks) -> Iterator[tuple[str, Any, int]]:
    """Yield (name, value, rank) of all scalars, NEVER for those that calibration never saw."""
    for rank, facts in quantized:
        if facts.scalars is not None:
            pairs = zip(facts.scalars.names, facts.scalars.values, strict=True)
            yield from ((name, value, rank) for name, value in pairs)
        yield from ((name, NEVER, rank) for name in facts.uncalibrated or ())


def _is_bad(value: Any) -> bool:
    if value == NEVER:
        return False
    return not 0 < value < inf


def _bad_blocks(quantized: QuantizedRanks) -> Iterator[ShardmergeError]:
    for rank, facts in quantized:
        for name, count in sorted((facts.bad_scales or {}).items()):
            yield BadScaleError(name, f"zero, negative or not finite in {counted(count, 'element')}", (rank,))


def _unmixable(formats: set[str]) -> Iterator[ShardmergeError]:
    """Yield a problem for formats that no file can declare together.

    DeepSeek's declaration names one format only, and modelopt's mixed declaration cannot express its blocks.
    """
    quantized = sorted(formats - {EXCLUDED})
    if len(quantized) > 1 and not all(FORMATS[name].mixes for name in quantized):
        yield UnsupportedQuantizationError(f"a mixture of {' and '.join(quantized)}", ())


def _layer_max(absent: Iterable[str], scalars: Mapping[str, float]) -> dict[str, str]:
    """Return for each absent scalar of an expert the tensor of its layer and projection with the largest value."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in scalars:
        alike[_of_any_expert(name)].append(name)
    filled_from = {}
    for name in absent:
        if EXPERT.search(name) and (peers := alike.get(_of_any_expert(name))):
            filled_from[name] = max(peers, key=lambda peer: (scalars[peer], peer))
    return filled_from


def _of_any_expert(name: str) -> str:
    return re.sub(EXPERT, ".experts.*.", name)
