"""Kimi-K2.5: Kimi-K2, which is DeepSeek-V3, beside a vision tower and what projects its output.

All names of the language model, its head too, have one prefix. Published experts are packed to four bits by
compressed-tensors, as the language model's own config says; what is exported here is not.
Source: vllm/model_executor/models/kimi_k25.py; transformers, models/kimi_k25/modeling_kimi_k25.py and
conversion_mapping.py ("kimi_k25"); Megatron-Bridge, models/kimi_vl/kimi_k25_vl_bridge.py.
"""

from __future__ import annotations

from ...composites import composite_of
from ...rows import Composite
from ..latent.deepseek import DEEPSEEK_V3

KIMI_K25 = composite_of(
    DEEPSEEK_V3,
    "KimiK25ForConditionalGeneration",
    renamed=(("", "language_model."),),
    place=Composite(
        "text_config",
        "language_model.",
        ("vision_tower.", "mm_projector."),
        "vision_config",
        "vllm/model_executor/models/kimi_k25.py",
        tied=True,
    ),
    vision_keys=("vision_tower.", "mm_projector.", "visual."),
    model_types=("kimi_k25",),
    oracles=("Megatron-Bridge", "transformers"),
    aliases=("Kimi_K25ForConditionalGeneration",),
)
