"""Rows of the indexer that chooses the tokens which sparse attention sees; its settings.

All ranks of a tensor parallel group hold the whole of it. Up to 0.16 megatron-core rotated the last channels of its
heads, where readers rotate the first.
Source: megatron/core/transformer/experimental_attention_variant/dsa.py (`DSAIndexer`).
"""

from __future__ import annotations

from ..keys import HF_LAYER, LAYER
from ..rows import Row, same
from ..settings.says import Says, always, key

INDEXER = LAYER + "self_attention.core_attention.indexer."
HF_INDEXER = HF_LAYER + "self_attn.indexer."
INDEXED = "indexed"  # the set of layers that have one

INDEXER_ROWS: tuple[Row, ...] = (
    same(INDEXER + "linear_wq_b.weight", HF_INDEXER + "wq_b.weight", "index_q", "q_latent", where=INDEXED),
    same(INDEXER + "linear_wk.weight", HF_INDEXER + "wk.weight", "index_dim", "hidden", where=INDEXED),
    same(INDEXER + "k_norm.weight", HF_INDEXER + "k_norm.weight", "index_dim", where=INDEXED),
    same(INDEXER + "k_norm.bias", HF_INDEXER + "k_norm.bias", "index_dim", where=INDEXED),
    same(
        INDEXER + "linear_weights_proj.weight",
        HF_INDEXER + "weights_proj.weight",
        "index_heads",
        "hidden",
        where=INDEXED,
    ),
)


def indexer_settings(*, interleaved: bool) -> tuple[Says, ...]:
    """Return the settings of an indexer; `interleaved` where config.json does not say how it rotates."""
    return (
        always("attention_variant", "dsa"),
        key("indexer_heads", "index_n_heads"),
        key("indexer_head_dim", "index_head_dim"),
        key("indexer_top_k", "index_topk"),
        key("indexer_rope_interleaved", "indexer_rope_interleave", otherwise=interleaved),
        always("indexer_rope_first", True),
        always("indexer_norm_eps", 1e-6),
    )
