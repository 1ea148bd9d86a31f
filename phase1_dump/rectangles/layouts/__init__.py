"""Layouts say how a Megatron tensor becomes Hugging Face tensors: a file for each, listed in `LAYOUTS`.

A layout is a function `(Box, Claim, Dimensions) -> pieces`: the box (`global_offset`, `local_shape` of the Megatron
tensor) and the tensors it becomes go in, and out comes which part of the box lands where in which tensor. It is pure
geometry. A new one is a member of `Layout` in common/architectures/rows.py, a file here, and a line below.
"""

from __future__ import annotations

from collections.abc import Iterator

from shardmerge.common.architectures import Blueprint, Claim, Layout

from .box import Box, Dimensions, Piece, Rules
from .fused_qkv import FUSED_QKV
from .gated_qkv import GATED_QKV
from .lifted import LIFTED
from .packed import PACKED
from .qkv import QKV
from .same import SAME
from .sections import SECTIONS
from .vocab import VOCAB

LAYOUTS: dict[Layout, Rules] = {
    Layout.SAME: SAME,
    Layout.VOCAB: VOCAB,
    Layout.QKV: QKV,
    Layout.FUSED_QKV: FUSED_QKV,
    Layout.GATED_QKV: GATED_QKV,
    Layout.PART: SECTIONS,
    Layout.LIFTED: LIFTED,
    Layout.PACKED: PACKED,
}


def missing_dimensions(table: Blueprint) -> list[str]:
    """Return the dimensions that the layouts of a table need and the table does not give."""
    needed = {name for row in table.rows for name in LAYOUTS[row.layout].dimensions}
    return sorted(needed - table.dimensions.keys())


def pieces_of(box: Box, claim: Claim, dimensions: Dimensions) -> Iterator[Piece]:
    """Yield what a box becomes in the tensors of its claim.

    Args:
        box: what a rank holds of the Megatron tensor.
        claim: the row of the table, and the Hugging Face tensors.
        dimensions: sizes by the names that the table gives them.

    Raises:
        MismatchError: the shape is not that of config.json.
    """
    return LAYOUTS[claim.row.layout].pieces(box, claim, dimensions)
