"""Layout "packed": a weight or bias of one routed expert is a slice of a tensor that holds those of all experts.

Within its slice it may be one of several sections of the rows (gate, then up) or every other row (gate and up in turn),
and the slice may be transposed.
Source: transformers, models/{gpt_oss,llama4,qwen3_vl_moe}/modeling_*.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from shardmerge.common.architectures import Claim

from .box import Box, Dimensions, Piece, Rules, Turn, require_shape


def pieces(box: Box, claim: Claim, dimensions: Dimensions) -> Iterator[Piece]:
    """Yield the box inside the slice of its expert.

    Args:
        box: what a rank holds of the expert's weight [rows, columns] or bias [rows].
        claim: its row says which section of the slice's rows this is, whether sections alternate, and whether the
            slice is transposed; its key names the expert.
        dimensions: sizes of the sections.

    Raises:
        MismatchError: the weight has another shape.
    """
    row, (tensor,) = claim.row, claim.tensors
    across = tensor.shape[1:][::-1] if row.transposed else tensor.shape[1:]
    sizes = [dimensions[name] for name in row.sections] or [across[0]]
    require_shape(tensor, box.global_shape, (sizes[row.part], *across[1:]))
    step = len(sizes) if row.interleaved else 1
    first = row.part if row.interleaved else sum(sizes[: row.part])
    offset = (first + step * box.global_offset[0], *box.global_offset[1:])
    steps = (step, *(1,) * (len(across) - 1))
    axes = tuple(range(len(across)))
    if row.transposed:
        offset, steps, axes = offset[::-1], steps[::-1], axes[::-1]
    shape = tuple(box.local_shape[axis] for axis in axes)
    turn = Turn((None, *axes), (1, *steps))
    yield Piece(tensor, (claim.expert or 0, *offset), box.origin, (1, *shape), turn)


PACKED = Rules(pieces)
