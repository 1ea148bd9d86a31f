"""Qwen3-Next: most layers have a Gated DeltaNet, every fourth attention with an output gate; all have experts.

Norms are stored minus one, but for the one inside of a DeltaNet. Published config.json do not speak of the step of
multi-token prediction that the files hold: `mtp.layers.0`, a layer with attention and experts.
Source: transformers, models/qwen3_next/{configuration,modeling}_qwen3_next.py; vllm, qwen3_next_mtp.py and
config/speculative.py; megatron-bridge, models/qwen/qwen3_next_bridge.py.
"""

from __future__ import annotations

from ...blocks.attention import gated_attention, head_norms, rotated_heads
from ...blocks.delta_net import (
    DELTA,
    DELTA_NORMS,
    DELTA_SETTINGS,
    DESCRIBED_WHOLE,
    FULL,
    STACKED_BY_HEAD,
    delta_dimensions,
    delta_net,
    linear_layers,
)
from ...blocks.embeddings import EMBEDDINGS, TIED, rms_norms
from ...blocks.experts import EITHER, IN_EITHER
from ...blocks.mlp import DENSE_MLP, GATED_SHARED_EXPERT
from ...blocks.mtp import FIRST, LAST, NUMBER, OneStep, one_step
from ...blocks.router import EXPERTS_PER_TOKEN, plain_router
from ...dimensions import common_dimensions, common_flags, integer, refuse_true
from ...keys import HF_LAYER, STEP_LAYER
from ...rows import Architecture, Config, Layers, MultiTokenPrediction
from ...settings.rope import QUARTER
from ...settings.says import always, key
from ..qwen3_moe import layers_with_experts, number_of_experts

STEP = OneStep(NUMBER)
ATTENTION = gated_attention(HF_LAYER + "self_attn.", FULL) + head_norms(where=FULL)
EXPERTS = plain_router(HF_LAYER + "mlp.gate.") + GATED_SHARED_EXPERT + IN_EITHER


def gated_dimensions(config: Config) -> dict[str, int]:
    """Return the dimensions of attention with an output gate, of a DeltaNet, and of a step.

    Raises KeyError without head_dim, which no width of the model implies here.
    """
    integer(config, "head_dim")
    found = common_dimensions(config)
    return found | delta_dimensions(config) | {"gated_q": 2 * found["q"], "two_hidden": 2 * found["hidden"]}


def expert_dimensions(config: Config) -> dict[str, int]:
    """Return the dimensions of routed experts, and of the shared one."""
    return {
        "num_experts": number_of_experts(config),
        "moe_ffn": integer(config, "moe_intermediate_size"),
        "shared_ffn": integer(config, "shared_expert_intermediate_size"),
    }


def gated_flags(config: Config) -> frozenset[str]:
    """Return the flags. Raises ValueError for what has tensors of which the table knows nothing."""
    refuse_true(config, "attention_bias", "qkv_bias", "mtp_use_dedicated_embeddings")
    if config.get("attn_output_gate", True) is not True:  # vLLM reads it
        raise ValueError(f"attn_output_gate = {config['attn_output_gate']!r:.40}")
    return common_flags(config)


def mixed_layers(config: Config, moe: frozenset[int], steps: int, *, moe_steps: bool) -> Layers:
    """Return the sets of layers.

    Args:
        config: What config.json holds.
        moe: Numbers of the decoder's layers with experts.
        steps: How many steps of multi-token prediction there are, each a layer with attention.
        moe_steps: Whether they have experts.

    Returns:
        The sets.
    """
    linear = linear_layers(config)
    every, added = range(len(linear) + steps), range(len(linear), len(linear) + steps)
    delta = frozenset(layer for layer, is_linear in enumerate(linear) if is_linear)
    routed = moe | frozenset(added if moe_steps else ())
    return {
        "layers": every,
        DELTA: delta,
        FULL: frozenset(every) - delta,
        "moe": routed,
        "dense": frozenset(every) - routed,
        FIRST: added,
        LAST: added,
    }


def step_of(one: OneStep) -> MultiTokenPrediction:
    """Return how a step is stored."""
    return MultiTokenPrediction(
        one.steps,
        STEP_LAYER,
        (HF_LAYER, "mtp.layers.{mtp}."),
        one.without,
        "vllm/model_executor/models/{qwen3_next_mtp,qwen3_5_mtp}.py",
        one.spoken,
    )


def _layers(config: Config) -> Layers:
    (steps, _), routed = STEP.steps(config), number_of_experts(config) > 0
    decoder = layers_with_experts(config)["moe"]
    moe = frozenset(layer for layer in range(config["num_hidden_layers"]) if layer in decoder)
    return mixed_layers(config, moe, steps, moe_steps=routed)


QWEN3_NEXT = Architecture(
    "Qwen3NextForCausalLM",
    "transformers models/qwen3_next/modeling_qwen3_next.py",
    EMBEDDINGS + DELTA_NORMS + ATTENTION + delta_net(STACKED_BY_HEAD) + DENSE_MLP + EXPERTS + one_step(),
    lambda config: gated_dimensions(config) | expert_dimensions(config),
    gated_flags,
    _layers,
    model_types=("qwen3_next",),
    mtp=step_of(STEP),
    refusals=DESCRIBED_WHOLE,
    settings=(
        *rotated_heads(rotated=QUARTER),
        *DELTA_SETTINGS,
        rms_norms(),
        TIED,
        EXPERTS_PER_TOKEN,
        key("router_normalized", "norm_topk_prob", otherwise=True),
        always("shared_expert_gate", True),
        STEP.setting(),
    ),
    experts=EITHER,
    oracles=("Megatron-Bridge", "transformers"),
)
