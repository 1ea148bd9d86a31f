"""Layout "same": the Megatron tensor is the Hugging Face tensor, element for element."""

from __future__ import annotations

from collections.abc import Iterator

from shardmerge.common.architectures import Claim

from .box import Box, Dimensions, Piece, Rules, require_shape


def pieces(box: Box, claim: Claim, dimensions: Dimensions) -> Iterator[Piece]:
    """Yield the box itself.

    Args:
        box: what a rank holds of the Megatron tensor.
        claim: it has one tensor.
        dimensions: not used.

    Raises:
        MismatchError: the tensor has another shape.
    """
    (tensor,) = claim.tensors
    require_shape(tensor, box.global_shape, tensor.shape)
    yield Piece(tensor, box.global_offset, box.origin, box.local_shape)


SAME = Rules(pieces)
