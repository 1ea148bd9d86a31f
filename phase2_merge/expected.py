"""Which tensors the checkpoint must hold, with which shape and dtype: architecture table x config.json, and the
reference's headers where it holds weights. Decided before any rectangle is looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardmerge.common.architectures import Blueprint
from shardmerge.common.errors import MismatchError
from shardmerge.common.reference import Reference, ReferenceTensor

from .quantization import Quantization
from .rows import IntArray

TABLE = "config.json with the table of {}"
REFERENCE = "the reference checkpoint"
GRAFTED = "--graft"
QUANTIZED = "the quantization of the model"
MANY = 10_000  # tensors that may be missing by name


class ExpectedTensor(NamedTuple):
    """One tensor. `dtype` None: any, as long as its rectangles agree. There are millions: see `Tensor` of a table."""

    name: str
    shape: tuple[int, ...]
    dtype: str | None
    required_by: str


def expected_tensors(
    blueprint: Blueprint,
    reference: Reference,
    facts: dict[str, Any],
    quantization: Quantization | None = None,
    grafted: Mapping[str, ReferenceTensor] | None = None,
) -> list[ExpectedTensor]:
    """Every tensor of a complete checkpoint, in the order of layers; last what only the reference lists or gives.

    A quantized reference says nothing about names and dtypes of an unquantized checkpoint, so only the table counts.
    """
    table = TABLE.format(blueprint.architecture.name)
    plain = "quantization_config" not in reference.config
    dtype_of = _dtypes(reference, facts)
    found: dict[str, ExpectedTensor] = {}
    for name, shape, float32 in blueprint.tensors():
        stored = None if quantization is None else quantization.tensors_of(name, shape)
        if stored is None:
            found[name] = ExpectedTensor(name, shape, dtype_of(name, float32), table)
        else:
            found |= {name: ExpectedTensor(name, shape, dtype, QUANTIZED) for name, shape, dtype in stored}
    for name, shape, dtype in quantization.cache_tensors() if quantization else ():
        found[name] = ExpectedTensor(name, shape, dtype, QUANTIZED)
    if plain:
        for name, held in reference.tensors.items():
            if name not in found:
                found[name] = ExpectedTensor(name, held.shape, held.dtype, REFERENCE)
    for name, held in (grafted or {}).items():
        if name not in found:
            found[name] = ExpectedTensor(name, held.shape, held.dtype, GRAFTED)
    return list(found.values())


def of_another_size(blueprint: Blueprint, held: int) -> MismatchError | None:
    """A config.json that describes many times the `held` tensors of an output: told once, not once for each."""
    count = blueprint.num_tensors()
    if count <= 2 * held + MANY:
        return None
    return MismatchError("config.json", "the number of tensors it describes", f"{count:,}", f"about {held:,}")


def _dtypes(reference: Reference, facts: dict[str, Any]) -> Callable[[str, bool], str | None]:
    """As phase one chose it: float32 for the keep-list, else the reference's, else the model's params_dtype."""
    given = facts.get("dtype")
    dumped = given if isinstance(given, str) else None
    of_reference = bool(facts.get("dtype_from_reference"))

    def dtype_of(name: str, float32: bool) -> str | None:
        known = reference.plain_dtype(name)
        return "F32" if float32 and not (of_reference and known) else known or dumped

    if reference.tensors:
        return dtype_of
    return lambda _name, float32: "F32" if float32 else dumped


def num_elements(tensors: list[ExpectedTensor]) -> int:
    """Of all together."""
    return sum(prod(shape) * count for shape, count in Counter(one.shape for one in tensors).items())


def shapes(tensors: list[ExpectedTensor], dims: int) -> tuple[list[IntArray], NDArray[np.int64]]:
    """(per dimension [tensors] sizes, 1 where a tensor has fewer; [tensors] number of dimensions).

    A model has few different shapes: each is looked at once.
    """
    number: dict[tuple[int, ...], int] = {}
    which = np.array([number.setdefault(tensor.shape, len(number)) for tensor in tensors], np.int64)
    padded = np.ones((len(number), dims), np.int64)
    for at, shape in enumerate(number):
        padded[at, : len(shape[:dims])] = shape[:dims]
    ndim = np.array([len(shape) for shape in number], np.int64)
    return [column[which] for column in padded.T], ndim[which]
