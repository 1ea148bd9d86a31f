"""The oracle of each family of the tests: a program that is independent of shardmerge's tables, or why there is none.

Decides who is asked, and how the model is built for it. Must not know how a program is asked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from tests.worlds.by_hand import BY_HAND
from tests.worlds.families import FAMILIES, Family
from tests.worlds.mtp import COPIES, MTP_FAMILIES, NEMOTRON_H_MTP
from tests.worlds.widths import Steps

BRIDGE: Final = "Megatron-Bridge"
MCORE_BRIDGE: Final = "mcore-bridge"
FULL_QUERY: Final = "megatron-core 0.19 fuses a norm into the projection of a full query, which no table has."
DENSE_STEP: Final = replace(NEMOTRON_H_MTP, name="nemotron_h_dense_step", mtp=Steps(1, "-*E"))


@dataclass(frozen=True, slots=True)
class Oracle:
    """Who exports a family.

    Attributes:
        program: Its name. "": no program knows the class, and `reason` says what shows its table instead.
        te: Whether it is given Transformer Engine's modules, or those of the local spec.
        copies: Names below a step that it leaves out -> the tensor of the model that each repeats.
        held: Whether published files, and so the reference, hold these copies, and the program writes them.
        packed: Whether it is told that published files pack the decoder's experts, which it would see in a file.
        reason: Why this program and these modules, as a sentence.
    """

    program: str = BRIDGE
    te: bool = True
    copies: dict[str, str] | None = None
    held: bool = False
    packed: bool = False
    reason: str = ""


ORACLES: Final[dict[str, Oracle]] = {
    "llama": Oracle(),
    "llama_tied": Oracle(),
    "llama4": Oracle(
        "",
        reason="Megatron-Bridge does not know Llama 4, and mcore-bridge knows it beside a vision tower. transformers "
        "computes of what is published what Megatron computed, and something else where a row is changed "
        "(tests/oracles/test_logits.py).",
    ),
    "mistral": Oracle(),
    "qwen2": Oracle(),
    "qwen3": Oracle(),
    "qwen3_moe": Oracle(),
    "olmoe": Oracle(),
    "minimax_m2": Oracle(),
    "ernie4_5_moe": Oracle(),
    "exaone_moe": Oracle(),
    "qwen2_moe": Oracle(MCORE_BRIDGE, reason="Megatron-Bridge 0.6.2 does not know the class."),
    "qwen3_next": Oracle(),
    "qwen3_5": Oracle(),
    "qwen3_5_moe": Oracle(packed=True),
    "mixtral": Oracle(
        "",
        reason="Neither Megatron-Bridge nor mcore-bridge knows Mixtral. Model-Optimizer imports what transformers "
        "wrote, every byte comes back, and logits agree (tests/journeys/test_round_trip.py).",
    ),
    "gpt_oss": Oracle(),
    "deepseek_v3": Oracle(),
    "deepseek_v3_full_query": Oracle(te=False, reason=FULL_QUERY),
    "deepseek_v2": Oracle(),
    "deepseek_v2_lite": Oracle(te=False, reason=FULL_QUERY),
    "kimi_k2": Oracle(),
    "dots1": Oracle(MCORE_BRIDGE, reason="Megatron-Bridge 0.6.2 does not know the class."),
    "glm4_moe": Oracle(),
    "glm4_moe_lite": Oracle(),
    "deepseek_v32": Oracle(
        "",
        reason="Megatron-Bridge does not know DeepSeek-V3.2. transformers computes of what is published what Megatron "
        "computed, and something else where a row is changed (tests/oracles/test_logits.py).",
    ),
    "glm_moe_dsa": Oracle(),
    "gemma3": Oracle(),
    "nemotron": Oracle(),
    "nemotron_h": Oracle(
        reason="Bridge 0.6.2 has no rule for the norm of a hybrid's attention in a local spec."
    ),
    "nemotron_h_latent": Oracle(),
    "qwen3_vl": Oracle(),
    "qwen3_vl_moe": Oracle(),
    "qwen3_5_vl": Oracle(),
    "qwen3_5_moe_vl": Oracle(),
    "kimi_k25": Oracle(),
    "llama4_vl": Oracle(MCORE_BRIDGE, reason="Megatron-Bridge does not know the class."),
    "bailing_moe_v2": Oracle(),
    "bailing_moe_v2_mtp": Oracle(),
    "deepseek_v3_mtp": Oracle(te=False, copies=COPIES),
    "glm4_moe_mtp": Oracle(),
    "glm4_moe_lite_mtp": Oracle(held=True),
    "exaone_moe_mtp": Oracle(),
    "glm_moe_dsa_mtp": Oracle(copies=COPIES),
    "qwen3_next_mtp": Oracle(),
    "qwen3_5_mtp": Oracle(),
    "qwen3_5_moe_mtp": Oracle(packed=True),
    "qwen3_5_vl_mtp": Oracle(),
    "qwen3_5_moe_vl_mtp": Oracle(packed=True),
    "nemotron_h_mtp": Oracle(),
    "nemotron_h_latent_mtp": Oracle(),
    "nemotron_h_mixed_mtp": Oracle(
        "",
        reason="Megatron-Bridge 0.6.2 has no rule for Mamba mixers in a step, which no published model has. "
        "Model-Optimizer imports them and exports one step of them (tests/journeys, tests/peers).",
    ),
    "nemotron_h_dense_step": Oracle(reason="A step with a dense layer, for which Bridge has rules."),
}

# Families that mcore-bridge, too, has to export as their record says: "". Of others, a sentence that says why not.
NO_ROUTER_BIAS: Final = (
    "mcore-bridge reads from a key that transformers does not write whether routers have a bias."
)
BY_KEY_HEADS: Final = (
    "mcore-bridge has the rows of a DeltaNet's projection by heads of keys, where the formula fills others."
)
NOT_REGISTERED: Final = "mcore-bridge 1.6.5 does not know the class."
SECOND: Final[dict[str, str]] = {
    "llama": "",
    "qwen2": "",
    "qwen3": "",
    "qwen3_moe": "",
    "olmoe": "",
    "gpt_oss": "",
    "deepseek_v2": "",
    "glm4_moe": "",
    "glm4_moe_lite": "",
    "glm_moe_dsa": "",
    "qwen3_vl": "",
    "qwen3_vl_moe": "",
    "ernie4_5_moe": NO_ROUTER_BIAS,
    "deepseek_v3": NO_ROUTER_BIAS,
    "deepseek_v32": NO_ROUTER_BIAS,
    "kimi_k2": NO_ROUTER_BIAS,
    "minimax_m2": "mcore-bridge's export of this config.json lacks the norms of queries and keys.",
    "qwen3_next": BY_KEY_HEADS,
    "qwen3_5_vl": BY_KEY_HEADS,
    "qwen3_5_moe_vl": BY_KEY_HEADS,
    "mistral": NOT_REGISTERED,
    "mixtral": NOT_REGISTERED,
    "gemma3": NOT_REGISTERED,
    "llama4": "mcore-bridge knows it beside a vision tower, of which it is the first oracle.",
    "bailing_moe_v2": "mcore-bridge reads config.json with transformers, which does not know the class.",
}


def every_family() -> tuple[Family, ...]:
    """All families of the tests, those with steps of multi-token prediction last."""
    return (*FAMILIES, *BY_HAND, *MTP_FAMILIES, DENSE_STEP)


def recorded_families() -> tuple[Family, ...]:
    """Families that a program exports."""
    return tuple(family for family in every_family() if ORACLES[family.name].program)
