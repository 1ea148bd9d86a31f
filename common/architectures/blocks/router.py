"""Rows of the routers that choose the experts of a token.

Source: megatron/core/transformer/moe/router.py.
"""

from __future__ import annotations

from ..keys import LAYER
from ..rows import Row, same


def biased_router(hf_prefix: str) -> tuple[Row, ...]:
    """Return the rows of a router whose scores are corrected by a bias for each expert, which stays float32."""
    return (
        same(LAYER + "mlp.router.weight", hf_prefix + "weight", "num_experts", "hidden", where="moe"),
        same(
            LAYER + "mlp.router.expert_bias",
            hf_prefix + "e_score_correction_bias",
            "num_experts",
            where="moe",
            float32=True,
        ),
    )
