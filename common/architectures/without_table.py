"""Published architectures that have no table, by their names in config.json, and why not: a visible list.

Decides what a user of such a model is told. Whether there is a table is decided by the registry. Must not know configs.
Sources: each name is one that vllm/model_executor/models/registry.py registers. What they need: transformers and
vllm/models for the models, megatron-core 0.19.2 for what it builds, and megatron-bridge 0.6.2 for classes of its own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WithoutTable:
    """Architectures of one family.

    Attributes:
        names: What config.json may say under "architectures".
        models: The models that are published so.
        reason: Why there is no table, as a whole sentence.
    """

    names: tuple[str, ...]
    models: str
    reason: str


OWN_LAYERS = "megatron-core 0.19 does not build that, and training programs add layers of their own."
WITHOUT_TABLE = (
    WithoutTable(
        ("Step3p5ForCausalLM", "Step3p7ForConditionalGeneration"),
        "Step-3.5-Flash and Step-3.7-Flash",
        f"Layers differ in the number of heads, and each head has one gate; {OWN_LAYERS}",
    ),
    WithoutTable(
        ("MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM"),
        "MiMo-V2-Flash and MiMo-V2.5",
        f"Heads of values are narrower than those of keys, and layers differ in their number; {OWN_LAYERS}",
    ),
    WithoutTable(
        ("Gemma4ForConditionalGeneration", "Gemma4ForCausalLM", "Gemma4UnifiedForConditionalGeneration"),
        "Gemma 4",
        f"Layers differ in the width of heads, take keys for values, and have a scalar each; {OWN_LAYERS}",
    ),
    WithoutTable(
        ("DeepseekV4ForCausalLM", "DeepseekV4ForConditionalGeneration", "DeepseekV41ForCausalLM"),
        "DeepSeek-V4",
        "megatron-core 0.19 has neither its hyper-connections nor its compressed attention nor its routing by hash.",
    ),
    WithoutTable(
        ("KimiK3ForConditionalGeneration", "KimiLinearForCausalLM"),
        "Kimi-K3 and Kimi-Linear",
        "megatron-core 0.19 has no Kimi Delta Attention.",
    ),
    WithoutTable(
        ("MiniMaxM3SparseForConditionalGeneration", "MiniMaxM3SparseForCausalLM"),
        "MiniMax-M3",
        "megatron-core 0.19 has an indexer for latent attention alone, and this model has one for grouped queries.",
    ),
)


def reason_of(architecture: str) -> str:
    """Return why an architecture has no table, or "" for one that is not listed."""
    return next((one.reason for one in WITHOUT_TABLE if architecture in one.names), "")
