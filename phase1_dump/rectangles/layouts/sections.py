"""Layout "part": the Megatron tensor is one section of the rows of a Hugging Face tensor, as in Mamba.

The row of the table names the dimensions that are the sizes of all sections (`sections`) and which of them this is
(`part`). Where the sections do not fill the tensor, its rows go group by group and each group has all of them, as in
the DeltaNet of Qwen3-Next; the Megatron tensor then has those of the first group first.
"""

from __future__ import annotations

from collections.abc import Iterator

from shardmerge.common.architectures import Claim

from .box import Box, Dimensions, Piece, Rules, require_shape
from .groups import Section, grouped


def pieces(box: Box, claim: Claim, dimensions: Dimensions) -> Iterator[Piece]:
    """Yield the box, placed after the sections before its own, in each group for itself.

    Args:
        box: what a rank holds of the section.
        claim: its row names all sections and says which this is.
        dimensions: sizes of the sections.

    Raises:
        MismatchError: the section has another size.
    """
    row, tensor = claim.row, claim.tensors[0]
    sizes = [dimensions[name] for name in row.sections]
    own, every = sizes[row.part], sum(sizes)
    groups = tensor.shape[0] // max(1, every)
    require_shape(tensor, box.global_shape, (groups * own, *tensor.shape[1:]))
    yield from grouped(box, groups, own, (Section(tensor, 0, own, sum(sizes[: row.part]), every),))


SECTIONS = Rules(pieces)
