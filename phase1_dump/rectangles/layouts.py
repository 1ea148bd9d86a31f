"""From a box of a Megatron tensor to boxes of Hugging Face tensors: pure geometry, one function per layout.

A function takes the box (`global_offset`, `local_shape` of the Megatron tensor) and the tensors it becomes, and
returns pieces: which part of the box lands where in which tensor. Values are never looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from shardmerge.common.architectures import Claim, Layout, Tensor
from shardmerge.common.errors import MismatchError
from shardmerge.common.rectangle import Shape


@dataclass(frozen=True, slots=True)
class Box:
    """The part of an unsharded Megatron tensor that a rank holds."""

    global_shape: Shape
    global_offset: Shape
    local_shape: Shape


@dataclass(frozen=True, slots=True)
class Piece:
    """`shape` elements at `source` in the box are those at `offset` in the Hugging Face tensor."""

    tensor: Tensor
    offset: Shape
    source: Shape
    shape: Shape


Dimensions = Mapping[str, int]
Mapper = Callable[[Box, Sequence[Tensor], Dimensions], Iterator[Piece]]


def same(box: Box, tensors: Sequence[Tensor], dimensions: Dimensions) -> Iterator[Piece]:
    """The Megatron tensor is the Hugging Face tensor."""
    (tensor,) = tensors
    _require_shape(tensor, box.global_shape, tensor.shape)
    yield Piece(tensor, box.global_offset, _origin(box), box.local_shape)


def vocab(box: Box, tensors: Sequence[Tensor], dimensions: Dimensions) -> Iterator[Piece]:
    """Rows beyond the vocabulary are padding (`make_vocab_size_divisible_by`) and are left out."""
    (tensor,) = tensors
    _require_shape(tensor, box.global_shape, (*box.global_shape[:1], *tensor.shape[1:]))
    if box.global_shape[0] < tensor.shape[0]:
        _require_shape(tensor, box.global_shape, tensor.shape)
    rows = min(box.local_shape[0], tensor.shape[0] - box.global_offset[0])
    if rows > 0:
        yield Piece(tensor, box.global_offset, _origin(box), (rows, *box.local_shape[1:]))


def qkv(box: Box, tensors: Sequence[Tensor], dimensions: Dimensions) -> Iterator[Piece]:
    """Rows go group by group: queries of the group, its key, its value. A cut may fall anywhere between rows.

    Source: megatron/core/transformer/attention.py, `SelfAttention.get_query_key_value_tensors`.
    """
    head_dim, groups = dimensions["head_dim"], dimensions["groups"]
    query_rows = dimensions["heads"] // groups * head_dim
    sections = ((0, query_rows), (query_rows, head_dim), (query_rows + head_dim, head_dim))
    whole = (groups * (query_rows + 2 * head_dim), *tensors[0].shape[1:])
    _require_shape(tensors[0], box.global_shape, whole)
    for group in range(groups):
        base = group * (query_rows + 2 * head_dim)
        for tensor, (first, rows) in zip(tensors, sections, strict=True):
            yield from _shared_rows(box, tensor, base + first, group * rows, rows)


def part(box: Box, tensor: Tensor, sections: Sequence[int], number: int) -> Iterator[Piece]:
    """The Megatron tensor is section `number` of the rows of the Hugging Face tensor, sections given by their sizes."""
    _require_shape(tensor, box.global_shape, (sections[number], *tensor.shape[1:]))
    first = sum(sections[:number])
    offset = (first + box.global_offset[0], *box.global_offset[1:])
    yield Piece(tensor, offset, _origin(box), box.local_shape)


LAYOUTS: dict[Layout, Mapper] = {Layout.SAME: same, Layout.VOCAB: vocab, Layout.QKV: qkv}


def pieces_of(box: Box, claim: Claim, dimensions: Dimensions) -> Iterator[Piece]:
    """What a box is of the tensors of its claim."""
    row = claim.row
    if row.layout is Layout.PART:
        sections = [dimensions[name] for name in row.sections]
        return part(box, claim.tensors[0], sections, row.part)
    return LAYOUTS[row.layout](box, claim.tensors, dimensions)


def _shared_rows(box: Box, tensor: Tensor, fused_row: int, row: int, rows: int) -> Iterator[Piece]:
    """What the box holds of `rows` rows at `fused_row`, which are those at `row` of `tensor`."""
    low = max(fused_row, box.global_offset[0])
    high = min(fused_row + rows, box.global_offset[0] + box.local_shape[0])
    if low < high:
        offset = (row + low - fused_row, *box.global_offset[1:])
        source = (low - box.global_offset[0], *_origin(box)[1:])
        yield Piece(tensor, offset, source, (high - low, *box.local_shape[1:]))


def _origin(box: Box) -> Shape:
    return (0,) * len(box.local_shape)


def _require_shape(tensor: Tensor, got: Shape, expected: Shape) -> None:
    if got != expected:
        raise MismatchError(
            tensor.name, "shape in the model", str(list(got)), f"{list(expected)} by config.json"
        )
