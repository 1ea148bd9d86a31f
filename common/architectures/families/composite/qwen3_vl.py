"""Qwen3-VL: Qwen3 and Qwen3-MoE beside a vision tower; experts are packed, as they multiply from the right.

The vision tower also adds to the hidden states after the first layers (deepstack); that has no weights in the decoder.
The MoE's published tensors are [experts, hidden, gate and up] and [experts, width, hidden], and vLLM takes no others:
transformers reads both orientations and writes the other one.
Source: transformers, models/{qwen3_vl,qwen3_vl_moe}/modeling_*.py; vllm/model_executor/models/qwen3_vl_moe.py
(`is_fused_checkpoint_transposed`).
"""

from __future__ import annotations

from dataclasses import replace

from ...blocks.attention import GROUPED_QUERY_ATTENTION, HEAD_NORMS, rotated_heads
from ...blocks.embeddings import EMBEDDINGS, NORMS, TIED, rms_norms
from ...blocks.experts import both_spellings
from ...blocks.mlp import DENSE_MLP, ROUTED_EXPERTS, activation
from ...blocks.router import EXPERTS_PER_TOKEN, plain_router
from ...composites import Renamed, composite_of
from ...dimensions import common_dimensions, common_flags, integer, layers_alike, refuse_true
from ...keys import HF_LAYER
from ...rows import Architecture, Composite, Config, Spelling, Spellings
from ...settings.rope import sections
from ...settings.says import always
from ..qwen3_moe import layers_with_experts, number_of_experts

AXES = [24, 20, 20]  # pairs of a head for time, height and width, where config.json says nothing
QWEN_NAMES: Renamed = (("model.", "model.language_model."),)
# Megatron-Bridge's own tower; mcore-bridge's, which is transformers'
QWEN_VISION_KEYS = ("vision_model.", "visual.")
BRIDGE_AND_TRANSFORMERS = ("Megatron-Bridge", "transformers")
ALL_THREE = ("Megatron-Bridge", "mcore-bridge", "transformers")
WIDTHS = (("text_config.hidden_size", "vision_config.out_hidden_size"),)


PACKED_IN_TRANSFORMERS = Spellings((Spelling.PACKED,), only="transformers takes its experts packed alone.")


def qwen_composite(
    language_model: Architecture,
    name: str,
    model_type: str,
    source: str,
    oracles: tuple[str, ...] = BRIDGE_AND_TRANSFORMERS,
) -> Architecture:
    """Return the table of one of Qwen's composites.

    Args:
        language_model: The table of its language model.
        name: What config.json of the whole gives in `architectures`.
        model_type: What it gives in `model_type`.
        source: Where names and places are known from.
        oracles: Programs that tests compare it with.

    Returns:
        The table of the whole.
    """
    return composite_of(
        language_model,
        name,
        renamed=QWEN_NAMES,
        place=Composite("text_config", "language_model.", ("model.visual.",), "vision_config", source),
        vision_keys=QWEN_VISION_KEYS,
        model_types=(model_type,),
        oracles=oracles,
        agree=WIDTHS,
    )


def _flags(config: Config) -> frozenset[str]:
    refuse_true(config, "attention_bias")  # of no published model: the output projection has one then, too
    return common_flags(config)


def _dimensions(config: Config) -> dict[str, int]:
    experts = {"num_experts": number_of_experts(config), "moe_ffn": integer(config, "moe_intermediate_size")}
    return common_dimensions(config) | experts


ROTATED = (*rotated_heads(500000.0), *sections(AXES))
DECODER = EMBEDDINGS + NORMS + GROUPED_QUERY_ATTENTION + HEAD_NORMS + DENSE_MLP
SETTINGS = (*ROTATED, rms_norms(), activation(), TIED)

_TEXT = Architecture(
    "Qwen3VLTextModel",
    "transformers models/qwen3_vl/modeling_qwen3_vl.py",
    DECODER,
    common_dimensions,
    _flags,
    layers_alike("dense"),
    settings=SETTINGS,
)
_MOE_TEXT = replace(
    _TEXT,
    name="Qwen3VLMoeTextModel",
    source="transformers models/qwen3_vl_moe/modeling_qwen3_vl_moe.py",
    rows=DECODER + plain_router(HF_LAYER + "mlp.gate.") + both_spellings(ROUTED_EXPERTS, transposed=True),
    dimensions=_dimensions,
    layers=layers_with_experts,
    settings=(*SETTINGS, EXPERTS_PER_TOKEN, always("router_normalized", True)),
    experts=PACKED_IN_TRANSFORMERS,
)

QWEN3_VL = qwen_composite(
    _TEXT,
    "Qwen3VLForConditionalGeneration",
    "qwen3_vl",
    "transformers models/qwen3_vl/modeling_qwen3_vl.py",
    ALL_THREE,
)
QWEN3_VL_MOE = qwen_composite(
    _MOE_TEXT,
    "Qwen3VLMoeForConditionalGeneration",
    "qwen3_vl_moe",
    "transformers models/qwen3_vl_moe/modeling_qwen3_vl_moe.py; vllm qwen3_vl_moe.py",
    ALL_THREE,
)
