"""Which tensors the checkpoint must hold, and with which shape and dtype.

The table of the architecture decides, together with config.json, and with the reference's headers if it holds weights.
Must not look at any rectangle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import NamedTuple, TypeAlias

import numpy as np

from shardmerge.common.architectures import Blueprint
from shardmerge.common.architectures.blueprint import Family
from shardmerge.common.manifest_facts import Facts
from shardmerge.common.reference import Reference, ReferenceTensor

from ...ledger.rows import IntArray
from ...quantization.united import Quantization

TABLE = "config.json with the table of {}"
REFERENCE = "the reference checkpoint"
GRAFTED = "--graft"
QUANTIZED = "the quantization of the model"
ByDtype: TypeAlias = Callable[[Family], Iterable[tuple[str | None, Iterable[str]]]]


class Kind(NamedTuple):
    """What many tensors have in common. A `dtype` of None is any, as long as the rectangles of a tensor agree."""

    shape: tuple[int, ...]
    dtype: str | None
    required_by: str


class ExpectedTensor(NamedTuple):
    """One tensor, of a `Kind`."""

    name: str
    shape: tuple[int, ...]
    dtype: str | None
    required_by: str


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """All tensors of a checkpoint: `names`, and for each the number of its kind. There are millions, of few kinds."""

    names: list[str]
    kind: IntArray
    kinds: tuple[Kind, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> ExpectedTensor:
        return ExpectedTensor(self.names[number], *self.kinds[self.kind[number]])

    def __iter__(self) -> Iterator[ExpectedTensor]:
        each = zip(self.names, self.kind.tolist(), strict=True)
        return (ExpectedTensor(name, *self.kinds[kind]) for name, kind in each)

    def num_elements(self) -> int:
        """Return how many elements all tensors have together."""
        counts = np.bincount(self.kind, minlength=len(self.kinds)).tolist()
        return sum(prod(kind.shape) * count for kind, count in zip(self.kinds, counts, strict=True))

    def shapes(self, dims: int) -> tuple[list[IntArray], IntArray]:
        """Return (per dimension [tensors] sizes, 1 where a tensor has fewer; [tensors] number of dimensions)."""
        padded = np.ones((len(self.kinds), dims), np.int64)
        for number, kind in enumerate(self.kinds):
            padded[number, : len(kind.shape[:dims])] = kind.shape[:dims]
        ndim = np.array([len(kind.shape) for kind in self.kinds], np.int64)
        return [column[self.kind] for column in padded.T], ndim[self.kind]


def expected_tensors(
    blueprint: Blueprint,
    reference: Reference,
    facts: Facts,
    quantization: Quantization | None = None,
    grafted: Mapping[str, ReferenceTensor] | None = None,
) -> Expected:
    """List every tensor of a complete checkpoint.

    A quantized reference says nothing about names and dtypes of an unquantized checkpoint, so only the table counts,
    but for what stands beside the language model, of which no table has rows; nor does one whose experts are packed
    about those of experts one by one, nor the other way round. What config.json switches off, such as a head of its own
    beside tied embeddings, is not expected although a reference holds it: readers would not take it.

    Args:
        blueprint: config.json with the table of its architecture.
        reference: Its weights, if it holds any, say which dtypes are expected, and which other tensors.
        facts: What the dump says of the model: its dtype.
        quantization: What all ranks together say of it, None for a model that is not quantized.
        grafted: What is taken from the reference, by name.

    Returns:
        All tensors in the order of layers, and last those that only the reference lists or gives.
    """
    table = TABLE.format(blueprint.architecture.name)
    by_dtype = _by_dtype(reference, facts)
    listing = _Listing()
    for family in blueprint.families():
        if quantization is None:
            listing.add_family(family, by_dtype, table)
        else:
            _add_stored(listing, family, quantization, by_dtype, table)
    for name, shape, dtype in quantization.cache_tensors() if quantization else ():
        listing.add([name], Kind(shape, dtype, QUANTIZED))
    if reference.is_quantized:
        others = {name: held for name, held in reference.tensors.items() if blueprint.is_vision(name)}
    else:
        otherwise = (
            {*blueprint.spelled_otherwise(), *blueprint.switched_off()} if reference.tensors else set()
        )
        others = {name: held for name, held in reference.tensors.items() if name not in otherwise}
    listing.add_others(others, REFERENCE)
    listing.add_others(grafted or {}, GRAFTED)
    return listing.listed()


class _Listing:
    """Expected tensors while they are gathered. If a name comes twice, its last kind counts."""

    def __init__(self) -> None:
        self.kind_of: dict[str, int] = {}
        self.kinds: dict[Kind, int] = {}

    def add(self, names: Iterable[str], kind: Kind) -> None:
        """Add tensors of one kind."""
        self.kind_of |= dict.fromkeys(names, self.kinds.setdefault(kind, len(self.kinds)))

    def add_family(self, family: Family, by_dtype: ByDtype, required_by: str) -> None:
        """Add all tensors of a family.

        Args:
            family: Names that have the same shape.
            by_dtype: Divides them by dtype.
            required_by: Who expects them, for messages.
        """
        for dtype, names in by_dtype(family):
            self.add(names, Kind(family.shape, dtype, required_by))

    def add_others(self, held: Mapping[str, ReferenceTensor], required_by: str) -> None:
        """Add what a reference holds and nothing else named."""
        for name, tensor in held.items():
            if name not in self.kind_of:
                self.add([name], Kind(tensor.shape, tensor.dtype, required_by))

    def listed(self) -> Expected:
        """Return all that was added, in the order in which names came first."""
        kind = np.fromiter(self.kind_of.values(), np.int64, len(self.kind_of))
        return Expected(list(self.kind_of), kind, tuple(self.kinds))


def _add_stored(
    listing: _Listing, family: Family, quantization: Quantization, by_dtype: ByDtype, table: str
) -> None:
    """Add a family of a quantized model: weights that are quantized become several tensors each, the others stay."""
    for name in family.names:
        stored = quantization.tensors_of(name, family.shape)
        if stored is None:
            listing.add_family(family._replace(names=[name]), by_dtype, table)
        else:
            for companion, shape, dtype in stored:
                listing.add([companion], Kind(shape, dtype, QUANTIZED))


def _by_dtype(reference: Reference, facts: Facts) -> ByDtype:
    """Return a function that divides a family's names by the dtype that phase one chose.

    That is float32 for the keep-list, else the reference's, else the model's params_dtype.
    """
    dumped, from_reference = facts.dtype, bool(facts.dtype_from_reference)

    def divided(family: Family) -> Iterator[tuple[str | None, Iterable[str]]]:
        def dtype_of(name: str) -> str | None:
            known = reference.plain_dtype(name)
            return "F32" if family.float32 and not (from_reference and known) else known or dumped

        return groupby(family.names, dtype_of)

    if reference.tensors:
        return divided
    return lambda family: [("F32" if family.float32 else dumped, family.names)]
