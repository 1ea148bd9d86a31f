"""Layout "qkv": one fused projection of queries, keys and values, taken apart into three tensors.

Its rows go group by group: the queries of the group, its key, its value. A cut may fall anywhere between rows.
Source: megatron/core/transformer/attention.py, `SelfAttention.get_query_key_value_tensors`.
"""

from __future__ import annotations

from collections.abc import Iterator

from shardmerge.common.architectures import Claim, Tensor

from .box import Box, Dimensions, Piece, Rules, require_shape


def pieces(box: Box, claim: Claim, dimensions: Dimensions) -> Iterator[Piece]:
    """Yield what the box holds of the queries, the key and the value of each group.

    Args:
        box: what a rank holds of the fused projection.
        claim: its tensors are those of queries, keys and values.
        dimensions: `heads`, `groups` and `head_dim` are looked up.

    Raises:
        MismatchError: the heads do not fit.
    """
    tensors = claim.tensors
    head_dim, groups = dimensions["head_dim"], dimensions["groups"]
    query_rows = dimensions["heads"] // groups * head_dim
    sections = ((0, query_rows), (query_rows, head_dim), (query_rows + head_dim, head_dim))
    whole = (groups * (query_rows + 2 * head_dim), *tensors[0].shape[1:])
    require_shape(tensors[0], box.global_shape, whole)
    for group in range(groups):
        base = group * (query_rows + 2 * head_dim)
        for tensor, (first, rows) in zip(tensors, sections, strict=True):
            yield from _shared_rows(box, tensor, base + first, group * rows, rows)


def _shared_rows(box: Box, tensor: Tensor, fused_row: int, row: int, rows: int) -> Iterator[Piece]:
    """Yield what the box holds of `rows` rows at `fused_row`, which are those at `row` of `tensor`."""
    low = max(fused_row, box.global_offset[0])
    high = min(fused_row + rows, box.global_offset[0] + box.local_shape[0])
    if low < high:
        offset = (row + low - fused_row, *box.global_offset[1:])
        source = (low - box.global_offset[0], *box.origin[1:])
        yield Piece(tensor, offset, source, (high - low, *box.local_shape[1:]))


QKV = Rules(pieces, dimensions=("heads", "groups", "head_dim"), is_attention=True)
