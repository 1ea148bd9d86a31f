"""Layout "part": the Megatron tensor is one section of the rows of a Hugging Face tensor, as in Mamba.

The row of the table names the dimensions that are the sizes of all sections (`sections`) and which of them this is
(`part`).
"""

from __future__ import annotations

from collections.abc import Iterator

from shardmerge.common.architectures import Claim

from .box import Box, Dimensions, Piece, Rules, require_shape


def pieces(box: Box, claim: Claim, dimensions: Dimensions) -> Iterator[Piece]:
    """Yield the box, placed after the sections before its own.

    Args:
        box: what a rank holds of the section.
        claim: its row names all sections and says which this is.
        dimensions: sizes of the sections.

    Raises:
        MismatchError: the section has another size.
    """
    row, tensor = claim.row, claim.tensors[0]
    sizes = [dimensions[name] for name in row.sections]
    require_shape(tensor, box.global_shape, (sizes[row.part], *tensor.shape[1:]))
    offset = (sum(sizes[: row.part]) + box.global_offset[0], *box.global_offset[1:])
    yield Piece(tensor, offset, box.origin, box.local_shape)


SECTIONS = Rules(pieces)
