"""Geometry of packed weights: from a piece of a weight to the pieces of the tensors it is stored as.

A piece may begin and end only where blocks do. Values are never looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shardmerge.common.architectures import Tensor
from shardmerge.common.errors import CutInsideBlockError
from shardmerge.common.quantization.arithmetic import companion_shape, module_of, scaled
from shardmerge.common.quantization.rows import Companion, Encoding
from shardmerge.common.rectangle import Shape

from ..quantization.derived import Packed, Readable
from .layouts import Piece


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the checkpoint, as it is written."""

    name: str
    shape: Shape
    dtype: str
    encoding: Encoding = Encoding.FLOAT
    is_scale: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class PackedPiece:
    """`shape` elements at `source` of `data` are those at `offset` of `tensor`."""

    tensor: Stored
    data: Readable
    source: Shape
    offset: Shape
    shape: Shape


def packed_pieces(
    parameter: str, packed: Packed, piece: Piece, source: Shape, live: Shape, rank: int
) -> Iterator[PackedPiece]:
    """What a piece of a live weight of shape `live`, at `source` in it, is of every stored tensor.

    Raises CutInsideBlockError where the piece begins or ends inside a block: scales of a block cannot be halved.
    """
    _require_whole_blocks(parameter, packed, piece, source, live, rank)
    for one in packed.row.companions:
        if one.divisors is not None:
            ends = companion_shape(one, tuple(map(sum, zip(source, piece.shape, strict=True))))
            start, offset = (_in_blocks(at, one.divisors) for at in (source, piece.offset))
            shape = tuple(end - at for end, at in zip(ends, start, strict=True))
            yield PackedPiece(_stored(piece.tensor, one), packed.parts[one.suffix], start, offset, shape)


def packed_scalars(packed: Packed, tensors: Sequence[Tensor]) -> Iterator[tuple[Stored, float]]:
    """The scalars of every tensor that a packed weight becomes, with their values."""
    for tensor in tensors:
        for one in packed.row.companions:
            if one.suffix in packed.scalars:
                yield _stored(tensor, one), packed.scalars[one.suffix]


def scalar(name: str) -> Stored:
    """A scale of its own, such as that of a KV cache."""
    return Stored(name, (), "F32", Encoding.FLOAT, is_scale=True)


def _stored(tensor: Tensor, one: Companion) -> Stored:
    name = f"{module_of(tensor.name)}.{one.suffix}"
    return Stored(name, companion_shape(one, tensor.shape), one.dtype, one.encoding, one.is_scale)


def _in_blocks(at: Shape, divisors: tuple[int, int]) -> Shape:
    return tuple(place // by for place, by in zip(at, divisors, strict=True))


def _require_whole_blocks(
    parameter: str, packed: Packed, piece: Piece, source: Shape, live: Shape, rank: int
) -> None:
    """Begin and end must fall on blocks, but for the end of a tensor whose last block may be incomplete."""
    row = packed.row
    for dim, block in enumerate(row.block):
        end = source[dim] + piece.shape[dim]
        at_end = end == live[dim] and piece.offset[dim] + piece.shape[dim] == piece.tensor.shape[dim]
        may_end = at_end and row.partial_block
        for place in (source[dim], piece.offset[dim], *(() if may_end else (end,))):
            if scaled(place, block) is None:
                name = piece.tensor.name
                raise CutInsideBlockError(
                    parameter, name, dim, piece.shape[dim], place, block, row.name, rank
                )
