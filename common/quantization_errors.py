"""What can be wrong with quantized weights: scales, ranges that nobody saw, cuts inside blocks, facts that differ."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import SHOWN, ConflictError, UnsupportedError, first_ranks


@dataclass(eq=False)
class BadScaleError(ConflictError):
    tensor: str
    value: str | None  # None: there is none
    ranks: tuple[int, ...]

    def message(self) -> str:
        got = "missing" if self.value is None else self.value
        return (
            f"{self.tensor} is {got} (rank {first_ranks(self.ranks)}); a scale must be finite and positive. Calibrate "
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
