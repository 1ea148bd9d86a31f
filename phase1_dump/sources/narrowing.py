"""Counts elements that lose bits because they are written in a narrower dtype than the model's."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch

from ..quantization.element_types import TORCH
from ..rectangles.parts import Part
from ..source import Holding

ELEMENTS = 1 << 22  # compared at a time, so that no large temporary appears on a full device


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
