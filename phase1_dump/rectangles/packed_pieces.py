"""Geometry of packed weights: from a piece of a weight to pieces of the tensors it is stored as, numbers and scales.

A piece may begin and end only where blocks do, since a scale of a block (128x128 in FP8, 16 in NVFP4) cannot be halved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardmerge.common.architectures import Tensor
from shardmerge.common.errors import CutInsideBlockError
from shardmerge.common.quantization.arithmetic import companion_shape, module_of, scaled
from shardmerge.common.quantization.rows import Companion, Encoding, Format
from shardmerge.common.rectangle import Shape

from .layouts.box import Piece
from .parameter import Parameter
from .parts import Part


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the checkpoint, as it is written."""

    name: str
    shape: Shape
    dtype: str
    encoding: Encoding = Encoding.FLOAT
    is_scale: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """The packed form of a live weight: tensors of its whole local box by suffix, and scalars by suffix.

    `parts` are handles of the source, as `Parameter.data` is.
    """

    row: Format
    parts: Mapping[str, Any]
    scalars: Mapping[str, float]


def packed_pieces(
    parameter: Parameter, packed: Packed, piece: Piece, source: Shape, rank: int
) -> Iterator[tuple[Stored, Part]]:
    """What a piece of a weight is of every tensor that the weight is stored as.

    Args:
        parameter: the weight.
        packed: its packed form.
        piece: which elements of which Hugging Face tensor these are, before packing.
        source: where the piece starts in the live weight.
        rank: for messages.

    Raises:
        CutInsideBlockError: the piece begins or ends inside a block.
    """
    _require_whole_blocks(parameter, packed, piece, source, rank)
    for one in packed.row.companions:
        if one.divisors is not None:
            ends = companion_shape(one, tuple(map(sum, zip(source, piece.shape, strict=True))))
            start, offset = (_in_blocks(at, one.divisors) for at in (source, piece.offset))
            shape = tuple(end - at for end, at in zip(ends, start, strict=True))
            yield _stored(piece.tensor, one), Part(packed.parts[one.suffix], start, offset, shape)


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
    parameter: Parameter, packed: Packed, piece: Piece, source: Shape, rank: int
) -> None:
    """Begin and end must fall on blocks, but for the end of a tensor whose last block may be incomplete."""
    row = packed.row
    for dim, block in enumerate(row.block):
        end = source[dim] + piece.shape[dim]
        at_end = (
            end == parameter.live_shape[dim]
            and piece.offset[dim] + piece.shape[dim] == piece.tensor.shape[dim]
        )
        may_end = at_end and row.partial_block
        for place in (source[dim], piece.offset[dim], *(() if may_end else (end,))):
            if scaled(place, block) is None:
                name = piece.tensor.name
                raise CutInsideBlockError(
                    parameter.name, name, dim, piece.shape[dim], place, block, row.name, rank
                )
