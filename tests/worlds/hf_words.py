"""What transformers' configs of single architectures call otherwise than most, or have besides.

Must not know megatron-core. Source: transformers 5, models/*/configuration_*.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.worlds.families import Family
    from tests.worlds.widths import Mamba

Json = dict[str, Any]


def llama4(family: Family, config: Json) -> Json:
    """Return what the text config of Llama 4 is made of.

    Chunks are as long as a sequence can be, as transformers cannot do without them, and queries do not grow.
    """
    experts = family.experts
    assert experts is not None
    return config | {
        "intermediate_size": experts.width,
        "intermediate_size_mlp": family.dense_width,
        "num_local_experts": experts.num_experts,
        "num_experts_per_tok": experts.top_k,
        "interleave_moe_layer_step": experts.step,
        "use_qk_norm": family.plain_qk_norm,
        "no_rope_layers": [int(layer not in family.global_layers) for layer in range(family.layers)],
        "attention_chunk_size": config["max_position_embeddings"],
        "attn_temperature_tuning": False,
    }


def _mistral(family: Family, config: Json) -> Json:
    return config | {"sliding_window": family.window or None}


def _olmoe(family: Family, config: Json) -> Json:
    assert family.experts is not None
    del config["head_dim"]
    return config | {
        "intermediate_size": family.experts.width,
        "num_experts": family.experts.num_experts,
        "num_experts_per_tok": family.experts.top_k,
        "norm_topk_prob": family.experts.normalized,
    }


def _minimax_m2(family: Family, config: Json) -> Json:
    """The published file says how many channels rotate; transformers 5 adds which part that is."""
    assert family.experts is not None
    return config | {
        "intermediate_size": family.experts.width,
        "num_local_experts": family.experts.num_experts,
        "num_experts_per_tok": family.experts.top_k,
        "rotary_dim": int(family.head_channels * family.rotated),
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
    }


def _ernie(family: Family, config: Json) -> Json:
    experts = family.experts
    assert experts is not None
    return config | {
        "moe_intermediate_size": experts.width,
        "moe_num_experts": experts.num_experts,
        "moe_k": experts.top_k,
        "moe_num_shared_experts": experts.shared_width // experts.width,
        "moe_layer_start_index": experts.dense_layers,
    }


def _exaone(family: Family, config: Json) -> Json:
    experts, layers = family.experts, range(family.layers)
    assert experts is not None
    kinds = ["full_attention" if layer in family.global_layers else "sliding_attention" for layer in layers]
    return config | {
        "sliding_window": family.window,
        "layer_types": kinds,
        "first_k_dense_replace": experts.dense_layers,
        "moe_intermediate_size": experts.width,
        "num_experts": experts.num_experts,
        "num_experts_per_tok": experts.top_k,
        "num_shared_experts": experts.shared_width // experts.width,
        "norm_topk_prob": experts.normalized,
        "routed_scaling_factor": experts.scaling,
        "n_group": 1,
        "topk_group": 1,
    }


def _gemma3(family: Family, config: Json) -> Json:
    """transformers 5 says by kind of layer how these rotate; the published files have two keys for the bases."""
    assert family.gemma is not None
    theta = {"full_attention": family.rope_theta, "sliding_attention": family.gemma.local_theta}
    return config | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": family.gemma.scalar,
        "sliding_window": family.window,
        "layer_types": [
            "full_attention" if layer % 2 else "sliding_attention" for layer in range(family.layers)
        ],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": float(one)} for kind, one in theta.items()
        },
    }


def _nemotron(family: Family, config: Json) -> Json:
    eps = config.pop("rms_norm_eps")
    return config | {"norm_eps": eps, "hidden_act": family.activation}


def _qwen2_moe(family: Family, config: Json) -> Json:
    experts = family.experts
    assert experts is not None
    return config | {
        "moe_intermediate_size": experts.width,
        "shared_expert_intermediate_size": experts.shared_width,
        "num_experts": experts.num_experts,
        "num_experts_per_tok": experts.top_k,
        "norm_topk_prob": experts.normalized,
    }


def delta(family: Family, config: Json) -> Json:
    """Those with a DeltaNet. Of Qwen3.5-MoE no layer is dense, and its config does not say how wide one would be."""
    net, experts = family.delta, family.experts
    assert net is not None
    config |= {
        "layer_types": ["linear_attention" if letter == "D" else "full_attention" for letter in net.pattern],
        "linear_num_key_heads": net.key_heads,
        "linear_num_value_heads": net.value_heads,
        "linear_key_head_dim": net.key_channels,
        "linear_value_head_dim": net.value_channels,
        "linear_conv_kernel_dim": net.kernel,
    }
    if experts is None:
        return config
    if family.architecture.startswith("Qwen3_5Moe"):
        del config["intermediate_size"]
    return config | {
        "moe_intermediate_size": experts.width,
        "shared_expert_intermediate_size": experts.shared_width,
        "num_experts": experts.num_experts,
        "num_experts_per_tok": experts.top_k,
        **({"norm_topk_prob": True} if family.architecture == "Qwen3NextForCausalLM" else {}),
    }


# architecture -> the arguments of its config class, from a family and what most classes share
OWN_WORDS: dict[str, Callable[[Family, Json], Json]] = {
    "Llama4ForCausalLM": llama4,
    "MistralForCausalLM": _mistral,
    "Gemma3ForCausalLM": _gemma3,
    "NemotronForCausalLM": _nemotron,
    "OlmoeForCausalLM": _olmoe,
    "Qwen2MoeForCausalLM": _qwen2_moe,
    "Qwen3NextForCausalLM": delta,
    "Qwen3_5ForCausalLM": delta,
    "Qwen3_5MoeForCausalLM": delta,
    "MiniMaxM2ForCausalLM": _minimax_m2,
    "ExaoneMoeForCausalLM": _exaone,
    "Ernie4_5_MoeForCausalLM": _ernie,
}


def hybrid(family: Family, mamba: Mamba) -> Json:
    """Return what the config of a hybrid is made of."""
    experts = family.experts
    assert experts is not None
    return {
        "vocab_size": family.vocab,
        "hidden_size": family.hidden,
        "intermediate_size": family.dense_width,
        "hybrid_override_pattern": mamba.pattern,
        "num_attention_heads": family.heads,
        "num_key_value_heads": family.groups,
        "head_dim": family.head_channels,
        "max_position_embeddings": 64,
        "layer_norm_epsilon": family.norm_eps,
        "tie_word_embeddings": family.tied,
        "mamba_num_heads": mamba.heads,
        "mamba_head_dim": mamba.head_channels,
        "n_groups": mamba.groups,
        "ssm_state_size": mamba.state,
        "n_routed_experts": experts.num_experts,
        "num_experts_per_tok": experts.top_k,
        "moe_intermediate_size": experts.width,
        "moe_shared_expert_intermediate_size": experts.shared_width,
        "moe_latent_size": experts.latent_width or None,
        "routed_scaling_factor": experts.scaling,
    }
