"""What all ranks together say of quantization: one structure, from which names, shapes and both JSON files follow.

Every rank reports formats of modules under global names, and every shard's scalars. Here they are united and
compared; numbers are compared, never computed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from shardmerge.common.errors import (
    BadScaleError,
    QuantizationMismatchError,
    ScalarMismatchError,
    ShardmergeError,
    UncalibratedError,
    UnsupportedQuantizationError,
)
from shardmerge.common.manifest import Manifest
from shardmerge.common.quantization.arithmetic import companions_of, module_of
from shardmerge.common.quantization.formats import BLOCK_FP8, FORMATS, KV_CACHE_ALGORITHMS, KV_CACHE_TENSORS
from shardmerge.common.rectangle import Shape

from ..ledger.names import EXPERT, grouped
from ..options import Uncalibrated

EXCLUDED = "not quantized"
NEVER = "never calibrated"


@dataclass(frozen=True, slots=True)
class Quantization:
    """`layers`: module -> format; `kv_cache`: attention -> algorithm.

    `filled`: tensor that calibration never saw -> the one whose value it gets.
    """

    layers: Mapping[str, str]
    kv_cache: Mapping[str, str]
    producer: Mapping[str, str]
    filled: Mapping[str, str] = field(default_factory=dict)

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
            for line in grouped(sorted(self.filled))
        ]


def united(
    manifests: Sequence[Manifest], uncalibrated: Uncalibrated = "error"
) -> tuple[Quantization | None, list[ShardmergeError]]:
    """The quantization of a dump, None if it has none, and everything that is wrong with it."""
    quantized = [one for one in manifests if one.quantization]
    if not quantized:
        return None, []
    problems = list(_unknown(quantized))
    if problems:
        return None, problems
    layers, differing = _one_each(lambda: _modules(quantized))
    caches, cache_problems = _one_each(lambda: _caches(quantized))
    problems = [QuantizationMismatchError(*one) for of in (differing, cache_problems) for one in of.items()]
    scalars, scalar_problems = _scalars(quantized)
    problems += [*scalar_problems, *_bad_blocks(quantized), *_mixed_with_blocks(set(layers.values()))]
    absent = sorted({name for one in quantized for name in one.quantization["uncalibrated"]} - set(scalars))
    filled = _layer_max(absent, scalars) if uncalibrated == "layer-max" else {}
    if left := tuple(name for name in absent if name not in filled):
        problems.append(UncalibratedError(left, tuple(grouped(left))))
    quantized_only = {module: name for module, name in layers.items() if name != EXCLUDED}
    producer = max(
        (one.quantization["producer"] for one in quantized), key=lambda p: (p["name"] == "modelopt", str(p))
    )
    return Quantization(quantized_only, caches, producer, filled), problems


def _unknown(manifests: Iterable[Manifest]) -> Iterator[ShardmergeError]:
    ranks: dict[str, list[int]] = defaultdict(list)
    for one in manifests:
        told = one.quantization
        wanted = ("layers", "excluded", "kv_cache", "scalars", "uncalibrated", "producer")
        strange = [f"without {key}" for key in wanted if key not in told]
        strange += [name for name in told.get("layers", {}) if name not in FORMATS]
        strange += [
            f"KV cache {name}" for name in told.get("kv_cache", {}) if name not in KV_CACHE_ALGORITHMS
        ]
        for name in strange:
            ranks[name].append(one.rank)
    for name, of in ranks.items():
        yield UnsupportedQuantizationError(name, tuple(of))


def _modules(manifests: Iterable[Manifest]) -> Iterator[tuple[str, str, int]]:
    for one in manifests:
        for name, modules in one.quantization["layers"].items():
            yield from ((module, name, one.rank) for module in modules)
        yield from ((module, EXCLUDED, one.rank) for module in one.quantization["excluded"])


def _caches(manifests: Iterable[Manifest]) -> Iterator[tuple[str, str, int]]:
    for one in manifests:
        for algorithm, attentions in one.quantization["kv_cache"].items():
            yield from ((attention, algorithm, one.rank) for attention in attentions)


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


def _scalars(manifests: Iterable[Manifest]) -> tuple[dict[str, float], list[ShardmergeError]]:
    """Name -> value, the same on every shard, and what is not."""
    first, strange = _one_each(lambda: _told_scalars(manifests), _is_bad)
    problems: list[ShardmergeError] = []
    for name, values in strange.items():
        if len(values) > 1:
            problems.append(ScalarMismatchError(name, {str(value): of for value, of in values.items()}))
        problems += [BadScaleError(name, str(value), of) for value, of in values.items() if _is_bad(value)]
    return {
        name: v for name, v in first.items() if v != NEVER and NEVER not in strange.get(name, ())
    }, problems


def _told_scalars(manifests: Iterable[Manifest]) -> Iterator[tuple[str, Any, int]]:
    for one in manifests:
        told, rank = one.quantization["scalars"], one.rank
        yield from ((name, value, rank) for name, value in zip(told["names"], told["values"], strict=True))
        yield from ((name, NEVER, rank) for name in one.quantization["uncalibrated"])


def _is_bad(value: Any) -> bool:
    if value == NEVER:
        return False
    return not (isinstance(value, int | float) and isfinite(value) and value > 0)


def _bad_blocks(manifests: Iterable[Manifest]) -> Iterator[ShardmergeError]:
    for one in manifests:
        for name, count in sorted(one.quantization.get("bad_scales", {}).items()):
            yield BadScaleError(name, f"zero, negative or not finite in {count:,} elements", (one.rank,))


def _mixed_with_blocks(formats: set[str]) -> Iterator[ShardmergeError]:
    """DeepSeek's form knows one format; modelopt's mixtures know no 128x128 blocks."""
    quantized = sorted(formats - {EXCLUDED})
    if BLOCK_FP8.name in quantized and len(quantized) > 1:
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
