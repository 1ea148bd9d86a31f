"""Layout "qkv": one fused projection of queries, keys and values, taken apart into three tensors.

Its rows go group by group: the queries of the group, its key, its value. A cut may fall anywhere between rows.
Source: megatron/core/transformer/attention.py, `SelfAttention.get_query_key_value_tensors`.
"""

from __future__ import annotations

from collections.abc import Iterator

from shardmerge.common.architectures import Claim

from .box import Box, Dimensions, Piece, Rules, require_shape
from .groups import Section, grouped


def pieces(box: Box, claim: Claim, dimensions: Dimensions) -> Iterator[Piece]:
    """Yield what the box holds of the queries, the key and the value of each group.

    Args:
        box: what a rank holds of the fused projection.
        claim: its tensors are those of queries, keys and values.
        dimensions: `heads`, `groups` and `head_dim` are looked up.

    Raises:
        MismatchError: the heads do not fit.
    """
    queries, keys, values = claim.tensors
    head_dim, groups = dimensions["head_dim"], dimensions["groups"]
    query_rows = dimensions["heads"] // groups * head_dim
    group_rows = query_rows + 2 * head_dim
    require_shape(queries, box.global_shape, (groups * group_rows, *queries.shape[1:]))
    sections = (
        Section(queries, 0, query_rows, 0, query_rows),
        Section(keys, query_rows, head_dim, 0, head_dim),
        Section(values, query_rows + head_dim, head_dim, 0, head_dim),
    )
    yield from grouped(box, groups, group_rows, sections)


QKV = Rules(pieces, dimensions=("heads", "groups", "head_dim"), is_attention=True)
