"""Llama 4 as it is published: its text class beside a vision tower and what projects its output.

All names of the language model, its head too, have one prefix.
Source: transformers, models/llama4/modeling_llama4.py (`Llama4ForConditionalGeneration`); mcore-bridge,
model/mm_gpts/llama4.py; vllm/model_executor/models/mllama4.py.
"""

from __future__ import annotations

from ...composites import composite_of
from ...rows import Composite
from ..llama4 import LLAMA4

LLAMA4_VL = composite_of(
    LLAMA4,
    "Llama4ForConditionalGeneration",
    renamed=(("", "language_model."),),
    place=Composite(
        "text_config",
        "language_model.",
        ("vision_model.", "multi_modal_projector."),
        "vision_config",
        "transformers models/llama4/modeling_llama4.py",
    ),
    # mcore-bridge's tower, which is transformers'
    vision_keys=("visual.", "vision_model.", "multi_modal_projector."),
    model_types=("llama4",),
    oracles=("mcore-bridge", "transformers"),
)
