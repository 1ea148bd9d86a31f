"""Layout "gated_qkv": a fused projection of queries, gates, keys and values, taken apart into three tensors.

Its rows go group by group: the queries of the group, their gates, its key, its value. The Hugging Face tensor of
queries has the gate of each head behind its query.
Source: megatron/core/transformer/attention.py, `SelfAttention.get_query_key_value_tensors` with `output_gate`;
transformers, models/qwen3_next/modeling_qwen3_next.py (`Qwen3NextAttention.forward`).
"""

from __future__ import annotations

from collections.abc import Iterator

from shardmerge.common.architectures import Claim, Tensor

from .box import Box, Dimensions, Piece, Rules, require_shape
from .groups import Section, grouped


def pieces(box: Box, claim: Claim, dimensions: Dimensions) -> Iterator[Piece]:
    """Yield what the box holds of the queries, the gates, the key and the value of each group.

    Args:
        box: what a rank holds of the fused projection.
        claim: its tensors are those of queries with gates, of keys, and of values; its row says whether queries and
            gates alternate head by head in the fused projection too.
        dimensions: `heads`, `groups` and `head_dim` are looked up.

    Raises:
        MismatchError: the heads do not fit.
    """
    queries, keys, values = claim.tensors
    head_dim, groups = dimensions["head_dim"], dimensions["groups"]
    heads = dimensions["heads"] // groups
    gated_rows = 2 * heads * head_dim
    group_rows = gated_rows + 2 * head_dim
    require_shape(queries, box.global_shape, (groups * group_rows, *queries.shape[1:]))
    sections = (
        *_gated(queries, heads, head_dim, alternate=claim.row.interleaved),
        Section(keys, gated_rows, head_dim, 0, head_dim),
        Section(values, gated_rows + head_dim, head_dim, 0, head_dim),
    )
    yield from grouped(box, groups, group_rows, sections)


def _gated(tensor: Tensor, heads: int, head_dim: int, *, alternate: bool) -> Iterator[Section]:
    """Yield the sections of the queries and gates of a group's heads, in the order of the fused projection."""
    step = 2 * heads * head_dim
    if alternate:
        yield Section(tensor, 0, step, 0, step)
        return
    for of_gate in range(2):
        for head in range(heads):
            first, target = (of_gate * heads + head) * head_dim, (2 * head + of_gate) * head_dim
            yield Section(tensor, first, head_dim, target, step)


GATED_QKV = Rules(pieces, dimensions=("heads", "groups", "head_dim"), is_attention=True)
