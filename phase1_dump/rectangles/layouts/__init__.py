"""Layouts: how a Megatron tensor becomes Hugging Face tensors. A file for each; `LAYOUTS` lists them all.

A layout is a function `(Box, Claim, Dimensions) -> pieces`: the box (`global_offset`, `local_shape` of the Megatron
tensor) and the tensors it becomes go in, and out comes which part of the box lands where in which tensor. It is pure
geometry. A new one is a member of `Layout` in common/architectures/rows.py, a file here, and a line below.
"""

from __future__ import annotations

from collections.abc import Iterator

from shardmerge.common.architectures import Claim, Layout

from .box import Box, Dimensions, Piece, Rules
from .qkv import QKV
from .same import SAME
from .sections import SECTIONS
from .vocab import VOCAB

LAYOUTS: dict[Layout, Rules] = {
    Layout.SAME: SAME,
    Layout.VOCAB: VOCAB,
    Layout.QKV: QKV,
    Layout.PART: SECTIONS,
}


def pieces_of(box: Box, claim: Claim, dimensions: Dimensions) -> Iterator[Piece]:
    """What a box is of the tensors of its claim. Raises MismatchError if its shape is not that of config.json."""
    return LAYOUTS[claim.row.layout].pieces(box, claim, dimensions)
