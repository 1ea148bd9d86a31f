"""DeepSeek-V2: latent attention as DeepSeek-V3's, and routers of softmax without a bias.

The query is low-rank, but full in V2-Lite. Groups of experts, where there are some, are scored by their best one;
megatron-core scores them by as many as a token takes of each, which is one only if a token uses as many groups as it
has experts.
Source: transformers, models/deepseek_v2/modeling_deepseek_v2.py (`DeepseekV2TopkRouter`, which never normalizes);
vLLM, model_executor/models/deepseek_v2.py, for norm_topk_prob.
"""

from __future__ import annotations

from ...blocks.embeddings import EMBEDDINGS, NORMS, TIED, rms_norms
from ...blocks.experts import OWN_LOADER
from ...blocks.mla import FIXED_NORM_EPS, LATENT_ATTENTION, LATENT_SIZES, SECOND_NORM
from ...blocks.mlp import DENSE_MLP, ROUTED_EXPERTS, SHARED_EXPERTS, activation
from ...blocks.mtp import decoder_and_steps
from ...blocks.router import EXPERTS_PER_TOKEN, plain_router
from ...dimensions import integer
from ...keys import HF_LAYER
from ...rows import Architecture, Config, Layers
from ...settings.says import always, derived, key
from .deepseek import dimensions, flags

GROUP_KEYS = ("n_group", "topk_group", "topk_method")


def _layers(config: Config) -> Layers:
    return decoder_and_steps(config, range(integer(config, "first_k_dense_replace", 0)), steps=0)


def _groups(config: Config) -> list[int] | None:
    every, used = integer(config, "n_group", 1), integer(config, "topk_group", 1)
    return [every, used] if config.get("topk_method") == "group_limited_greedy" and used < every else None


DEEPSEEK_V2 = Architecture(
    "DeepseekV2ForCausalLM",
    "transformers models/deepseek_v2/modeling_deepseek_v2.py",
    EMBEDDINGS
    + NORMS
    + LATENT_ATTENTION
    + DENSE_MLP
    + plain_router(HF_LAYER + "mlp.gate.")
    + SHARED_EXPERTS
    + ROUTED_EXPERTS,
    dimensions,
    flags,
    _layers,
    model_types=("deepseek_v2",),
    refusals=SECOND_NORM,
    settings=(
        *LATENT_SIZES,
        always("rope_interleaved", True),
        FIXED_NORM_EPS,
        rms_norms(),
        activation(),
        TIED,
        EXPERTS_PER_TOKEN,
        key("router_score", "scoring_func", otherwise="softmax"),
        key("router_normalized", "norm_topk_prob", otherwise=False),
        key("router_scaling", "routed_scaling_factor", otherwise=1.0),
        derived("router_groups", GROUP_KEYS, _groups),
        derived("router_group_score", GROUP_KEYS, lambda config: 1 if _groups(config) else None),
    ),
    experts=OWN_LOADER,
    oracles=("Megatron-Bridge", "Model-Optimizer", "mcore-bridge"),
)
