"""What all ranks together say of quantization: one structure, from which names, shapes and both JSON files follow.

Every rank reports formats of modules under global names, and every shard's scalars. Here they are united and
compared; numbers are compared, never computed.
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
from shardmerge.common.manifest import Manifest
from shardmerge.common.manifest_facts import QuantizationFacts
from shardmerge.common.quantization.arithmetic import companions_of, module_of
from shardmerge.common.quantization.formats import FORMATS, KV_CACHE_TENSORS, KV_CACHES
from shardmerge.common.rectangle import Shape

from ..ledger.names import EXPERT, grouped
from ..options import Uncalibrated

EXCLUDED = "not quantized"
NEVER = "never calibrated"
Told: TypeAlias = Sequence[tuple[int, QuantizationFacts]]  # (rank, what it says) of every quantized rank


@dataclass(frozen=True, slots=True)
class Quantization:
    """`layers`: module -> format; `kv_cache`: attention -> algorithm.

    `filled_from`: tensor that calibration never saw -> the one whose value it gets.
    """

    layers: Mapping[str, str]
    kv_cache: Mapping[str, str]
    producer: Mapping[str, str]
    filled_from: Mapping[str, str] = field(default_factory=dict)

    def tensors_of(self, name: str, shape: Shape) -> Iterator[tuple[str, Shape, str]] | None:
        """(name, shape, dtype) of what a weight is stored as, None if it is stored as it is."""
        module = module_of(name)
        if module is None or module not in self.layers:
            return None
        return companions_of(module, shape, FORMATS[self.layers[module]])

    def cache_tensors(self) -> Iterator[tuple[str, Shape, str]]:
        """(name, shape, dtype) of the scales of KV caches."""
        for attention in self.kv_cache:
            for suffix in KV_CACHE_TENSORS:
                yield f"{attention}.{suffix}", (), "F32"

    def told(self) -> list[str]:
        """What was filled in, a line for each kind and layer, for the report."""
        return [
            f"{line}: the largest of the layer, never calibrated itself"
            for line in grouped(sorted(self.filled_from))
        ]


def united(
    manifests: Sequence[Manifest], uncalibrated: Uncalibrated = "error"
) -> tuple[Quantization | None, list[ShardmergeError]]:
    """The quantization of a dump, None if it has none, and everything that is wrong with it."""
    quantized = [(one.rank, one.quantization) for one in manifests if one.quantization is not None]
    if not quantized:
        return None, []
    problems = list(_unknown(quantized))
    if problems:
        return None, problems
    layers, differing = _one_each(lambda: _modules(quantized))
    caches, cache_problems = _one_each(lambda: _caches(quantized))
    problems = [QuantizationMismatchError(*one) for of in (differing, cache_problems) for one in of.items()]
    scalars, scalar_problems = _scalars(quantized)
    problems += [*scalar_problems, *_bad_blocks(quantized), *_unmixable(set(layers.values()))]
    absent = sorted({name for _, facts in quantized for name in facts.uncalibrated or ()} - set(scalars))
    filled_from = _layer_max(absent, scalars) if uncalibrated == "layer-max" else {}
    if left := tuple(name for name in absent if name not in filled_from):
        problems.append(UncalibratedError(left, tuple(grouped(left))))
    quantized_only = {module: name for module, name in layers.items() if name != EXCLUDED}
    producer = max(
        (facts.producer or {} for _, facts in quantized), key=lambda p: (p.get("name") == "modelopt", str(p))
    )
    return Quantization(quantized_only, caches, producer, filled_from), problems


def _unknown(quantized: Told) -> Iterator[ShardmergeError]:
    """What ranks do not say, and what they say that this shardmerge does not know."""
    ranks: dict[str, list[int]] = defaultdict(list)
    for rank, facts in quantized:
        strange = [f"without {key}" for key in facts.missing]
        strange += [name for name in facts.layers or () if name not in FORMATS]
        strange += [f"KV cache {name}" for name in facts.kv_cache or () if name not in KV_CACHES]
        for name in strange:
            ranks[name].append(rank)
    for name, members in ranks.items():
        yield UnsupportedQuantizationError(name, tuple(members))


def _modules(quantized: Told) -> Iterator[tuple[str, str, int]]:
    for rank, facts in quantized:
        for name, modules in (facts.layers or {}).items():
            yield from ((module, name, rank) for module in modules)
        yield from ((module, EXCLUDED, rank) for module in facts.excluded or ())


def _caches(quantized: Told) -> Iterator[tuple[str, str, int]]:
    for rank, facts in quantized:
        for algorithm, attentions in (facts.kv_cache or {}).items():
            yield from ((attention, algorithm, rank) for attention in attentions)


def _one_each(
    told: Callable[[], Iterable[tuple[str, Any, int]]], wrong: Callable[[Any], bool] = lambda _: False
) -> tuple[dict[str, Any], dict[str, dict[Any, tuple[int, ...]]]]:
    """(name -> the first value that is told of it, all values and their ranks of names with several or a wrong one).

    Ranks are looked for only where something is not right: ten thousand of them tell millions of values.
    """
    first: dict[str, Any] = {}
    several = set()
    for name, value, _ in told():
        if first.setdefault(name, value) != value:
            several.add(name)
    several |= {name for name, value in first.items() if wrong(value)}
    ranks: dict[str, dict[Any, list[int]]] = defaultdict(lambda: defaultdict(list))
    for name, value, rank in told() if several else ():
        if name in several:
            ranks[name][value].append(rank)
    behind = {name: {value: tuple(of) for value, of in ranks[name].items()} for name in sorted(ranks)}
    return dict(sorted(first.items())), behind


def _scalars(quantized: Told) -> tuple[dict[str, float], list[ShardmergeError]]:
    """Name -> value, the same on every shard, and what is not."""
    first, strange = _one_each(lambda: _told_scalars(quantized), _is_bad)
    problems: list[ShardmergeError] = []
    for name, values in strange.items():
        if len(values) > 1:
            problems.append(ScalarMismatchError(name, {str(value): of for value, of in values.items()}))
        problems += [BadScaleError(name, str(value), of) for value, of in values.items() if _is_bad(value)]
    return {
        name: v for name, v in first.items() if v != NEVER and NEVER not in strange.get(name, ())
    }, problems


def _told_scalars(quantized: Told) -> Iterator[tuple[str, Any, int]]:
    for rank, facts in quantized:
        if facts.scalars is not None:
            pairs = zip(facts.scalars.names, facts.scalars.values, strict=True)
            yield from ((name, value, rank) for name, value in pairs)
        yield from ((name, NEVER, rank) for name in facts.uncalibrated or ())


def _is_bad(value: Any) -> bool:
    if value == NEVER:
        return False
    return not 0 < value < inf


def _bad_blocks(quantized: Told) -> Iterator[ShardmergeError]:
    for rank, facts in quantized:
        for name, count in sorted((facts.bad_scales or {}).items()):
            yield BadScaleError(name, f"zero, negative or not finite in {count:,} elements", (rank,))


def _unmixable(formats: set[str]) -> Iterator[ShardmergeError]:
    """DeepSeek's declaration names one format only, and modelopt's mixed declaration cannot express its blocks."""
    quantized = sorted(formats - {EXCLUDED})
    if len(quantized) > 1 and not all(FORMATS[name].mixes for name in quantized):
        yield UnsupportedQuantizationError(f"a mixture of {' and '.join(quantized)}", ())


def _layer_max(absent: Iterable[str], scalars: Mapping[str, float]) -> dict[str, str]:
    """Each absent scalar of an expert -> the tensor of its layer and projection with the largest value."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in scalars:
        alike[_of_any_expert(name)].append(name)
    found = {}
    for name in absent:
        if EXPERT.search(name) and (peers := alike.get(_of_any_expert(name))):
            found[name] = max(peers, key=lambda peer: (scalars[peer], peer))
    return found


def _of_any_expert(name: str) -> str:
    return re.sub(EXPERT, ".experts.*.", name)
