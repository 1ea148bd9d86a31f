"""Published models: how many parameters each holds, and who says so; what its config.json says of sizes.

HUB is `safetensors.total`, which the Hugging Face Hub reads off the headers of a repository; INDEX is
`metadata.total_size` of its model.safetensors.index.json, two bytes for each parameter of bfloat16; AUDIT are others'
counts over the headers of all shards; TRANSFORMERS is what transformers builds of this config.json, for models whose
published number is rounded, or which are published with scales alone. Must not know tables.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.common.published_words import (
    DEEPSEEK_V3,
    DEEPSTACK,
    GLM_45,
    GLM_45_AIR,
    KIMI_K2,
    KIMI_VISION,
    LLAMA4_VISION,
    QWEN,
    QWEN3_8B,
    QWEN3_30B,
    QWEN35_27B,
    QWEN35_35B,
    Json,
    composite,
    config,
    deepseek,
    delta,
    latent,
    ling,
    llama4,
    qwen_vision,
)

HUB, INDEX, AUDIT, TRANSFORMERS = (
    "the Hub's safetensors.total",
    "the index's metadata.total_size",
    "an audit of all headers",
    "transformers",
)


@dataclass(frozen=True, slots=True)
class Published:
    """A published model.

    Attributes:
        name: Of its repository.
        config: What its config.json says of sizes.
        parameters: How many it holds.
        source: Where that is known from.
        tensors: How many its language model has; None if no source says it of unquantized tensors.
        with_copies: Whether it holds both embeddings once more below its step.
        vision: How many of the parameters are those of a vision tower and of what projects its output.
    """

    name: str
    config: Json
    parameters: int
    source: str
    tensors: int | None = None
    with_copies: bool = False
    vision: int = 0


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
        QWEN3_30B,
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
        KIMI_K2,
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
    Published("Qwen/Qwen3-8B", QWEN3_8B, 8190735360, HUB),
    Published(
        "Qwen/Qwen3-VL-8B-Instruct",
        composite(
            "Qwen3VLForConditionalGeneration",
            QWEN3_8B,
            qwen_vision(4096, deepstack_visual_indexes=DEEPSTACK),
        ),
        8767123696,
        HUB,
        vision=576388336,
    ),
    Published(
        "Qwen/Qwen3-VL-30B-A3B-Instruct",
        composite(
            "Qwen3VLMoeForConditionalGeneration",
            QWEN3_30B,
            qwen_vision(2048, deepstack_visual_indexes=DEEPSTACK),
        ),
        31070754032,
        HUB,
        3
        + 48
        * 11,  # packed: of a layer 2 norms, 4 projections, 2 norms of heads, the router, 2 of all experts
        vision=538631408,
    ),
    Published(
        "Qwen/Qwen3-Next-80B-A3B-Instruct",
        config(
            "Qwen3NextForCausalLM",
            2048,
            5120,
            48,
            (16, 2),
            151936,
            **delta(32, num_nextn_predict_layers=1),  # beside files that hold a step; config.json is silent
            num_experts=512,
            moe_intermediate_size=512,
            shared_expert_intermediate_size=512,
        ),
        81324862720,
        HUB,
        75944,
    ),
    Published(
        "Qwen/Qwen3.5-4B",
        composite(
            "Qwen3_5ForConditionalGeneration",
            config("", 2560, 9216, 32, (16, 4), 248320, **delta(32, mtp_num_hidden_layers=1))
            | {"tie_word_embeddings": True},
            qwen_vision(2560, depth=24, hidden=1024, ffn=4096),
        ),
        4659865088,
        HUB,
        vision=333514240,
    ),
    Published(
        "Qwen/Qwen3.6-27B",
        composite("Qwen3_5ForConditionalGeneration", QWEN35_27B, qwen_vision(5120)),
        27781427952,
        HUB,
        vision=460730096,
    ),
    Published("Qwen/Qwen3.6-27B, by itself", QWEN35_27B, 27781427952 - 460730096, HUB),
    Published(
        "Qwen/Qwen3.5-35B-A3B",
        composite("Qwen3_5MoeForConditionalGeneration", QWEN35_35B, qwen_vision(2048)),
        35951822704,
        HUB,
        vision=446571248,
    ),
    Published("Qwen/Qwen3.5-35B-A3B, by itself", QWEN35_35B, 35951822704 - 446571248, HUB),
    Published(
        "moonshotai/Kimi-K2.5, without its tower",  # which is published in four bits; text as Kimi-K2's
        composite("KimiK25ForConditionalGeneration", KIMI_K2, KIMI_VISION),
        1026408232448,
        AUDIT,
    ),
    Published(
        "meta-llama/Llama-4-Scout-17B-16E",
        composite("Llama4ForConditionalGeneration", llama4(16, 1), LLAMA4_VISION),
        108641793536,
        HUB,
        vision=871932416,
    ),
    Published(
        "rednote-hilab/dots.llm1.inst",
        config(
            "Dots1ForCausalLM", 4096, 10944, 62, (32, 32), 152064, head_dim=128, **deepseek(128, 2, 1408, 1)
        ),
        142774381696,
        HUB,
    ),
    Published(
        "baidu/ERNIE-4.5-21B-A3B-PT",
        config(
            "Ernie4_5_MoeForCausalLM",
            2560,
            12288,
            28,
            (20, 4),
            103424,
            head_dim=128,
            tie_word_embeddings=True,
            moe_num_experts=64,
            moe_num_shared_experts=2,
            moe_intermediate_size=1536,
            moe_layer_start_index=1,
        ),
        21825437888,
        TRANSFORMERS,
    ),
    Published(
        "LGAI-EXAONE/K-EXAONE-236B-A23B, without its step",
        config(
            "ExaoneMoeForCausalLM",
            6144,
            18432,
            48,
            (64, 8),
            153600,
            head_dim=128,
            num_experts=128,
            num_shared_experts=1,
            moe_intermediate_size=2048,
            mlp_layer_types=["dense"] + ["sparse"] * 47,
            layer_types=[*["sliding_attention"] * 3, "full_attention"] * 12,
        ),
        236571156352,
        TRANSFORMERS,
    ),
    Published(
        "zai-org/GLM-4.7-Flash",  # whose metadata.total_size is this number too, and not one of bytes
        config(
            "Glm4MoeLiteForCausalLM",
            2048,
            10240,
            47,
            (20, 20),
            154880,
            num_nextn_predict_layers=1,
            **latent(768, nope=192, value=256),
            **deepseek(64, 1, 1536, 1),
        ),
        31221488576,
        HUB,
        9703,
        with_copies=True,
    ),
    Published(
        "nvidia/Minitron-4B-Base",
        config("NemotronForCausalLM", 3072, 9216, 32, (24, 8), 256000, head_dim=128),
        4190509056,
        TRANSFORMERS,
    ),
)
