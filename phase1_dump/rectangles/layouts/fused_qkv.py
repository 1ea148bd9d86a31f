"""Layout "fused_qkv": one fused projection stays one tensor, in which all queries come before keys and values.

Megatron's rows go group by group, as in layout "qkv"; the rows of the Hugging Face tensor are all queries, all keys,
all values. A cut may fall anywhere between rows.
Source: megatron-bridge, models/bailing/modeling_bailing_moe_v2.py (`BailingMoeV2Attention.forward`).
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
    sections = (
        Section(tensor, 0, query_rows, 0, query_rows),
        Section(tensor, query_rows, head_dim, queries, head_dim),
        Section(tensor, query_rows + head_dim, head_dim, queries + keys, head_dim),
    )
    yield from grouped(box, groups, group_rows, sections)


# It has no name for the scales of a KV cache, so it is not told as an attention.
FUSED_QKV = Rules(pieces, dimensions=("heads", "groups", "head_dim"))
