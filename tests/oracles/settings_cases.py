"""What config.json says of the models whose settings are compared: a family, and what is edited in its config.json.

Must not import programs that are asked: a test holds that every table that they know has a case.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 4096,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
GPT_OSS_YARN = {
    "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "original_max_position_embeddings": 4096,
    "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
}  # fmt: skip
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 765432.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 7654.0},
}
BASE: Json = {"rope_parameters": {"rope_type": "default", "rope_theta": 765432.0}}
# what transformers leaves out, and Bridge reads
AS_PUBLISHED: Json = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
PARTIAL: Json = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 765432.0, "partial_rotary_factor": 0.25}
}
# Bridge 0.6.2 knows no Mixtral
CASES: tuple[tuple[str, Json], ...] = (
    ("llama", {}),
    ("llama", {**BASE, "rms_norm_eps": 3e-4, "head_dim": 24, "num_attention_heads": 4}),
    ("llama", {"rope_parameters": LLAMA3, "max_position_embeddings": 65536}),
    ("llama_tied", {}),
    ("mistral", {}),
    ("mistral", {**BASE, "sliding_window": 24, "rms_norm_eps": 3e-4}),
    ("mistral", {"sliding_window": None, "head_dim": 24}),
    ("qwen2", {**BASE, "rms_norm_eps": 3e-4}),
    ("qwen3", {**BASE, "rms_norm_eps": 3e-4}),
    ("qwen3_moe", {}),
    ("qwen3_moe", {**BASE, "num_experts_per_tok": 3, "rms_norm_eps": 3e-4}),
    ("olmoe", {"num_key_value_heads": 8}),
    ("olmoe", {**BASE, "num_key_value_heads": 8, "num_experts_per_tok": 3, "rms_norm_eps": 3e-4}),
    ("ernie4_5_moe", {}),
    ("ernie4_5_moe", {"moe_k": 3, "rms_norm_eps": 3e-4, "tie_word_embeddings": True}),
    ("exaone_moe", {}),
    ("exaone_moe", {**BASE, "routed_scaling_factor": 1.75, "num_experts_per_tok": 4, "rms_norm_eps": 3e-4}),
    ("exaone_moe", {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 4, "sliding_window": 32}),
    ("qwen2_moe", {}),
    ("qwen2_moe", {**BASE, "num_experts_per_tok": 3, "rms_norm_eps": 3e-4, "norm_topk_prob": True}),
    ("qwen3_next", {}),
    (
        "qwen3_next",
        {
            **PARTIAL,
            "head_dim": 16,
            "num_experts_per_tok": 3,
            "rms_norm_eps": 3e-4,
            "linear_conv_kernel_dim": 4,
        },
    ),
    ("qwen3_next", {"layer_types": None, "full_attention_interval": 2, "linear_num_key_heads": 2}),
    ("qwen3_next_mtp", {}),
    ("qwen3_5", {**PARTIAL, "head_dim": 16, "rms_norm_eps": 3e-4, "linear_value_head_dim": 8}),
    ("qwen3_5_mtp", {}),
    ("qwen3_5_moe", {**PARTIAL, "head_dim": 16, "num_experts_per_tok": 3, "linear_key_head_dim": 8}),
    ("qwen3_5_moe_mtp", {}),
    ("minimax_m2", {}),
    ("minimax_m2", {**BASE, "rotary_dim": 4, "num_experts_per_tok": 3, "rms_norm_eps": 3e-4}),
    ("gpt_oss", {"rope_parameters": GPT_OSS_YARN, "max_position_embeddings": 131072, "sliding_window": 24}),
    ("deepseek_v3", {}),
    ("deepseek_v3", {"rope_parameters": YARN, "max_position_embeddings": 163840}),
    ("deepseek_v3", {"routed_scaling_factor": 1.75, "num_experts_per_tok": 4, "topk_group": 2, "n_group": 4}),
    ("deepseek_v3_full_query", {}),
    ("deepseek_v2", {"rope_parameters": YARN, "max_position_embeddings": 163840}),
    ("deepseek_v2", {"n_group": 1, "topk_group": 1, "topk_method": "greedy", "num_experts_per_tok": 3}),
    ("deepseek_v2_lite", {**BASE, "routed_scaling_factor": 1.0}),
    ("kimi_k2", {**AS_PUBLISHED, "rope_parameters": YARN, "max_position_embeddings": 131072}),
    ("kimi_k2", {**AS_PUBLISHED, **BASE, "routed_scaling_factor": 2.827, "num_experts_per_tok": 3}),
    ("dots1", {}),
    ("glm4_moe", {}),
    (
        "glm4_moe",
        {**PARTIAL, "head_dim": 16, "use_qk_norm": False, "num_experts_per_tok": 4, "rms_norm_eps": 3e-4},
    ),
    ("glm4_moe", {"attention_bias": False, "num_experts_per_tok": 4, "topk_group": 2, "n_group": 4}),
    ("glm4_moe_lite", {}),
    ("glm4_moe_lite", {**BASE, "rms_norm_eps": 3e-4, "num_experts_per_tok": 4, "routed_scaling_factor": 1.0}),
    ("glm_moe_dsa", {}),
    ("glm_moe_dsa", {**BASE, "index_topk": 5, "rms_norm_eps": 3e-4, "routed_scaling_factor": 1.0}),
    ("glm4_moe_mtp", {}),
    ("glm4_moe_lite_mtp", {}),
    ("bailing_moe_v2", {}),
    (
        "bailing_moe_v2",
        {
            "rope_theta": 765432.0,
            "num_experts_per_tok": 4,
            "topk_group": 2,
            "n_group": 4,
            "rms_norm_eps": 3e-4,
        },
    ),
    ("gemma3", {"layer_types": None}),
    ("gemma3", {"num_hidden_layers": 7, "layer_types": None, "rms_norm_eps": 3e-4, "sliding_window": 24}),
    ("gemma3", {"layer_types": None, "rope_parameters": GEMMA_ROPE, "query_pre_attn_scalar": 33}),
    ("nemotron", {}),
    ("nemotron", {**BASE, "norm_eps": 3e-4, "head_dim": 24}),
    ("nemotron_h", {}),
    ("nemotron_h_latent", {"routed_scaling_factor": 1.75, "num_experts_per_tok": 3}),
    ("qwen3_vl", {}),
    ("qwen3_vl_moe", {}),
    ("qwen3_5_vl", {}),
    ("qwen3_5_moe_vl", {}),
    ("kimi_k25", {}),
    ("llama4_vl", {}),
)
# family -> settings in which Bridge 0.6.2 differs from all readers: it trains ERNIE with sigmoids, they take a softmax;
# of Gemma 3 the norms after each half of a layer add 1e-5 whatever config.json says
# of Llama 4 mcore-bridge takes every fourth layer for one without rotation, whatever `no_rope_layers` says
WRONG_IN_ORACLE: dict[str, set[str]] = {
    "ernie4_5_moe": {"router_score"},
    "gemma3": {"norm_eps"},
    "llama4_vl": {"layers_without_rope"},
}
