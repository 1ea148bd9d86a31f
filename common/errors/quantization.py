"""Errors about quantized weights: scales, uncalibrated ranges, cuts inside blocks, differing declarations."""

from __future__ import annotations

from dataclasses import dataclass

from .exit_codes import SHOWN, ConflictError, IncompleteError, UnsupportedError
from .wording import first_ranks, of_ranks


@dataclass(eq=False)
class BadScaleError(ConflictError):
    tensor: str
    value: str | None  # None: there is none
    ranks: tuple[int, ...]

    def message(self) -> str:
        got = "missing" if self.value is None else self.value
        return (
            f"{self.tensor} is {got}{of_ranks(self.ranks)}; a scale must be finite and positive. Calibrate "
            "the model again: readers would multiply by it without a word."
        )


@dataclass(eq=False)
class ScalarMismatchError(ConflictError):
    tensor: str
    values: dict[str, tuple[int, ...]]

    def message(self) -> str:
        seen = "; ".join(f"{value} on rank {first_ranks(ranks)}" for value, ranks in self.values.items())
        return (
            f"{self.tensor} differs between the shards of its weight: {seen}. Merged, all but one of them would be "
            "read with a wrong scale. Synchronise the quantizers' amax over the tensor-parallel ranks and dump again."
        )


@dataclass(eq=False)
class QuantizationMismatchError(ConflictError):
    module: str
    values: dict[str, tuple[int, ...]]

    def message(self) -> str:
        seen = "; ".join(f"{value} on rank {first_ranks(ranks)}" for value, ranks in self.values.items())
        return (
            f"{self.module} is quantized differently by its ranks: {seen}. Apply one quantization config to the "
            "whole model and dump again."
        )


@dataclass(eq=False)
class JoinedMismatchError(ConflictError):
    first: str
    value: str
    second: str
    differs: str

    def message(self) -> str:
        return (
            f"{self.first} is {self.value}, but {self.second} is {self.differs}: readers read both in one way, and "
            "one of them wrongly. Quantize all that belongs together alike (for weight_scale_2: give both weight "
            "quantizers the larger amax), or leave all of it as it is, and dump again."
        )


@dataclass(eq=False)
class UncalibratedError(ConflictError):
    tensors: tuple[str, ...]
    where: tuple[str, ...]  # a line for each kind and layer

    def message(self) -> str:
        lines = "; ".join(self.where[:SHOWN])
        more = (
            f" and {len(self.where) - SHOWN} more (--report FILE holds all)"
            if len(self.where) > SHOWN
            else ""
        )
        return (
            f"{len(self.tensors):,} input ranges were never seen in calibration: {lines}{more}. Calibrate with more "
            "samples, or give them the largest of their layer with --uncalibrated layer-max."
        )


@dataclass(eq=False)
class CutInsideBlockError(UnsupportedError):
    parameter: str
    tensor: str
    dim: int
    size: int
    at: int
    block: int
    format: str
    rank: int

    def message(self) -> str:
        return (
            f"{self.parameter} on rank {self.rank}: a part of {self.size} in dim {self.dim}, bound for {self.tensor}, "
            f"begins or ends at {self.at}, inside a {self.format} block of {self.block}. Nothing was written. Use a "
            "tensor-parallel size that cuts between blocks, or dump it with dequantize=True or unquantized."
        )


@dataclass(eq=False)
class MissingScaleError(IncompleteError):
    tensor: str
    shape: tuple[int, ...]
    format: str
    declared_by: str

    def message(self) -> str:
        return (
            f"{self.tensor} {list(self.shape)} is missing, but {self.declared_by} says that its module is "
            f"{self.format}: readers would take whatever is in memory, or 1. Export the checkpoint again; if the "
            "module is not quantized, exclude it."
        )


@dataclass(eq=False)
class UndeclaredScaleError(ConflictError):
    tensor: str
    declared: str

    def message(self) -> str:
        return (
            f"{self.tensor} is a scale, but {self.declared}: readers would ignore it. Correct what is declared "
            "(shardmerge metadata --set quantization.KEY=VALUE, where shardmerge wrote it), or export again."
        )


@dataclass(eq=False)
class StoredOtherwiseError(ConflictError):
    tensor: str
    what: str
    got: str
    expected: str
    declared: str

    def message(self) -> str:
        return (
            f"{self.tensor}: {self.what} is {self.got}, expected {self.expected}, because {self.declared}. "
            "Readers would take its bytes for something else. Correct what is declared, or export again."
        )


@dataclass(eq=False)
class DeclarationMismatchError(ConflictError):
    key: str
    in_hf_quant_config: str
    in_config: str

    def message(self) -> str:
        return (
            f"{self.key} is {self.in_hf_quant_config} in hf_quant_config.json, but {self.in_config} in config.json's "
            "quantization_config; readers disagree on which they trust. Correct the one that is wrong (shardmerge "
            "metadata --set quantization.KEY=VALUE writes both, where shardmerge wrote them)."
        )


@dataclass(eq=False)
class UnsupportedQuantizationError(UnsupportedError):
    formats: str
    ranks: tuple[int, ...]

    def message(self) -> str:
        return (
            f"The dump is quantized as {self.formats}{of_ranks(self.ranks)}, which this shardmerge cannot "
            "merge. Nothing was written. Quantize the model otherwise, or dump it unquantized."
        )
