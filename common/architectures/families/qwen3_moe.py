"""Qwen3-MoE: every layer has routed experts unless config.json says otherwise, and none has shared ones.

Source: transformers, models/qwen3_moe/modeling_qwen3_moe.py (`Qwen3MoeDecoderLayer.__init__`: a layer is dense if
it is in mlp_only_layers or (layer + 1) % decoder_sparse_step != 0).
"""

from __future__ import annotations

from ..blocks.attention import GROUPED_QUERY_ATTENTION, HEAD_NORMS, rotated_heads, window_of_all
from ..blocks.embeddings import EMBEDDINGS, NORMS, TIED, rms_norms
from ..blocks.experts import EITHER, IN_EITHER
from ..blocks.mlp import DENSE_MLP, activation
from ..blocks.router import EXPERTS_PER_TOKEN, plain_router
from ..dimensions import common_dimensions, divisor, one_of, unbiased_flags
from ..keys import HF_LAYER
from ..rows import Architecture, Config, Layers
from ..settings.says import key


def number_of_experts(config: Config) -> int:
    """Return the number of experts. Source for its second name: `attribute_map` in configuration_qwen3_moe.py."""
    return one_of(config, "num_experts", "num_local_experts")


def _dimensions(config: Config) -> dict[str, int]:
    experts = {"num_experts": number_of_experts(config), "moe_ffn": config["moe_intermediate_size"]}
    return common_dimensions(config) | experts


def layers_with_experts(config: Config) -> Layers:
    """Return the sets of layers: which have experts depends on a step, and on a list of those without."""
    layers = range(config["num_hidden_layers"])
    step, dense_only = divisor(config, "decoder_sparse_step", 1), set(config.get("mlp_only_layers") or ())
    routed = number_of_experts(config) > 0
    moe = frozenset(i for i in layers if i not in dense_only and routed and (i + 1) % step == 0)
    return {"layers": layers, "moe": moe, "dense": frozenset(layers) - moe}


QWEN3_MOE = Architecture(
    "Qwen3MoeForCausalLM",
    "transformers models/qwen3_moe/modeling_qwen3_moe.py",
    EMBEDDINGS
    + NORMS
    + GROUPED_QUERY_ATTENTION
    + HEAD_NORMS
    + DENSE_MLP
    + plain_router(HF_LAYER + "mlp.gate.")
    + IN_EITHER,
    _dimensions,
    unbiased_flags,
    layers_with_experts,
    model_types=("qwen3_moe",),
    settings=(
        *rotated_heads(),
        rms_norms(),
        activation(),
        TIED,
        EXPERTS_PER_TOKEN,
        key("router_normalized", "norm_topk_prob", otherwise=False),
        window_of_all(switch="use_sliding_window", otherwise=4096),
    ),
    experts=EITHER,
    oracles=("Megatron-Bridge", "Model-Optimizer", "mcore-bridge"),
)
