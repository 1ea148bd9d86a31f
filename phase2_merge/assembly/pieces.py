"""Rectangles in a tensor whose bytes pass in order: which bands it has, and what of a piece falls into one.

A tensor is written and read in bands. What a piece has in a band is one run of the piece's own bytes, so every piece
passes front to back and can be hashed on the way. Must not open a file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import xxhash

from shardmerge.common.dtypes import BITS
from shardmerge.common.errors import BadInputError, CorruptFileError
from shardmerge.common.rectangle import Shape, place

from ..disk.hashing import wrong_bytes
from .task import SourcePiece, TensorTask


@dataclass(slots=True)
class PieceProgress:
    """A piece and how much of it has been read. In `offset` and `shape` the last dimension counts bytes."""

    piece: SourcePiece
    offset: Shape
    shape: Shape
    done_bytes: int = 0
    checksum: Any = field(default_factory=xxhash.xxh3_128)


def overlap(progress: PieceProgress, offset: Shape, shape: Shape) -> tuple[slice, ...] | None:
    """Return which part of a band a piece has.

    Args:
        progress: The piece.
        offset: Where the band begins in the tensor.
        shape: Of the band. The last dimension of both counts bytes.

    Returns:
        A slice of the band for each dimension, None if the piece has nothing of it.
    """
    begin = tuple(max(a, b) for a, b in zip(offset, progress.offset, strict=True))
    spans = zip(offset, shape, progress.offset, progress.shape, strict=True)
    size = tuple(min(a + n, b + m) - at for at, (a, n, b, m) in zip(begin, spans, strict=True))
    if min(size) <= 0:
        return None
    return tuple(slice(at - a, at - a + n) for at, a, n in zip(begin, offset, size, strict=True))


def bands(shape: Shape, max_bytes: int) -> Iterator[tuple[Shape, Shape]]:
    """Cut a tensor's bytes into runs of at most `max_bytes`. Yields (offset, shape) of each, ascending.

    A band is a range of one dimension, entire in later ones, one index in earlier ones. Together they are all of it.
    """
    if not prod(shape):
        return
    dim = next(d for d in range(len(shape)) if prod(shape[d + 1 :]) <= max_bytes)
    step = max_bytes // prod(shape[dim + 1 :])
    inner = shape[dim + 1 :]
    for outer in itertools.product(*map(range, shape[:dim])):
        for at in range(0, shape[dim], step):
            size = min(step, shape[dim] - at)
            yield (*outer, at, *(0 for _ in inner)), (*(1 for _ in outer), size, *inner)


def begun(tensor: TensorTask, piece: SourcePiece) -> PieceProgress:
    """Return a piece of which nothing has been read."""
    return PieceProgress(piece, in_bytes(tensor, piece.offset, 0), in_bytes(tensor, piece.shape, 1))


def in_bytes(tensor: TensorTask, sizes: Shape, scalar: int) -> Shape:
    """Count the last dimension in bytes.

    Args:
        tensor: Whose elements are counted.
        sizes: A shape or an offset in it.
        scalar: What a scalar gets, which has no dimension.

    Returns:
        `sizes`, with bytes in the last dimension.

    Raises:
        BadInputError: It lies inside a byte.
    """
    *outer, last = sizes or (scalar,)
    bits = last * BITS[tensor.dtype]
    if bits % 8:
        raise BadInputError(
            f"{tensor.name}: {tensor.dtype} {list(sizes)} lies inside a byte", "Cut at whole bytes."
        )
    return (*outer, bits // 8)


def compare(tensor: TensorTask, pieces: list[PieceProgress]) -> None:
    """Raise CorruptFileError for the first piece that does not have its checksum."""
    for progress in pieces:
        piece, got = progress.piece, progress.checksum.hexdigest()
        if got != piece.xxh3_128:
            what = f"{tensor.name} {place(piece.offset, piece.shape)}"
            raise CorruptFileError(piece.path, wrong_bytes(what, got, piece.xxh3_128), piece.rank)
