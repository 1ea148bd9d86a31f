"""Makes the blocks of a holding: rows of the rectangle, joined and cast on the device where they lie.

A block of host memory that is already right is handed out as it is, everything else is built anew. Only torch
operations on plain tensors; where the bytes go is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from math import prod

import torch

from shardmerge.common.rectangle import Shape

from ..quantization.derived import Derived
from ..quantization.element_types import TORCH
from ..rectangles.parts import Part, Recipe, Scalar, SharedPart, boxes_in_order
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
    ahead, max_elements = (
        all(map(_is_for_any_thread, recipe.parts)),
        _elements_of_block(holding, max_bytes, dtype),
    )
    for offset, shape in boxes_in_order(rectangle.global_offset, rectangle.local_shape, max_elements):
        yield Block(partial(_block, recipe.parts, offset, shape, dtype), prod(shape) * dtype.itemsize, ahead)


def _scalar(part: Part, dtype: torch.dtype) -> torch.Tensor:
    if isinstance(part.data, Scalar):
        return torch.tensor([part.data.value], dtype=torch.float32).to(dtype)
    found: torch.Tensor = part.data.detach().reshape(1).to(dtype)
    return found


def _is_for_any_thread(part: Part) -> bool:
    """Whether threads may compute the part. On a GPU there is one stream, which computes block after block."""
    return isinstance(part.data, Derived) and part.data.by_any_thread and not part.data.is_cuda


def _elements_of_block(holding: Holding, max_bytes: int, dtype: torch.dtype) -> int:
    """Return how many elements a block may have. What a CPU computes stays small enough for its cache."""
    shape, data = holding.rectangle.local_shape, holding.recipe.parts[0].data
    if isinstance(data, Derived) and not data.is_cuda:
        return min(max_bytes // dtype.itemsize, data.rows_at_once(shape[1]) * prod(shape[1:]))
    return max_bytes // dtype.itemsize


@torch.no_grad()
def _block(parts: tuple[Part, ...], offset: Shape, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    found = [(part, part.shared(offset, shape)) for part in parts]
    filling = [(part, box) for part, box in found if box is not None]
    if len(filling) == 1:
        part, box = filling[0]
        return _flat(_view(part, box), dtype)
    block = torch.empty(shape, dtype=dtype, device=parts[0].data.device)
    for part, box in filling:
        each = zip(box.target, box.extent, box.step, strict=True)
        target = tuple(slice(at, at + (n - 1) * step + 1, step) for at, n, step in each)
        block[target].copy_(_view(part, box))
    return block.reshape(-1)


def _flat(view: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the elements as a contiguous 1-D tensor of a dtype.

    Operations that would do nothing are not called: each lets go of the interpreter, which other streams want too.
    """
    cast = view if view.dtype == dtype else view.to(dtype)
    return (cast if cast.is_contiguous() else cast.contiguous()).view(-1)


def _view(part: Part, box: SharedPart) -> torch.Tensor:
    """Return the elements of a part in a box, as they lie in the Hugging Face tensor: a view of the live tensor."""
    live = part.data
    if part.turn is None:
        is_all = box.extent == tuple(live.shape) and isinstance(live, torch.Tensor)
        found: torch.Tensor = live if is_all else live[_slices(part.source, box.skipped, box.extent)]
        return found
    axes = [axis for axis in part.turn.axes if axis is not None]
    skipped = [at for at, axis in zip(box.skipped, part.turn.axes, strict=True) if axis is not None]
    extent = [n for n, axis in zip(box.extent, part.turn.axes, strict=True) if axis is not None]
    order = [axes.index(axis) for axis in range(len(axes))]  # of Megatron's dimensions
    cut = live[_slices(part.source, [skipped[at] for at in order], [extent[at] for at in order])]
    turned: torch.Tensor = cut.permute(axes)
    for dimension, axis in enumerate(part.turn.axes):
        if axis is None:
            turned = turned.unsqueeze(dimension)
    return turned


def _slices(source: Sequence[int], skipped: Sequence[int], extent: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(at + skip, at + skip + n) for at, skip, n in zip(source, skipped, extent, strict=True))
