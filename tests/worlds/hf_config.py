"""A family in transformers' words: the arguments of its config class.

What single architectures call otherwise is in `hf_words` and `composites`. Must not know megatron-core.
"""

from typing import Any

from tests.worlds.composites import COMPOSITES
from tests.worlds.families import Family
from tests.worlds.hf_words import OWN_WORDS, hybrid
from tests.worlds.widths import Indexer


def hf_config(family: Family) -> dict[str, Any]:
    """Return the keyword arguments of the family's transformers config class.

    Source: transformers 5, models/*/configuration_*.py.
    """
    if family.mamba is not None:
        return hybrid(family, family.mamba)
    config = {
        "vocab_size": family.vocab,
        "hidden_size": family.hidden,
        "intermediate_size": _hf_dense_width(family),
        "num_hidden_layers": family.layers,
        "num_attention_heads": family.heads,
        "num_key_value_heads": family.groups,
        "max_position_embeddings": 64,
        "rms_norm_eps": family.norm_eps,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": float(family.rope_theta),
            **_hf_rotated(family),
        },
        "tie_word_embeddings": family.tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **_hf_attention(family),
    }
    if family.architecture in COMPOSITES:
        return COMPOSITES[family.architecture](family, config)
    if family.architecture in OWN_WORDS:
        return OWN_WORDS[family.architecture](family, config)
    return config | _hf_experts(family)


def _hf_rotated(family: Family) -> dict[str, float]:
    return {} if family.rotated == 1 else {"partial_rotary_factor": family.rotated}


def _hf_dense_width(family: Family) -> int:
    """These have no dense layer and call the width of an expert `intermediate_size`."""
    if family.architecture in ("MixtralForCausalLM", "GptOssForCausalLM") and family.experts is not None:
        return family.experts.width
    return family.dense_width


def _hf_attention(family: Family) -> dict[str, Any]:
    if family.latent is None:
        own = {"attention_bias": family.qkv_bias, "use_qk_norm": family.qk_norm}
        return {
            "head_dim": family.head_channels,
            **(own if family.architecture == "Glm4MoeForCausalLM" else {}),
        }
    return {
        "q_lora_rank": family.latent.query_rank or None,
        "kv_lora_rank": family.latent.key_value_rank,
        "qk_nope_head_dim": family.latent.nope_channels,
        "qk_rope_head_dim": family.latent.rope_channels,
        "v_head_dim": family.latent.value_channels,
        **_hf_indexer(family.indexer),
    }


def _hf_indexer(indexer: Indexer | None) -> dict[str, Any]:
    if indexer is None:
        return {}
    return {
        "index_n_heads": indexer.heads,
        "index_head_dim": indexer.channels,
        "index_topk": indexer.top_k,
        **({"indexer_rope_interleave": True} if indexer.interleaved else {}),
    }


def _hf_experts(family: Family) -> dict[str, Any]:
    experts = family.experts
    if experts is None:
        return {}
    if family.architecture in ("MixtralForCausalLM", "GptOssForCausalLM"):
        window = {"sliding_window": family.window} if family.window else {}
        return {"num_local_experts": experts.num_experts, "num_experts_per_tok": experts.top_k, **window}
    common = {
        "moe_intermediate_size": experts.width,
        "num_experts_per_tok": experts.top_k,
        "norm_topk_prob": experts.normalized,
    }
    if family.architecture == "Qwen3MoeForCausalLM":
        return common | {"num_experts": experts.num_experts}
    return common | {
        "n_routed_experts": experts.num_experts,
        "n_shared_experts": experts.shared_width // experts.width,
        "n_group": experts.router_groups or 1,
        "topk_group": experts.groups_kept or 1,
        "routed_scaling_factor": experts.scaling,
        "first_k_dense_replace": experts.dense_layers,
        "num_nextn_predict_layers": 0,
        **(
            {"topk_method": "group_limited_greedy" if experts.router_groups else "greedy"}
            if family.architecture == "DeepseekV2ForCausalLM"
            else {}
        ),
    }
