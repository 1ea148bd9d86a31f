"""DeepSeek-V3: latent attention, dense first layers, shared experts, and routers with a bias.

The query may be low-rank or not. The norm after a down projection is a module of its own (local spec) or fused into
the up projection (Transformer Engine spec). A step of multi-token prediction is a layer after the last, with experts,
and repeats both embeddings.
Source: transformers, models/deepseek_v3/modeling_deepseek_v3.py (`DeepseekV3Attention`, `DeepseekV3MoE`);
megatron/core/transformer/multi_latent_attention.py.
"""

from __future__ import annotations

from typing import Any

from ..blocks.embeddings import EMBEDDINGS, NORMS, TIED, rms_norms
from ..blocks.mla import LATENT_ATTENTION, LATENT_SETTINGS
from ..blocks.mlp import DENSE_MLP, activation, gated_mlp
from ..blocks.mtp import FIRST, LAST, NUMBER, copied, step_rows, steps_of
from ..blocks.router import biased_router, biased_router_settings
from ..dimensions import common_dimensions, common_flags, integer, set_flags
from ..keys import EXPERT, HF_LAYER, LAYER, STEP_LAYER
from ..rows import Architecture, Config, Layers, MultiTokenPrediction
from ..settings.says import derived

ALIAS = "num_mtp_layers"


def _dimensions(config: Config) -> dict[str, int]:
    heads, moe_ffn = integer(config, "num_attention_heads"), integer(config, "moe_intermediate_size")
    nope, rope = integer(config, "qk_nope_head_dim"), integer(config, "qk_rope_head_dim")
    value, latent = integer(config, "v_head_dim"), integer(config, "kv_lora_rank")
    return common_dimensions(config) | {
        "num_experts": config["n_routed_experts"],
        "moe_ffn": moe_ffn,
        "shared_ffn": moe_ffn * integer(config, "n_shared_experts", 0),
        "q": heads * (nope + rope),
        "q_latent": config.get("q_lora_rank") or 0,
        "kv_latent": latent,
        "kv_down": latent + rope,
        "kv_up": heads * (nope + value),
        "attention_out": heads * value,
        "two_hidden": 2 * integer(config, "hidden_size"),
    }


def _flags(config: Config) -> frozenset[str]:
    low_rank = bool(config.get("q_lora_rank"))
    own = {"q_lora": low_rank, "q_full": not low_rank, "shared_experts": config.get("n_shared_experts")}
    return common_flags(config) | set_flags(own)


def _layers(config: Config) -> Layers:
    decoder = config["num_hidden_layers"]
    first = min(config["first_k_dense_replace"], decoder)  # a step has experts, whatever the decoder has
    every = range(decoder + _num_steps(config))
    steps = every[decoder:]
    return {"layers": every, "dense": range(decoder)[:first], "moe": every[first:], FIRST: steps, LAST: steps}


def _num_steps(config: Config) -> int:
    """Return how many steps there are. A config.json that says nothing promises one, as transformers 5 reads it.

    Source: transformers `DeepseekV3Config`, where ALIAS is another name of NUMBER.
    """
    key = next((key for key in (NUMBER, ALIAS) if key in config), None)
    return steps_of(config, key) if key else 1


def _steps(config: Config) -> tuple[int, int]:
    return _num_steps(config), 1


def _without_mtp(config: Config) -> dict[str, Any]:
    """Say 0: an absent key is 1 to transformers 5, and SGLang refuses null."""
    plain = {key: value for key, value in config.items() if key != ALIAS}
    return {**plain, NUMBER: 0}


# What a step reads and what it predicts with are the model's own, which published files hold once more.
COPIES = (
    copied("embed_tokens.weight", "model.embed_tokens.weight"),
    copied("shared_head.head.weight", "lm_head.weight", when="untied"),
)


DEEPSEEK_V3 = Architecture(
    "DeepseekV3ForCausalLM",
    "transformers models/deepseek_v3/modeling_deepseek_v3.py",
    EMBEDDINGS
    + NORMS
    + LATENT_ATTENTION
    + DENSE_MLP
    + biased_router(HF_LAYER + "mlp.gate.")
    + gated_mlp(
        LAYER + "mlp.shared_experts.", HF_LAYER + "mlp.shared_experts.", "shared_ffn", "moe", "shared_experts"
    )
    + gated_mlp(EXPERT, HF_LAYER + "mlp.experts.{expert}.", "moe_ffn", "moe")
    + step_rows(HF_LAYER, HF_LAYER + "shared_head.norm.weight")
    + COPIES,
    _dimensions,
    _flags,
    _layers,
    mtp=MultiTokenPrediction(
        _steps,
        STEP_LAYER,
        (HF_LAYER, HF_LAYER),
        _without_mtp,
        "vllm/model_executor/models/deepseek_mtp.py",
    ),
    settings=(
        *LATENT_SETTINGS,
        rms_norms(),
        activation(),
        TIED,
        *biased_router_settings(groups=(8, 4), scaling=2.5),
        derived("mtp_steps", (NUMBER,), _num_steps, (NUMBER, ALIAS)),
    ),
)
