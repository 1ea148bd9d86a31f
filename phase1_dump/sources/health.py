"""Inspects numbers on their device: which are not finite, all zero, cannot be a scale, or lose bits when written.

One aminmax per block is enough: NaN propagates through it, so counting is left for blocks that turn out not to be
finite. Packed numbers are inspected by their bits, which aminmax does not know. What follows from it is not known here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite, prod

import torch

from shardmerge.common.quantization.rows import Encoding

from ..quantization.element_types import TORCH
from ..rectangles.parts import Part
from ..source import Holding

ELEMENTS = 1 << 22  # compared at a time, so that no large temporary appears on a full device
# encoding -> (bits of a byte that are its magnitude, magnitude that is NaN); a byte of pairs has no NaN
MAGNITUDES = {Encoding.E4M3: (0x7F, 0x7F), Encoding.E2M1_PAIR: (0x77, 0x100), Encoding.E8M0: (0xFF, 0xFF)}


@dataclass(slots=True)
class Health:
    """Extremes of one rectangle, gathered block by block on the device; read once, when all blocks are through."""

    encoding: Encoding = Encoding.FLOAT
    is_scale: bool = False
    extremes: list[torch.Tensor] = field(default_factory=list)
    invalid_scales: list[torch.Tensor] = field(default_factory=list)

    def look(self, block: torch.Tensor) -> None:
        """Take the extremes of a block. Does not wait for the device."""
        if not block.numel():
            return
        magnitudes = _magnitudes(block, self.encoding)
        if block.numel() == 1:
            self.extremes.append(magnitudes.reshape(()))  # there are many scalars
        else:
            self.extremes += torch.aminmax(magnitudes)
        if self.is_scale:
            self.invalid_scales.append(_is_invalid_scale(block, self.encoding).sum())

    def verdict(self) -> tuple[bool, bool]:
        """Return (every element is finite, there are elements and all are zero). Waits for the device once."""
        if not self.extremes:
            return True, False
        values = torch.hstack(self.extremes).tolist()
        if self.encoding is Encoding.FLOAT:
            return all(map(isfinite, values)), not any(values)
        is_zero = (
            not any(values) and self.encoding is not Encoding.E8M0
        )  # there zero is the smallest power of two
        return max(values) < MAGNITUDES[self.encoding][1], is_zero

    def count_invalid_scales(self) -> int:
        """Return the number of elements that cannot be a scale: zero, negative or not finite. Waits for the device."""
        return int(torch.stack(self.invalid_scales).sum()) if self.invalid_scales else 0


def bring_to_host(healths: Sequence[Health]) -> None:
    """Bring what many have gathered to the host together, where one after the other would wait for each. Waits once."""
    for name in ("extremes", "invalid_scales"):
        by_kind: dict[tuple[torch.device, torch.dtype], list[Health]] = defaultdict(list)
        for health in healths:
            if found := getattr(health, name):
                by_kind[found[0].device, found[0].dtype].append(health)
        for kind in by_kind.values():
            sizes = [len(getattr(health, name)) for health in kind]
            together = torch.hstack([one for health in kind for one in getattr(health, name)]).cpu()
            for health, found in zip(kind, together.split(sizes), strict=True):
                setattr(health, name, [found] if name == "extremes" else list(found))


def _magnitudes(block: torch.Tensor, encoding: Encoding) -> torch.Tensor:
    if encoding is Encoding.FLOAT:
        return block
    return block.view(torch.uint8) & MAGNITUDES[encoding][0]


def _is_invalid_scale(block: torch.Tensor, encoding: Encoding) -> torch.Tensor:
    """Return a mask that is true where an element is not a positive finite number."""
    if encoding is Encoding.FLOAT:
        return ~((block > 0) & torch.isfinite(block))
    raw = block.view(torch.uint8)
    if encoding is Encoding.E8M0:
        return raw == MAGNITUDES[encoding][1]
    return (raw == 0) | (raw >= MAGNITUDES[encoding][1])  # zero; NaN; and with the sign bit what is negative


def count_nonfinite(block: torch.Tensor, encoding: Encoding = Encoding.FLOAT) -> tuple[int, int]:
    """Return the number of (NaN, infinite) elements of a block."""
    if encoding is not Encoding.FLOAT:
        return int((_magnitudes(block, encoding) == MAGNITUDES[encoding][1]).sum()), 0
    return int(torch.isnan(block).sum()), int(torch.isinf(block).sum())


def narrowed_elements(holding: Holding) -> int:
    """Count the elements of a holding that the cast to its dtype changes. Scalars are not counted."""
    if not holding.rectangle.local_shape:
        return 0
    target = TORCH[holding.rectangle.dtype]
    return sum(
        count_changed(source, target) for part in holding.recipe.parts for source in _narrower(part, target)
    )


def count_changed(source: torch.Tensor, target: torch.dtype) -> int:
    """Count the elements that a cast to `target` changes. NaN that stays NaN is not a change."""
    back = source.to(target).to(source.dtype)
    return int(((back != source) & ~(torch.isnan(back) & torch.isnan(source))).sum())


def _narrower(part: Part, target: torch.dtype) -> Iterator[torch.Tensor]:
    """Yield a part in pieces of `ELEMENTS`, if the target cannot hold all that its dtype can."""
    if part.data.dtype != target and torch.promote_types(part.data.dtype, target) != target:
        box = tuple(slice(at, at + n) for at, n in zip(part.source, part.source_shape, strict=True))
        yield from part.data.detach()[box].split(max(1, ELEMENTS // max(1, prod(part.source_shape[1:]))))
