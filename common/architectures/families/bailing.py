"""Bailing V2 (Ling 2.0): one tensor for queries, keys and values, dense first layers, and DeepSeek-V3's experts.

A step of multi-token prediction is a layer after the last. transformers has no such class: published models bring their
own, which reads nothing of `score_function`, `use_rmsnorm` and `moe_router_enable_expert_bias`, as vLLM does.
Source: megatron-bridge, models/bailing/{modeling_bailing_moe_v2,bailing_moe2_bridge}.py; vLLM, bailing_moe.py.
"""

from __future__ import annotations

from ..blocks.attention import BY_CHANNELS, rotated_heads
from ..blocks.embeddings import NORMS, TIED, embeddings, rms_norms
from ..blocks.mlp import DENSE_MLP, ROUTED_EXPERTS, SHARED_EXPERTS, activation
from ..blocks.mtp import NUMBER, decoder_and_steps, promising_none, step_rows, steps_of
from ..blocks.router import grouped_router_settings, router_with_bias
from ..dimensions import (
    common_dimensions,
    common_flags,
    expert_dimensions,
    integer,
    refuse_true,
    set_flags,
    unless_absent,
)
from ..keys import HF_LAYER, LAYER, STEP_LAYER
from ..rows import (
    Architecture,
    Config,
    Layers,
    Layout,
    MultiTokenPrediction,
    Row,
    Spelling,
    Spellings,
    Target,
    same,
)
from ..settings.says import derived, key

ATTENTION, HF_ATTENTION, HF_MLP = LAYER + "self_attention.", HF_LAYER + "attention.", HF_LAYER + "mlp."


def _dimensions(config: Config) -> dict[str, int]:
    experts = expert_dimensions(config, config["num_experts"], _shared_experts(config))
    found = common_dimensions(config) | experts | {"two_hidden": 2 * integer(config, "hidden_size")}
    return found | {"qkv": found["q"] + 2 * found["kv"]}


def _shared_experts(config: Config) -> int:
    """Return how many there are. vLLM alone reads a width of theirs, which must be that of all experts."""
    own, width = "moe_shared_expert_intermediate_size", integer(config, "moe_intermediate_size")
    if unless_absent(config, own, width) != width:
        raise ValueError(f"{own} = {config[own]!r:.40} beside moe_intermediate_size = {width}")
    return unless_absent(config, "num_shared_experts", 1)


def _flags(config: Config) -> frozenset[str]:
    refuse_true(
        config,
        "use_bias",
        "use_qkv_bias",
        "norm_head",  # readers norm the output embedding then
        false=("use_rmsnorm", "moe_router_enable_expert_bias"),
    )
    own = {"head_norms": config.get("use_qk_norm", True), "shared_experts": _shared_experts(config)}
    return common_flags(config) | set_flags(own)


def _layers(config: Config) -> Layers:
    return decoder_and_steps(config, range(config.get("first_k_dense_replace", 1)), steps_of(config))


BAILING_MOE_V2 = Architecture(
    "BailingMoeV2ForCausalLM",
    "megatron-bridge models/bailing/modeling_bailing_moe_v2.py",
    embeddings("model.word_embeddings.weight", "decoder.final_layernorm.weight", "model.norm.weight")
    + NORMS
    + (
        Row(
            (ATTENTION + "linear_qkv.weight",),
            (Target(HF_ATTENTION + "query_key_value.weight", ("qkv", "hidden")),),
            Layout.FUSED_QKV,
            where="layers",
        ),
        same(ATTENTION + "linear_proj.weight", HF_ATTENTION + "dense.weight", "hidden", "q"),
        *(
            same(
                ATTENTION + f"{side[0]}_layernorm.weight",
                HF_ATTENTION + f"{side}_layernorm.weight",
                "head_dim",
                when="head_norms",
            )
            for side in ("query", "key")
        ),
    )
    + DENSE_MLP
    + router_with_bias(HF_MLP + "gate.weight", HF_MLP + "gate.expert_bias")
    + SHARED_EXPERTS
    + ROUTED_EXPERTS
    + step_rows(HF_LAYER, HF_LAYER + "final_layernorm.weight"),
    _dimensions,
    _flags,
    _layers,
    model_types=("bailing_moe_v2", "bailing_moe"),
    mtp=MultiTokenPrediction(
        lambda config: (steps_of(config), 1),
        STEP_LAYER,
        (HF_LAYER, HF_LAYER),
        promising_none,
        "megatron-bridge models/bailing/modeling_bailing_moe_v2.py",
    ),
    settings=(
        *rotated_heads(600000.0, rotated=BY_CHANNELS),
        rms_norms(),
        activation(),
        TIED,
        key("router_score", "score_function", otherwise="sigmoid"),
        key("router_bias", "moe_router_enable_expert_bias", otherwise=True),
        *grouped_router_settings(groups=(8, 4), scaling=1.0),
        derived("mtp_steps", (NUMBER,), steps_of),
    ),
    experts=Spellings(
        (Spelling.PER_EXPERT,), only="Published models bring code of their own, which has experts one by one."
    ),
    oracles=("Megatron-Bridge",),
)
