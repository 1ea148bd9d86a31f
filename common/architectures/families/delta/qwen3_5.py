"""Qwen3.5 and Qwen3.5-MoE, with or without vision: as Qwen3-Next, but a DeltaNet's projections are four plain tensors.

All layers are dense, or all have experts; so has the step of multi-token prediction. Published files of Qwen3.5-MoE
pack the decoder's experts and hold those of the step one by one, those of Qwen3.6 pack both. They are composites: names
of the decoder have the prefix `model.language_model.`, those of the step have none.
Source: transformers, models/{qwen3_5,qwen3_5_moe}/{configuration,modeling}_*.py; vllm, qwen3_5_mtp.py;
megatron-bridge, models/qwen/qwen35_bridge.py.
"""

from __future__ import annotations

from dataclasses import replace

from ...blocks.attention import rotated_heads
from ...blocks.delta_net import DELTA_NORMS, DELTA_SETTINGS, DESCRIBED_WHOLE, STACKED, delta_net
from ...blocks.embeddings import EMBEDDINGS, TIED, rms_norms
from ...blocks.mlp import DENSE_MLP
from ...blocks.mtp import OneStep, one_step
from ...blocks.router import EXPERTS_PER_TOKEN
from ...rows import Architecture, Config, Layers, Spelling, Spellings
from ...settings.rope import QUARTER, sections
from ...settings.says import always
from ..composite.qwen3_vl import qwen_composite
from .qwen3_next import (
    ATTENTION,
    EXPERTS,
    expert_dimensions,
    gated_dimensions,
    gated_flags,
    mixed_layers,
    step_of,
)

STEP = OneStep("mtp_num_hidden_layers")
DECODER = EMBEDDINGS + DELTA_NORMS + ATTENTION + delta_net(STACKED)
SETTINGS = (*rotated_heads(rotated=QUARTER), *DELTA_SETTINGS, rms_norms(), TIED, STEP.setting())


def _dense_layers(config: Config) -> Layers:
    return mixed_layers(config, frozenset(), STEP.steps(config)[0], moe_steps=False)


def _moe_layers(config: Config) -> Layers:
    decoder = frozenset(range(config["num_hidden_layers"]))
    return mixed_layers(config, decoder, STEP.steps(config)[0], moe_steps=True)


QWEN3_5 = Architecture(
    "Qwen3_5ForCausalLM",
    "transformers models/qwen3_5/modeling_qwen3_5.py",
    DECODER + DENSE_MLP + one_step(),
    gated_dimensions,
    gated_flags,
    _dense_layers,
    model_types=("qwen3_5_text", "qwen3_5"),
    mtp=step_of(STEP),
    refusals=DESCRIBED_WHOLE,
    settings=SETTINGS,
    oracles=("Megatron-Bridge", "transformers"),
)

QWEN3_5_MOE = Architecture(
    "Qwen3_5MoeForCausalLM",
    "transformers models/qwen3_5_moe/modeling_qwen3_5_moe.py",
    DECODER + EXPERTS + one_step(),
    # no layer is dense, and config.json does not say how wide one would be
    lambda config: gated_dimensions({**config, "intermediate_size": 0}) | expert_dimensions(config),
    gated_flags,
    _moe_layers,
    model_types=("qwen3_5_moe_text", "qwen3_5_moe"),
    mtp=step_of(STEP),
    refusals=DESCRIBED_WHOLE,
    settings=(
        *SETTINGS,
        EXPERTS_PER_TOKEN,
        always("router_normalized", True),
        always("shared_expert_gate", True),
    ),
    oracles=("Megatron-Bridge", "transformers"),
    experts=Spellings((Spelling.PACKED, Spelling.PER_EXPERT), (Spelling.PER_EXPERT, Spelling.PACKED)),
)

AXES = sections([11, 11, 10])
QWEN3_5_VL = qwen_composite(
    replace(QWEN3_5, settings=(*QWEN3_5.settings, *AXES)),
    "Qwen3_5ForConditionalGeneration",
    "qwen3_5",
    "transformers models/qwen3_5/modeling_qwen3_5.py",
)
QWEN3_5_MOE_VL = qwen_composite(
    replace(QWEN3_5_MOE, settings=(*QWEN3_5_MOE.settings, *AXES)),
    "Qwen3_5MoeForConditionalGeneration",
    "qwen3_5_moe",
    "transformers models/qwen3_5_moe/modeling_qwen3_5_moe.py",
)
