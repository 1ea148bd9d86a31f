"""Whether the tensors of a Hugging Face directory are quantized as it declares, whoever wrote it.

Names, dtypes and shapes of headers against one declaration; no byte of a tensor is read. A weight is a matrix
called "weight"; packed experts that share a tensor of three dimensions are counted and left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from shardmerge.common.errors import (
    MissingScaleError,
    ShardmergeError,
    StoredOtherwiseError,
    UndeclaredScaleError,
)
from shardmerge.common.quantization.arithmetic import SUFFIX, companions_of, module_of
from shardmerge.common.quantization.formats import FORMATS, KV_CACHE_TENSORS, MIXED_PRECISION
from shardmerge.common.quantization.rows import Companion, Format
from shardmerge.common.rectangle import Shape
from shardmerge.common.reference import PLAIN_FLOATS
from shardmerge.common.safetensors_header import Entry

from ..ledger.names import grouped
from .declaration import Declaration

SCALES = sorted({one.suffix for row in FORMATS.values() for one in row.companions if one.is_scale})
_SCALE = re.compile(rf"(.+)\.({'|'.join(SCALES)})")
_CACHE = re.compile(rf"(.+)\.({'|'.join(map(re.escape, KV_CACHE_TENSORS))})")
_NUMBER = re.compile(r"\.\d+(?=\.)")


@dataclass(slots=True)
class StoredAs:
    """How the tensors of a directory are stored, and what is wrong with that.

    `accounted`: names of scales, which no table of an architecture lists. `plain_shapes`: packed weight -> [N, K].
    """

    problems: list[ShardmergeError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    accounted: set[str] = field(default_factory=set)
    plain_shapes: dict[str, Shape] = field(default_factory=dict)


def judge(declared: Declaration, held: Mapping[str, Entry]) -> StoredAs:
    """Compare every weight and every scale with what is declared of its module."""
    stored = StoredAs()
    stored.accounted = {name for name in held if _SCALE.fullmatch(name) or _CACHE.fullmatch(name)}
    if declared.unknown:
        stored.warnings.append(
            f"scales were not compared: {declared.file} says {', '.join(declared.unknown)}, which no row describes"
        )
        return stored
    weights = {module: entry for name, entry in held.items() if (module := module_of(name)) is not None}
    stacked = [entry.name for entry in weights.values() if _is_packed(entry) and len(entry.shape) != 2]
    if stacked:
        stored.warnings.append(f"scales were not compared: {len(stacked):,} packed weights are not matrices")
    matrices = {module: entry for module, entry in weights.items() if len(entry.shape) == 2}
    _judge_matrices(declared, matrices, held, stored)
    stored.problems += _undeclared(declared, matrices, held, {name.removesuffix(SUFFIX) for name in stacked})
    _judge_caches(declared, weights, held, stored)
    if absent := sorted(set(declared.layers) - set(weights)):
        stored.warnings += [f"{declared.file} lists, but no tensor is: {line}" for line in grouped(absent)]
    return stored


def _is_packed(entry: Entry) -> bool:
    return entry.dtype not in PLAIN_FLOATS


def _judge_matrices(
    declared: Declaration, matrices: Mapping[str, Entry], held: Mapping[str, Entry], stored: StoredAs
) -> None:
    """Compare packed matrices with their format, and plain ones with the others of their kind."""
    packed = {module for module, entry in matrices.items() if _is_packed(entry)}
    kinds = {_kind(module) for module in packed}
    plain: list[str] = []
    for module, entry in matrices.items():
        row = declared.format_of(module)
        if module in packed:
            stored.problems += _packed_problems(declared, module, entry, row, held, stored)
        elif row is not None and (declared.algorithm == MIXED_PRECISION or _kind(module) in kinds):
            stored.problems.append(_otherwise(declared, module, entry, row.weight.dtype))
        elif row is not None and "embed" not in module:
            plain.append(entry.name)
    if plain and not packed:
        what = f"no weight is {declared.algorithm}, {len(plain):,} are not"
        stored.problems.append(
            StoredOtherwiseError("every weight", "storage", "plain", "packed", f"{declared.file}: {what}")
        )
    elif plain:
        what = f"{declared.file} says {declared.algorithm} of all but what it excludes, but stored plain is"
        stored.warnings += [f"{what} {line}" for line in grouped(plain)]


def _packed_problems(
    declared: Declaration,
    module: str,
    entry: Entry,
    row: Format | None,
    held: Mapping[str, Entry],
    stored: StoredAs,
) -> Iterator[ShardmergeError]:
    """Yield what is wrong with a packed weight: whether it is declared so, and has every scale in its shape."""
    if row is None or entry.dtype != row.weight.dtype:
        yield _otherwise(declared, module, entry, "plain" if row is None else row.weight.dtype)
        return
    shape = _unpacked(entry.shape, row.weight)
    stored.plain_shapes[entry.name] = shape
    by_suffix = {companion.suffix: companion for companion in row.companions}
    for name, want, dtype in companions_of(module, shape, row):
        there = held.get(name)
        if there is None:
            yield MissingScaleError(name, want, row.name, declared.file)
        elif there.shape != want and not (want == () and there.shape == (1,)):
            said = declared.says_of(module)
            yield StoredOtherwiseError(name, "shape", str(list(there.shape)), str(list(want)), said)
        elif there.dtype != dtype and by_suffix[name.rpartition(".")[2]].divisors is not None:
            yield StoredOtherwiseError(name, "dtype", there.dtype, dtype, declared.says_of(module))


def _undeclared(
    declared: Declaration, matrices: Mapping[str, Entry], held: Mapping[str, Entry], stacked: set[str]
) -> Iterator[ShardmergeError]:
    """Yield scales of what is not quantized, or not in a format that has them."""
    for name in held:
        parts = _SCALE.fullmatch(name)
        if parts is None or parts[1] in stacked:
            continue
        module, row = parts[1], declared.format_of(parts[1])
        if row is None:
            yield UndeclaredScaleError(name, declared.says_of(module))
        elif module not in matrices:
            yield UndeclaredScaleError(name, f"there is no {module}{SUFFIX}")
        elif parts[2] not in {one.suffix for one in row.companions}:
            yield UndeclaredScaleError(name, f"{declared.says_of(module)}, which has none such")


def _judge_caches(
    declared: Declaration, weights: Mapping[str, Entry], held: Mapping[str, Entry], stored: StoredAs
) -> None:
    """Compare the scales of KV caches: all or none are there. Without any, readers take 1."""
    scales = {name for name in held if _CACHE.fullmatch(name)}
    if declared.kv_cache is None:
        stored.problems += [
            UndeclaredScaleError(name, f"{declared.file} declares no KV cache") for name in sorted(scales)
        ]
        return
    attentions = sorted(module.removesuffix(".k_proj") for module in weights if module.endswith(".k_proj"))
    wanted = [f"{attention}.{suffix}" for attention in attentions for suffix in KV_CACHE_TENSORS]
    if not scales:
        what = f"{declared.file} declares a KV cache of {declared.kv_cache}, but it has no scale"
        stored.warnings.append(f"{what}: readers take 1")
        return
    for name in wanted:
        if name not in scales:
            stored.problems.append(
                MissingScaleError(name, (), f"KV cache {declared.kv_cache}", declared.file)
            )


def _otherwise(declared: Declaration, module: str, entry: Entry, expected: str) -> ShardmergeError:
    return StoredOtherwiseError(entry.name, "dtype", entry.dtype, expected, declared.says_of(module))


def _unpacked(shape: Shape, weight: Companion) -> Shape:
    """Return [N, K] of a weight that is stored as `shape`."""
    divisors = weight.divisors or (1, 1)
    return tuple(size * by for size, by in zip(shape, divisors, strict=True))


def _kind(module: str) -> str:
    """Return the module without its numbers, so that it is the same for all layers and experts."""
    return _NUMBER.sub(".*", f"{module}.")
