"""What a look at the numbers says: not finite, all zero, or narrowed with loss. One aminmax per block, always on.

NaN propagates through aminmax, so counting is left for blocks that turn out not to be finite.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite

import torch


@dataclass(slots=True)
class Health:
    """Extremes of one rectangle, gathered block by block on the device; read once, when all blocks are through."""

    extremes: list[torch.Tensor] = field(default_factory=list)

    def look(self, block: torch.Tensor) -> None:
        """Take a block's extremes. Does not wait for the device."""
        if block.numel():
            self.extremes.append(torch.stack(torch.aminmax(block)))

    def verdict(self) -> tuple[bool, bool]:
        """(every element is finite, there are elements and all are zero). Waits for the device once."""
        if not self.extremes:
            return True, False
        values = torch.stack(self.extremes).flatten().tolist()
        return all(map(isfinite, values)), not any(values)


def count_nonfinite(block: torch.Tensor) -> tuple[int, int]:
    """(NaN, Inf) elements of a block."""
    return int(torch.isnan(block).sum()), int(torch.isinf(block).sum())


def count_changed(source: torch.Tensor, target: torch.dtype) -> int:
    """Elements that a cast to `target` changes; NaN that stays NaN is no change."""
    back = source.to(target).to(source.dtype)
    return int(((back != source) & ~(torch.isnan(back) & torch.isnan(source))).sum())
