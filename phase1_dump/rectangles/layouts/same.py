"""Layout "same": the Megatron tensor is the Hugging Face tensor, element for element."""

from __future__ import annotations

from collections.abc import Iterator

from shardmerge.common.architectures import Claim

from .box import Box, Dimensions, Piece, Rules, require_shape


def pieces(box: Box, claim: Claim, dimensions: Dimensions) -> Iterator[Piece]:
    """The box itself. Raises MismatchError if the tensor has another shape."""
    (tensor,) = claim.tensors
    require_shape(tensor, box.global_shape, tensor.shape)
    yield Piece(tensor, box.global_offset, box.origin, box.local_shape)


SAME = Rules(pieces)
