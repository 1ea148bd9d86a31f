"""What transformers' configs of single architectures call otherwise than most, or have besides.

Must not know megatron-core. Source: transformers 5, models/*/configuration_*.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.worlds.families import Family

Json = dict[str, Any]


def _mistral(family: Family, config: Json) -> Json:
    return config | {"sliding_window": family.window or None}


def _olmoe(family: Family, config: Json) -> Json:
    assert family.experts is not None
    del config["head_dim"]
    return config | {
        "intermediate_size": family.experts.width,
        "num_experts": family.experts.num_experts,
        "num_experts_per_tok": family.experts.top_k,
        "norm_topk_prob": family.experts.normalized,
    }


def _minimax_m2(family: Family, config: Json) -> Json:
    """The published file says how many channels rotate; transformers 5 adds which part that is."""
    assert family.experts is not None
    return config | {
        "intermediate_size": family.experts.width,
        "num_local_experts": family.experts.num_experts,
        "num_experts_per_tok": family.experts.top_k,
        "rotary_dim": int(family.head_channels * family.rotated),
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
    }


# architecture -> the arguments of its config class, from a family and what most classes share
OWN_WORDS: dict[str, Callable[[Family, Json], Json]] = {
    "MistralForCausalLM": _mistral,
    "OlmoeForCausalLM": _olmoe,
    "MiniMaxM2ForCausalLM": _minimax_m2,
}
