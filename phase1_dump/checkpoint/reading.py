"""Reads holdings of a checkpoint: blocks of host bytes put together from chunks, and what was seen of their numbers.

No file says whether norms are stored minus one. Weights that are, of which readers take the numbers as they are, are
known by these: training moves the weights of a plain norm away from 1, and hardly any of them to zero or below.
"""

from __future__ import annotations

import mmap
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import prod
from typing import Any

import numpy as np

from shardmerge.common.errors import UnsupportedCheckpointError
from shardmerge.common.rectangle import Shape

from ..rectangles.parts import Part, Recipe, SharedPart, boxes_in_order
from ..source import Holding, Seen, Stream
from .chunk_files import ChunkFiles, StoredPart
from .numbers import KINDS, Bits, cast, count_narrowed, count_nonfinite, largest_magnitude, plus
from .packing import Packing

BLOCK_BYTES = 8 << 20
NOT_ABOVE_ZERO = (
    "{} of its {} numbers are not above zero, as those of a norm that is stored minus one "
    "(layernorm_zero_centered_gamma), and readers add nothing to it; no file of a checkpoint says how it is stored"
)


@dataclass(slots=True)
class Buffers:
    """Two buffers that blocks are read into in turn: one is filled again with the block after the next.

    They begin on pages, so that they can be written past the page cache.
    """

    memory: list[Bits] = field(default_factory=lambda: [np.empty(0, np.uint8), np.empty(0, np.uint8)])
    turn: int = 0

    def next(self, count: int, kind: str) -> Bits:
        """Return memory for so many numbers, as flat unsigned integers."""
        self.turn = 1 - self.turn
        num_bytes = count * KINDS[kind].itemsize
        if self.memory[self.turn].nbytes < num_bytes:
            memory = mmap.mmap(-1, max(num_bytes, BLOCK_BYTES))
            self.memory[self.turn] = np.frombuffer(memory, np.uint8)
        return self.memory[self.turn][:num_bytes].view(KINDS[kind].unsigned)


@dataclass(slots=True)
class _Health:
    """What was seen of a rectangle so far."""

    kind: str
    plain_norm: str = ""
    added: int = 0
    narrowed: int = 0
    not_above_zero: int = 0
    largest: int = 0
    elements: int = 0
    nan: int = 0
    infinite: int = 0

    def look(self, bits: Bits) -> None:
        """Look at a block."""
        largest = largest_magnitude(bits, self.kind)
        if largest >= KINDS[self.kind].infinity:
            nan, infinite = count_nonfinite(bits, self.kind)
            self.nan, self.infinite = self.nan + nan, self.infinite + infinite
        self.largest = max(self.largest, largest)
        self.elements += bits.size
        if self.plain_norm:
            self.not_above_zero += int((bits.view(KINDS[self.kind].signed) <= 0).sum())

    def require_not_minus_one(self) -> None:
        """Raise UnsupportedCheckpointError for a norm that shows by its numbers that readers would take it wrongly."""
        if self.not_above_zero * 2 > self.elements:
            reason = NOT_ABOVE_ZERO.format(f"{self.not_above_zero:,}", f"{self.elements:,}")
            raise UnsupportedCheckpointError(self.plain_norm, reason)

    def seen(self) -> Seen:
        """Return the verdict."""
        nonfinite = (self.nan, self.infinite) if self.nan or self.infinite else None
        all_zero = self.elements > 0 and not self.largest
        return Seen(nonfinite, all_zero, self.narrowed, added=self.added)


def read(holdings: Sequence[Holding], files: ChunkFiles, packing: Packing | None, *, inspect: bool) -> Stream:
    """Yield the blocks of each holding, then one `Seen`, as `Source.read` describes it.

    Args:
        holdings: of a checkpoint; each has a `Recipe` whose parts are `StoredPart`s, or what packs weights made.
        files: where they lie. What was read of them is checked after the last holding.
        packing: reads holdings with other parts.
        inspect: whether the numbers are inspected; those of norms always are.

    Returns:
        A generator, which closes the files when it is closed. It raises UnsupportedCheckpointError for a norm that is
        stored minus one.
    """
    buffers = Buffers()
    try:
        for is_stored, group in groupby(holdings, key=_is_stored):
            if is_stored or packing is None:
                yield from _read(list(group), files, buffers, inspect=inspect)
            else:
                yield from packing.read(list(group), inspect=inspect)
        files.finish()
    finally:
        files.close()


def _is_stored(holding: Holding) -> bool:
    """Whether all parts of a holding are parameters as they are stored."""
    return all(isinstance(part.data, StoredPart) for part in holding.recipe.parts)


def _read(holdings: Sequence[Holding], files: ChunkFiles, buffers: Buffers, *, inspect: bool) -> Stream:
    for holding in holdings:
        norm, added = next(
            ((part.data.plain_norm, part.data.added) for part in holding.recipe.parts), ("", 0)
        )
        health = _Health(holding.rectangle.dtype, norm, added)
        for block in _blocks(holding, files, buffers, health):
            if inspect or norm:
                health.look(block)
            yield memoryview(typing.cast(Any, block.view(np.uint8)))
        health.require_not_minus_one()
        yield health.seen() if inspect else Seen()


def _blocks(holding: Holding, files: ChunkFiles, buffers: Buffers, health: _Health) -> Iterator[Bits]:
    """Yield the numbers of a holding in row order, cast, as flat arrays of at most BLOCK_BYTES or one row."""
    rectangle, recipe = holding.rectangle, holding.recipe
    most = BLOCK_BYTES // KINDS[rectangle.dtype].itemsize
    for offset, shape in boxes_in_order(rectangle.global_offset, rectangle.local_shape, most):
        yield _block(recipe, offset, shape, files, buffers, health)


def _block(
    recipe: Recipe, offset: Shape, shape: Shape, files: ChunkFiles, buffers: Buffers, health: _Health
) -> Bits:
    shared = [(part, box) for part in recipe.parts if (box := part.shared(offset, shape)) is not None]
    target, count = health.kind, prod(shape)
    if len(shared) == 1:
        part, box = shared[0]
        own = files.dtype(part.data)
        found = _turned(part, box, files, buffers.next(count, own))
        if part.data.added:  # to a norm, which is one part
            found, own = plus(found, own, part.data.added), "F32"
        health.narrowed += count_narrowed(found, own, target)
        return np.ascontiguousarray(cast(found, own, target)).reshape(-1)
    flat = buffers.next(count, target)
    block = flat.reshape(shape)
    for part, box in shared:
        own, found = files.dtype(part.data), _turned(part, box, files, None)
        health.narrowed += count_narrowed(found, own, target)
        each = zip(box.target, box.extent, box.step, strict=True)
        block[tuple(slice(at, at + (n - 1) * step + 1, step) for at, n, step in each)] = cast(
            found, own, target
        )
    return flat


def _turned(part: Part, box: SharedPart, files: ChunkFiles, into: Bits | None) -> Bits:
    """Return the elements of a part in a box, as they lie in the Hugging Face tensor."""
    if part.turn is None:
        return files.read(part.data, _plus(part.source, box.skipped), box.extent, into)
    axes = [axis for axis in part.turn.axes if axis is not None]
    skipped = [at for at, axis in zip(box.skipped, part.turn.axes, strict=True) if axis is not None]
    extent = [n for n, axis in zip(box.extent, part.turn.axes, strict=True) if axis is not None]
    order = [axes.index(axis) for axis in range(len(axes))]  # of Megatron's dimensions
    start = _plus(part.source, [skipped[at] for at in order])
    turned = files.read(part.data, start, tuple(extent[at] for at in order), into).transpose(axes)
    return np.expand_dims(
        turned, [dimension for dimension, axis in enumerate(part.turn.axes) if axis is None]
    )


def _plus(source: Shape, skipped: Sequence[int]) -> Shape:
    return tuple(at + skip for at, skip in zip(source, skipped, strict=True))
