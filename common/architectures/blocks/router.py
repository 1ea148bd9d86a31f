"""Rows of the routers that choose the experts of a token; their settings.

Source: megatron/core/transformer/moe/router.py.
"""

from __future__ import annotations

from ..dimensions import integer
from ..keys import LAYER
from ..rows import Row, same
from ..settings.says import Config, Says, derived, flag, key


def plain_router(hf_prefix: str) -> tuple[Row, ...]:
    """Return the row of a router without a bias."""
    return (same(LAYER + "mlp.router.weight", hf_prefix + "weight", "num_experts", "hidden", where="moe"),)


def biased_router(hf_prefix: str) -> tuple[Row, ...]:
    """Return the rows of a router whose scores are corrected by a bias for each expert, which stays float32."""
    return router_with_bias(hf_prefix + "weight", hf_prefix + "e_score_correction_bias")


def router_with_bias(weight: str, bias: str) -> tuple[Row, ...]:
    """Return the rows of such a router whose Hugging Face tensors have these names."""
    return (
        same(LAYER + "mlp.router.weight", weight, "num_experts", "hidden", where="moe"),
        same(LAYER + "mlp.router.expert_bias", bias, "num_experts", where="moe", float32=True),
    )


EXPERTS_PER_TOKEN = key("experts_per_token", "num_experts_per_tok")


def biased_router_settings(
    groups: tuple[int, int], scaling: float, *, normalized: bool = True
) -> tuple[Says, ...]:
    """Return the settings of a router of sigmoids with a bias, and with groups scored by their two best experts.

    Source: transformers, models/deepseek_v3/modeling_deepseek_v3.py (`DeepseekV3TopkRouter`); vLLM and SGLang read
    `scoring_func` and `topk_method` besides.

    Args:
        groups: Where config.json says nothing, how many groups there are, and how many of them a token may use.
        scaling: Where config.json says nothing, the factor on the weights of experts.
        normalized: Where config.json says nothing, whether these weights add up to 1 before.

    Returns:
        Rows.
    """
    return (
        key("router_score", "scoring_func", otherwise="sigmoid"),
        key("router_bias", "topk_method", otherwise=True, reads=lambda method: method == "noaux_tc"),
        *grouped_router_settings(groups, scaling, normalized=normalized),
    )


def grouped_router_settings(
    groups: tuple[int, int], scaling: float, *, normalized: bool = True
) -> tuple[Says, ...]:
    """Return those of these settings that are neither the score nor the bias.

    Args:
        groups: Where config.json says nothing, how many groups there are, and how many of them a token may use.
        scaling: Where config.json says nothing, the factor on the weights of experts.
        normalized: Where config.json says nothing, whether these weights add up to 1 before.

    Returns:
        Rows.
    """

    def limit(config: Config) -> list[int] | None:
        all_groups, used = integer(config, "n_group", groups[0]), integer(config, "topk_group", groups[1])
        if 0 in (config.get("n_group"), config.get("topk_group")) or used > all_groups:
            raise ValueError(f"{used} of {all_groups} groups")
        return [all_groups, used] if used < all_groups else None

    keys = ("n_group", "topk_group")
    return (
        EXPERTS_PER_TOKEN,
        flag("router_normalized", "norm_topk_prob", otherwise=normalized),
        key("router_scaling", "routed_scaling_factor", otherwise=scaling),
        derived("router_groups", keys, limit),
        derived("router_group_score", keys, lambda config: 2 if limit(config) else None),
    )
