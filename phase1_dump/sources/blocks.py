"""Makes the blocks of a holding: rows of the rectangle, joined and cast on the device where they lie.

A block of host memory that is already right is handed out as it is, everything else is built anew. Only torch
operations on plain tensors; where the bytes go is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import prod

import torch

from shardmerge.common.rectangle import Shape, intersect

from ..quantization.derived import Derived
from ..quantization.element_types import TORCH
from ..rectangles.parts import Part, Recipe, Scalar
from ..source import Holding
from .ahead import Block


def blocks_of(holding: Holding, max_bytes: int) -> Iterator[torch.Tensor]:
    """Yield contiguous 1-D tensors of the target dtype that follow each other, each at most `max_bytes` or one row.

    A block may be a view of the live tensor: read it before the model goes on.
    """
    return (block.make() for block in planned(holding, max_bytes))


def planned(holding: Holding, max_bytes: int) -> Iterator[Block]:
    """Yield the same blocks, not computed yet. A rectangle without elements gives one empty block."""
    rectangle, dtype = holding.rectangle, TORCH[holding.rectangle.dtype]
    recipe: Recipe = holding.recipe
    if not rectangle.local_shape:
        yield from (
            Block(partial(_scalar, part, dtype), dtype.itemsize, ahead=False) for part in recipe.parts
        )
        return
    rows, ahead = _rows_of_block(holding, max_bytes, dtype), all(map(_is_for_any_thread, recipe.parts))
    for first in range(0, max(1, rectangle.local_shape[0]), rows):
        shape = (min(rows, rectangle.local_shape[0] - first), *rectangle.local_shape[1:])
        offset = (rectangle.global_offset[0] + first, *rectangle.global_offset[1:])
        yield Block(partial(_block, recipe.parts, offset, shape, dtype), prod(shape) * dtype.itemsize, ahead)


def _scalar(part: Part, dtype: torch.dtype) -> torch.Tensor:
    if isinstance(part.data, Scalar):
        return torch.tensor([part.data.value], dtype=torch.float32).to(dtype)
    found: torch.Tensor = part.data.detach().reshape(1).to(dtype)
    return found


def _is_for_any_thread(part: Part) -> bool:
    """Whether threads may compute the part. On a GPU there is one stream, which computes block after block."""
    return isinstance(part.data, Derived) and part.data.by_any_thread and not part.data.is_cuda


def _rows_of_block(holding: Holding, max_bytes: int, dtype: torch.dtype) -> int:
    """Return how many rows fit in a block. What a CPU computes stays small enough for its cache."""
    shape, data = holding.rectangle.local_shape, holding.recipe.parts[0].data
    rows = max(1, max_bytes // max(1, prod(shape[1:]) * dtype.itemsize))
    if isinstance(data, Derived) and not data.is_cuda:
        return min(rows, data.rows_at_once(shape[1]))
    return rows


def _block(parts: tuple[Part, ...], offset: Shape, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    shared = [(part, intersect(part.offset, part.shape, offset, shape)) for part in parts]
    filling = [(part, box) for part, box in shared if box is not None]
    if len(filling) == 1:
        part, (low, extent) = filling[0]
        return _view(part, low, extent).to(dtype).contiguous().reshape(-1)
    block = torch.empty(shape, dtype=dtype, device=parts[0].data.device)
    for part, (low, extent) in filling:
        target = tuple(slice(a - b, a - b + n) for a, b, n in zip(low, offset, extent, strict=True))
        block[target].copy_(_view(part, low, extent))
    return block.reshape(-1)


def _view(part: Part, low: Shape, extent: Shape) -> torch.Tensor:
    """Return the elements of a part that are `extent` at `low` in the Hugging Face tensor: a view of the live one."""
    starts = [s + a - o for s, a, o in zip(part.source, low, part.offset, strict=True)]
    box = tuple(slice(at, at + n) for at, n in zip(starts, extent, strict=True))
    found: torch.Tensor = part.data.detach()[box]
    return found
