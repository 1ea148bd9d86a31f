"""The real shapes of five large models, and the worlds that their dumps are made for.

Configs are those published with the weights, without what no table reads. Must not know how a dump is written.
Source: config.json of Qwen/Qwen3-235B-A22B, deepseek-ai/DeepSeek-V3, moonshotai/Kimi-K2-Instruct and
nvidia/NVIDIA-Nemotron-3-{Super-120B-A12B,Ultra-550B-A55B}-BF16. What the last two hold was counted by others: threads
5062 and 5809 of NVIDIA-NeMo/Megatron-Bridge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

QWEN3_235B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "vocab_size": 151936,
}
# without the step of multi-token prediction, which Kimi-K2 has not either
DEEPSEEK_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "num_nextn_predict_layers": 0,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
KIMI_K2 = DEEPSEEK_V3 | {
    "first_k_dense_replace": 1,
    "n_routed_experts": 384,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "vocab_size": 163840,
}

NEMOTRON_3_ULTRA: dict[str, Any] = {
    "architectures": ["NemotronHForCausalLM"],
    "model_type": "nemotron_h",
    "conv_kernel": 4,
    "head_dim": 128,
    "hidden_size": 8192,
    "hybrid_override_pattern": (
        "MEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
    ),
    "mamba_head_dim": 64,
    "mamba_num_heads": 256,
    "moe_intermediate_size": 5120,
    "moe_latent_size": 2048,
    "moe_shared_expert_intermediate_size": 10240,
    "n_groups": 8,
    "n_routed_experts": 512,
    "num_attention_heads": 64,
    "num_key_value_heads": 2,
    "num_nextn_predict_layers": 1,
    "mtp_layers_block_type": ["attention", "moe"],
    "ssm_state_size": 128,
    "vocab_size": 131072,
}
NEMOTRON_3_SUPER: dict[str, Any] = {
    **{key: value for key, value in NEMOTRON_3_ULTRA.items() if key != "mtp_layers_block_type"},
    "hidden_size": 4096,
    "hybrid_override_pattern": (
        "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME"
    ),
    "mamba_num_heads": 128,
    "moe_intermediate_size": 2688,
    "moe_latent_size": 1024,
    "moe_shared_expert_intermediate_size": 5376,
    "mtp_hybrid_override_pattern": "*E",
    "num_attention_heads": 32,
}


@dataclass(frozen=True, slots=True)
class World:
    """pp stages of ep x etp ranks; the same ranks are tp x dp for everything that is not a routed expert."""

    pp: int
    ep: int
    etp: int
    tp: int

    @property
    def stage_size(self) -> int:
        return self.ep * self.etp

    @property
    def size(self) -> int:
        return self.pp * self.stage_size


@dataclass(frozen=True, slots=True)
class Case:
    """A model on a world. Experts are cut far finer than anybody trains: that is where rectangles come from."""

    name: str
    config: dict[str, Any]
    world: World
    packed: bool = False  # in NVFP4
    as_published: bool = False  # dumped with a reference that holds weights, and --dtype-from-reference


@dataclass(frozen=True, slots=True)
class Published:
    """What the published checkpoint of a model holds, as others counted it."""

    tensors: int
    values: int
    num_bytes: int


REAL = (  # as such models are trained: experts entire
    Case("Qwen3-235B-A22B", QWEN3_235B, World(pp=8, ep=16, etp=1, tp=4)),
    Case("DeepSeek-V3", DEEPSEEK_V3, World(pp=16, ep=64, etp=1, tp=2)),
    Case("Kimi-K2", KIMI_K2, World(pp=16, ep=64, etp=1, tp=2)),
    Case("Nemotron-3-Ultra", NEMOTRON_3_ULTRA, World(pp=9, ep=8, etp=1, tp=1), packed=True),
)
LARGEST = (  # ten million rectangles on ten thousand ranks
    Case("Qwen3-235B-A22B", QWEN3_235B, World(pp=6, ep=6, etp=278, tp=4)),
    Case("DeepSeek-V3", DEEPSEEK_V3, World(pp=9, ep=5, etp=225, tp=5)),
    Case("Kimi-K2", KIMI_K2, World(pp=8, ep=8, etp=157, tp=8)),
    Case("Nemotron-3-Ultra", NEMOTRON_3_ULTRA, World(pp=12, ep=8, etp=105, tp=1), packed=True),
)
AS_PUBLISHED = {
    "Nemotron-3-Super": (NEMOTRON_3_SUPER, Published(42_683, 123_611_033_088, 247_222_108_160)),
    "Nemotron-3-Ultra": (NEMOTRON_3_ULTRA, Published(51_023, 560_524_603_904, 1_121_049_257_984)),
}
GROWTH = tuple(Case("Kimi-K2", KIMI_K2, World(pp=8, ep=8, etp=etp, tp=8)) for etp in (16, 32, 80, 157))
