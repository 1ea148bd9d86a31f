"""Geometry of packed weights: turns a piece of a weight into pieces of its packed numbers and scales.

A piece may begin and end only where blocks do, since a scale of a block (128x128 in FP8, 16 in NVFP4) cannot be halved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardmerge.common.architectures import Tensor
from shardmerge.common.errors import CutInsideBlockError, UnsupportedParameterError
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
    """Yield what a piece of a weight becomes in every tensor that the weight is stored as.

    Args:
        parameter: the weight.
        packed: its packed form.
        piece: which elements of which Hugging Face tensor these are, before packing.
        source: where the piece starts in the live weight.
        rank: for messages.

    Raises:
        CutInsideBlockError: the piece begins or ends inside a block.
        UnsupportedParameterError: the piece does not lie in its tensor as in the weight.
    """
    if piece.turn is not None:
        raise UnsupportedParameterError(
            parameter.name,
            f"it is quantized ({packed.row.name}), and {piece.tensor.name} holds it turned or beside others: quantized "
            "experts are written one by one (--experts per-expert)",
            rank,
        )
    _require_whole_blocks(parameter, packed, piece, source, rank)
    for companion in packed.row.companions:
        if companion.divisors is not None:
            ends = companion_shape(companion, tuple(map(sum, zip(source, piece.shape, strict=True))))
            start, offset = (_in_blocks(at, companion.divisors) for at in (source, piece.offset))
            shape = tuple(end - at for end, at in zip(ends, start, strict=True))
            yield _stored(piece.tensor, companion), Part(packed.parts[companion.suffix], start, offset, shape)


def packed_scalars(packed: Packed, tensors: Sequence[Tensor]) -> Iterator[tuple[Stored, float]]:
    """Yield the scalars of every tensor that a packed weight becomes, with their values."""
    for tensor in tensors:
        for companion in packed.row.companions:
            if companion.suffix in packed.scalars:
                yield _stored(tensor, companion), packed.scalars[companion.suffix]


def scalar(name: str) -> Stored:
    """Return the tensor of a scale that belongs to no weight, such as that of a KV cache."""
    return Stored(name, (), "F32", Encoding.FLOAT, is_scale=True)


def _stored(tensor: Tensor, companion: Companion) -> Stored:
    name = f"{module_of(tensor.name)}.{companion.suffix}"
    return Stored(
        name,
        companion_shape(companion, tensor.shape),
        companion.dtype,
        companion.encoding,
        companion.is_scale,
    )


def _in_blocks(position: Shape, divisors: tuple[int, int]) -> Shape:
    return tuple(size // by for size, by in zip(position, divisors, strict=True))


def _require_whole_blocks(
    parameter: Parameter, packed: Packed, piece: Piece, source: Shape, rank: int
) -> None:
    """Raise CutInsideBlockError unless begin and end fall on blocks, or the last block may be incomplete."""
    row = packed.row
    for dim, block in enumerate(row.block):
        end = source[dim] + piece.shape[dim]
        at_end = (
            end == parameter.live_shape[dim]
            and piece.offset[dim] + piece.shape[dim] == piece.tensor.shape[dim]
        )
        may_end = at_end and row.partial_block
        for position in (source[dim], piece.offset[dim], *(() if may_end else (end,))):
            if scaled(position, block) is None:
                name = piece.tensor.name
                raise CutInsideBlockError(
                    parameter.name, name, dim, piece.shape[dim], position, block, row.name, rank
                )
