"""Layout "lifted": the Hugging Face tensor has a first dimension of one above those of the Megatron tensor."""

from __future__ import annotations

from collections.abc import Iterator

from shardmerge.common.architectures import Claim

from .box import Box, Dimensions, Piece, Rules, Turn, require_shape


def pieces(box: Box, claim: Claim, dimensions: Dimensions) -> Iterator[Piece]:
    """Yield the box below that dimension.

    Args:
        box: what a rank holds of the Megatron tensor.
        claim: it has one tensor.
        dimensions: not used.

    Raises:
        MismatchError: the tensor has another shape, or more than one place in its first dimension.
    """
    (tensor,) = claim.tensors
    require_shape(tensor, (1, *box.global_shape), tensor.shape)
    turn = Turn((None, *range(len(box.local_shape))), (1,) * len(tensor.shape))
    yield Piece(tensor, (0, *box.global_offset), box.origin, (1, *box.local_shape), turn)


LIFTED = Rules(pieces)
