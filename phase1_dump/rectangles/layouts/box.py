"""The types of all layouts: a box of a Megatron tensor goes in, pieces of Hugging Face tensors come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from shardmerge.common.architectures import Claim, Tensor
from shardmerge.common.errors import MismatchError
from shardmerge.common.rectangle import Shape

Dimensions: TypeAlias = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Box:
    """The part of an unsharded Megatron tensor that a rank holds."""

    global_shape: Shape
    global_offset: Shape
    local_shape: Shape

    @property
    def origin(self) -> Shape:
        """Return where the box itself starts: zeros."""
        return (0,) * len(self.local_shape)


@dataclass(frozen=True, slots=True)
class Turn:
    """How a piece lies in the Hugging Face tensor where it does not lie there as in Megatron's.

    Attributes:
        axes: Of each dimension of the Hugging Face tensor, which one of Megatron's it is; None for one in which the
            piece has a single place, as an expert has among all.
        step: Of each dimension of the Hugging Face tensor, how far apart neighbours of the piece lie.
    """

    axes: tuple[int | None, ...]
    step: Shape


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements at `source` in the box, which are `shape` elements at `offset` in the Hugging Face tensor.

    `source` has the dimensions of the Megatron tensor, `offset` and `shape` those of the Hugging Face tensor. They are
    the same dimensions in the same order unless there is a `turn`.
    """

    tensor: Tensor
    offset: Shape
    source: Shape
    shape: Shape
    turn: Turn | None = None


Mapper: TypeAlias = Callable[[Box, Claim, Dimensions], Iterator[Piece]]


@dataclass(frozen=True, slots=True)
class Rules:
    """A layout: the function that maps a box, and what others must know of the layout.

    pieces: from the box, its claim and the dimensions of the table to pieces. Raises MismatchError.
    dimensions: names of the dimensions that `pieces` looks up, where the row does not name them itself.
    drops_padding: rows beyond the Hugging Face tensor are left out.
    is_attention: the targets are the projections of queries, keys and values of one attention.
    """

    pieces: Mapper
    dimensions: tuple[str, ...] = ()
    drops_padding: bool = False
    is_attention: bool = False


def require_shape(tensor: Tensor, got: Shape, expected: Shape) -> None:
    """Raise MismatchError unless the model's shape is the one that config.json gives.

    Args:
        tensor: the Hugging Face tensor, for the message.
        got: shape in the model.
        expected: shape by config.json.
    """
    if got != expected:
        raise MismatchError(
            tensor.name, "shape in the model", str(list(got)), f"{list(expected)} by config.json"
        )
