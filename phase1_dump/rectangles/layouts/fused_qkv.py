"""Layout "fused_qkv": one fused projection stays one tensor, in which all queries come before keys and values.

Megatron's rows go group by group, as in layout "qkv"; the rows of the Hugging Face tensor are all queries, all keys,
all values. A cut may fall anywhere between rows.
Source: megatron-bridge, models/bailing/modeling_bailing_moe_v2.py (`BailingMoeV2Attention.forward`).
"""

from __future__ import annotations

from collections.abc import Iterator

from shardmerge.common.architectures import Claim

from .box import Box, Dimensions, Piece, Rules, require_shape


def pieces(box: Box, claim: Claim, dimensions: Dimensions) -> Iterator[Piece]:
    """Yield what the box holds of the queries, the key and the value of each group.

    Args:
        box: what a rank holds of the fused projection.
        claim: it has one tensor.
        dimensions: `heads`, `groups` and `head_dim` are looked up.

    Raises:
        MismatchError: the heads do not fit.
    """
    (tensor,) = claim.tensors
    head_dim, groups = dimensions["head_dim"], dimensions["groups"]
    query_rows = dimensions["heads"] // groups * head_dim
    group_rows = query_rows + 2 * head_dim
    require_shape(tensor, box.global_shape, (groups * group_rows, *tensor.shape[1:]))
    queries, keys = groups * query_rows, groups * head_dim
    for group in range(groups):
        base = group * group_rows
        for inside, row, rows in (
            (0, group * query_rows, query_rows),
            (query_rows, queries + group * head_dim, head_dim),
            (query_rows + head_dim, queries + keys + group * head_dim, head_dim),
        ):
            low = max(base + inside, box.global_offset[0])
            high = min(base + inside + rows, box.global_offset[0] + box.local_shape[0])
            if low < high:
                offset = (row + low - base - inside, *box.global_offset[1:])
                source = (low - box.global_offset[0], *box.origin[1:])
                yield Piece(tensor, offset, source, (high - low, *box.local_shape[1:]))


# It has no name for the scales of a KV cache, so it is not told as an attention.
FUSED_QKV = Rules(pieces, dimensions=("heads", "groups", "head_dim"))
