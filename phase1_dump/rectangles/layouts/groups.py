"""Rows that go group by group: the part that the layouts of fused projections share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from shardmerge.common.architectures import Tensor

from .box import Box, Piece


class Section(NamedTuple):
    """Rows that every group of a Megatron tensor has, and where they lie in a Hugging Face tensor.

    Attributes:
        tensor: The Hugging Face tensor.
        first: Where they begin in the group.
        rows: How many there are.
        target: Where those of the first group begin in the Hugging Face tensor.
        step: How many rows of it lie between the beginnings of two neighbouring groups'.
    """

    tensor: Tensor
    first: int
    rows: int
    target: int
    step: int


def grouped(box: Box, groups: int, group_rows: int, sections: Iterable[Section]) -> Iterator[Piece]:
    """Yield what a box holds of each section of each group, group by group. A cut may fall anywhere between rows.

    Args:
        box: what a rank holds of the Megatron tensor.
        groups: how many there are in the whole of it.
        group_rows: rows of one group.
        sections: of a group, in the order in which they are yielded.

    Returns:
        An iterator over pieces, without empty ones.
    """
    if not group_rows:
        return
    sections = tuple(sections)
    begin, end = box.global_offset[0], box.global_offset[0] + box.local_shape[0]
    for group in range(begin // group_rows, min(groups, -(-end // group_rows))):
        for section in sections:
            fused = group * group_rows + section.first
            low, high = max(fused, begin), min(fused + section.rows, end)
            if low < high:
                row = section.target + group * section.step + low - fused
                offset, source = (row, *box.global_offset[1:]), (low - begin, *box.origin[1:])
                yield Piece(section.tensor, offset, source, (high - low, *box.local_shape[1:]))
