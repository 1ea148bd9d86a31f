"""At the true sizes of published models a table expects as many parameters and tensors as was published.

Only config.json is computed with. An exact number leaves no place for a wrong shape, a missing tensor or a layer of
another kind. Sources: HUB is `safetensors.total`, which the Hugging Face Hub reads off the headers of a repository;
INDEX is `metadata.total_size` of its model.safetensors.index.json, two bytes for each parameter of bfloat16; AUDIT are
others' counts over the headers of all shards. Models whose published number is rounded, or which are published with
scales alone, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import pytest

from shardmerge.common.architectures import Blueprint, blueprint

HUB, INDEX, AUDIT = (
    "the Hub's safetensors.total",
    "the index's metadata.total_size",
    "an audit of all headers",
)
Json = dict[str, Any]


def config(
    architecture: str, hidden: int, ffn: int, layers: int, heads: tuple[int, int], vocab: int, **said: Any
) -> Json:
    """What config.json says; `heads` are those of queries, and of keys and values."""
    return {
        "architectures": [architecture],
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocab,
        **said,
    }


def latent(query: int | None, nope: int = 128, value: int = 128) -> Json:
    return {
        "q_lora_rank": query,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": 64,
        "v_head_dim": value,
    }


def deepseek(routed: int, shared: int, width: int, dense: int) -> Json:
    return {
        "n_routed_experts": routed,
        "n_shared_experts": shared,
        "moe_intermediate_size": width,
        "first_k_dense_replace": dense,
    }


def glm(hidden: int, ffn: int, layers: int, experts: Json, *, norms: bool) -> Json:
    own = {"head_dim": 128, "attention_bias": True, "use_qk_norm": norms, "num_nextn_predict_layers": 1}
    return config("Glm4MoeForCausalLM", hidden, ffn, layers, (96, 8), 151552, **own, **experts)


def ling(hidden: int, ffn: int, layers: int, heads: tuple[int, int], width: int) -> Json:
    own = {"head_dim": 128, "num_experts": 256, "num_shared_experts": 1, "moe_intermediate_size": width}
    return config(
        "BailingMoeV2ForCausalLM", hidden, ffn, layers, heads, 157184, first_k_dense_replace=1, **own
    )


def llama4(experts: int, step: int) -> Json:
    own = {"head_dim": 128, "num_local_experts": experts, "intermediate_size_mlp": 16384}
    return config("Llama4ForCausalLM", 5120, 8192, 48, (40, 8), 202048, interleave_moe_layer_step=step, **own)


DEEPSEEK_V3 = config(
    "DeepseekV3ForCausalLM",
    7168,
    18432,
    61,
    (128, 128),
    129280,
    num_nextn_predict_layers=1,
    **latent(1536),
    **deepseek(256, 1, 2048, 3),
)
DEEPSEEK_V32 = DEEPSEEK_V3 | {
    "architectures": ["DeepseekV32ForCausalLM"],
    "num_nextn_predict_layers": 0,
    "index_n_heads": 64,
    "index_head_dim": 128,
}
GLM_45 = glm(5120, 12288, 92, deepseek(160, 1, 1536, 3), norms=True)
GLM_45_AIR = glm(4096, 10944, 46, deepseek(128, 1, 1408, 1), norms=False)


@dataclass(frozen=True, slots=True)
class Published:
    """A published model.

    Attributes:
        name: Of its repository.
        config: What its config.json says of sizes.
        parameters: How many it holds.
        source: Where that is known from.
        tensors: How many it holds; None if no source says it of unquantized tensors.
        with_copies: Whether it holds both embeddings once more below its step.
    """

    name: str
    config: Json
    parameters: int
    source: str
    tensors: int | None = None
    with_copies: bool = False


QWEN = {"num_experts": 128, "head_dim": 128}
MODELS = (
    Published(
        "meta-llama/Llama-3.1-8B",
        config("LlamaForCausalLM", 4096, 14336, 32, (32, 8), 128256),
        16060522496 // 2,
        INDEX,
    ),
    Published(
        "mistralai/Mistral-7B-v0.1",
        config("MistralForCausalLM", 4096, 14336, 32, (32, 8), 32000),
        14483464192 // 2,
        INDEX,
        291,
    ),
    Published(
        "Qwen/Qwen2.5-7B",
        config("Qwen2ForCausalLM", 3584, 18944, 28, (28, 4), 152064),
        15231233024 // 2,
        INDEX,
    ),
    Published(
        "Qwen/Qwen1.5-MoE-A2.7B",
        config(
            "Qwen2MoeForCausalLM",
            2048,
            5632,
            24,
            (16, 16),
            151936,
            num_experts=60,
            moe_intermediate_size=1408,
            shared_expert_intermediate_size=5632,
        ),
        28631568384 // 2,
        INDEX,
        4659,
    ),
    Published(
        "Qwen/Qwen2-57B-A14B",
        config(
            "Qwen2MoeForCausalLM",
            3584,
            18944,
            28,
            (28, 4),
            151936,
            num_experts=64,
            moe_intermediate_size=2560,
            shared_expert_intermediate_size=20480,
        ),
        57408658944,
        HUB,
    ),
    Published(
        "Qwen/Qwen3-30B-A3B",
        config("Qwen3MoeForCausalLM", 2048, 6144, 48, (32, 4), 151936, moe_intermediate_size=768, **QWEN),
        61064245248 // 2,
        INDEX,
    ),
    Published(
        "Qwen/Qwen3-235B-A22B",
        config("Qwen3MoeForCausalLM", 4096, 12288, 94, (64, 4), 151936, moe_intermediate_size=1536, **QWEN),
        470187269120 // 2,
        INDEX,
        36945,
    ),
    Published(
        "mistralai/Mixtral-8x7B-v0.1",
        config("MixtralForCausalLM", 4096, 14336, 32, (32, 8), 32000, num_local_experts=8),
        46702792704,
        HUB,
    ),
    Published(
        "allenai/OLMoE-1B-7B-0924",
        config("OlmoeForCausalLM", 2048, 1024, 16, (16, 16), 50304, num_experts=64),
        6919161856,
        AUDIT,
        3219,
    ),
    Published(
        "openai/gpt-oss-20b",
        config("GptOssForCausalLM", 2880, 2880, 24, (64, 8), 201088, head_dim=64, num_local_experts=32),
        20914757184,  # of a copy in bfloat16: published are blocks of MXFP4
        HUB,
    ),
    Published(
        "openai/gpt-oss-120b",
        config("GptOssForCausalLM", 2880, 2880, 36, (64, 8), 201088, head_dim=64, num_local_experts=128),
        116829156672,
        HUB,
    ),
    Published(
        "deepseek-ai/DeepSeek-V2-Lite",
        config(
            "DeepseekV2ForCausalLM",
            2048,
            10944,
            27,
            (16, 16),
            102400,
            **latent(None),
            **deepseek(64, 2, 1408, 1),
        ),
        31412968448 // 2,
        INDEX,
    ),
    Published(
        "deepseek-ai/DeepSeek-V2",
        config(
            "DeepseekV2ForCausalLM",
            5120,
            12288,
            60,
            (128, 128),
            102400,
            **latent(1536),
            **deepseek(160, 2, 1536, 1),
        ),
        235741434880,
        HUB,
    ),
    Published("deepseek-ai/DeepSeek-R1", DEEPSEEK_V3, 684489845504, HUB, with_copies=True),
    Published(
        "deepseek-ai/DeepSeek-V3, without its step",
        DEEPSEEK_V3 | {"num_nextn_predict_layers": 0},
        671026419200,
        AUDIT,
        45395,
    ),
    Published(
        "moonshotai/Kimi-K2-Instruct",
        DEEPSEEK_V3
        | {"num_attention_heads": 64, "num_key_value_heads": 64, "vocab_size": 163840}
        | {"n_routed_experts": 384, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0},
        1026408232448,
        AUDIT,
    ),
    Published("zai-org/GLM-4.5", GLM_45, 358337791296, HUB, with_copies=True),
    Published("zai-org/GLM-4.6", GLM_45, 356785898816, HUB),
    Published("zai-org/GLM-4.5-Air", GLM_45_AIR, 110468824832, HUB, with_copies=True),
    Published("PrimeIntellect/INTELLECT-3", GLM_45_AIR | {"num_nextn_predict_layers": 0}, 106852251264, HUB),
    Published(
        "MiniMaxAI/MiniMax-M2",
        config("MiniMaxM2ForCausalLM", 3072, 1536, 62, (48, 8), 200064, head_dim=128, num_local_experts=256),
        228689764864,
        HUB,
    ),
    Published("inclusionAI/Ling-mini-2.0", ling(2048, 5120, 20, (16, 4), 512), 16255643392, HUB),
    Published("inclusionAI/Ling-flash-2.0", ling(4096, 9216, 32, (32, 4), 1024), 102889705216, HUB),
    Published(
        "google/gemma-3-1b-it",
        config("Gemma3ForCausalLM", 1152, 6912, 26, (4, 1), 262144, head_dim=256),
        999885952,
        HUB,
    ),
)
GLM_5 = config(
    "GlmMoeDsaForCausalLM",
    6144,
    12288,
    78,
    (64, 64),
    154880,
    num_nextn_predict_layers=1,
    index_n_heads=32,
    index_head_dim=128,
    **latent(2048, nope=192, value=256),
    **deepseek(256, 1, 2048, 3),
)


def table(said: Json, *, with_copies: bool = False) -> Blueprint:
    """The table of a config.json, beside a reference that holds copies of both embeddings or none."""
    step = f"model.layers.{said['num_hidden_layers']}."
    held = [f"{step}embed_tokens.weight", f"{step}shared_head.head.weight"] if with_copies else []
    return blueprint(said, held)


def parameters(bound: Blueprint) -> int:
    return sum(prod(family.shape) * len(family.names) for family in bound.families())


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_published_model_has_as_many_parameters_as_its_table_expects(model: Published) -> None:
    bound = table(model.config, with_copies=model.with_copies)
    assert parameters(bound) == model.parameters, model.source
    if model.tensors is not None:
        assert bound.num_tensors() == model.tensors


def test_glm_5_is_published_without_copies_of_its_embeddings() -> None:
    """The Hub says 753,864,139,008 parameters of zai-org/GLM-5."""
    copies = 2 * 154880 * 6144
    assert parameters(table(GLM_5, with_copies=True)) == 753864139008 + copies


def test_a_step_of_deepseek_v32_is_that_of_v3_with_an_indexer() -> None:
    """The Hub says 685,355,329,792 parameters of deepseek-ai/DeepSeek-V3.2; the table has no rows of its step."""
    step = 684489845504 - 671026419200
    indexer = 8192 * 1536 + 128 * 7168 + 64 * 7168 + 2 * 128  # wq_b, wk, weights_proj, k_norm
    assert parameters(table(DEEPSEEK_V32)) + step + indexer == 685355329792


def test_both_llama_4_have_the_same_vision_beside_their_text() -> None:
    """The Hub says 108,641,793,536 parameters of Scout; 401,583,781,376 of Maverick is what its hosts count."""
    scout, maverick = (parameters(table(llama4(*one))) for one in ((16, 1), (128, 2)))
    assert 108641793536 - scout == 401583781376 - maverick == 871932416
