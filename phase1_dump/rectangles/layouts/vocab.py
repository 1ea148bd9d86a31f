"""Layout "vocab": an embedding, whose rows beyond the vocabulary are padding that is left out.

Source: megatron-core, `make_vocab_size_divisible_by`.
"""

from __future__ import annotations

from collections.abc import Iterator

from shardmerge.common.architectures import Claim

from .box import Box, Dimensions, Piece, Rules, require_shape


def pieces(box: Box, claim: Claim, dimensions: Dimensions) -> Iterator[Piece]:
    """Yield the rows of the box that are words, if there are some.

    Args:
        box: what a rank holds of the embedding.
        claim: it has one tensor.
        dimensions: not used.

    Raises:
        MismatchError: the model has fewer words or another width.
    """
    (tensor,) = claim.tensors
    require_shape(tensor, box.global_shape, (*box.global_shape[:1], *tensor.shape[1:]))
    if box.global_shape[0] < tensor.shape[0]:
        require_shape(tensor, box.global_shape, tensor.shape)
    rows = min(box.local_shape[0], tensor.shape[0] - box.global_offset[0])
    if rows > 0:
        yield Piece(tensor, box.global_offset, box.origin, (rows, *box.local_shape[1:]))


VOCAB = Rules(pieces, drops_padding=True)
