"""The small architectures that tests build: one row each, told once for Hugging Face and for megatron-core.

Decides sizes (pairwise different wherever an architecture lets them be, so that no swap stays hidden, and no
weight square), and which worlds can hold them. How they are configured: `hf_config`, `megatron_config`.
Must not know checkpoints or shardmerge.
"""

from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Literal

from tests.worlds.composites import COMPOSITES
from tests.worlds.topology import TOPOLOGIES, Topology
from tests.worlds.widths import Delta, Experts, Gemma, Indexer, Latent, Mamba, Steps

__all__ = [
    "FAMILIES",
    "Architecture",
    "Delta",
    "Experts",
    "Family",
    "FullNorms",
    "Gemma",
    "Indexer",
    "Latent",
    "Mamba",
    "Steps",
    "by_name",
    "topologies_of",
]

Architecture = Literal[
    "LlamaForCausalLM",
    "Llama4ForCausalLM",
    "MistralForCausalLM",
    "OlmoeForCausalLM",
    "MiniMaxM2ForCausalLM",
    "Ernie4_5_MoeForCausalLM",
    "ExaoneMoeForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3MoeForCausalLM",
    "Qwen3NextForCausalLM",
    "Qwen3_5ForCausalLM",
    "Qwen3_5MoeForCausalLM",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
    "MixtralForCausalLM",
    "GptOssForCausalLM",
    "Gemma3ForCausalLM",
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
    "DeepseekV32ForCausalLM",
    "Dots1ForCausalLM",
    "Glm4MoeForCausalLM",
    "Glm4MoeLiteForCausalLM",
    "GlmMoeDsaForCausalLM",
    "KimiK2ForCausalLM",
    "NemotronForCausalLM",
    "NemotronHForCausalLM",
    "BailingMoeV2ForCausalLM",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
    "KimiK25ForConditionalGeneration",
    "Llama4ForConditionalGeneration",
]
# asked without importing it, as Transformer Engine comes first
HAS_DELTA_CP = not version("megatron-core").startswith("0.16.")
# One norm over all heads of the queries, and one over those of the keys: tensor parallelism cuts their weights, or each
# rank holds them whole, under megatron-core's names for norms of a head or (beside) under names of their own. "": none.
FullNorms = Literal["", "cut", "whole", "beside"]


@dataclass(frozen=True, slots=True)
class Family:
    """One test architecture. The fused q/k/v has (heads + 2 * groups) * head_channels rows."""

    name: str
    architecture: Architecture
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    plain_qk_norm: bool = False  # without weights, in layers that rotate
    bias: bool = False  # of every linear layer, experts and router included
    sinks: bool = False
    window: int = 0  # tokens that every other layer sees, from the first on
    layers: int = 4
    hidden: int = 72
    heads: int = 8
    groups: int = 2
    head_channels: int = 12
    dense_width: int = 112
    vocab: int = 211
    rope_theta: int = 10000
    rotated: float = 1.0  # part of a head's channels
    rope_sections: tuple[int, ...] = ()  # pairs for each axis of multimodal positions, which take turns
    neighbours: bool = False  # rotated pairs are neighbours, not halves
    norm: Literal["RMSNorm", "RMSNorm1P", "LayerNorm1P"] = "RMSNorm"  # 1P: weights stored minus one
    norm_eps: float = 1e-5
    activation: Literal["silu", "gelu_tanh", "relu2"] = "silu"  # the last without a gate
    window_of_all: bool = False  # not only of every other layer
    global_layers: tuple[int, ...] = ()  # layers that see all, and do not rotate
    full_norms: FullNorms = ""
    experts: Experts | None = None
    latent: Latent | None = None
    indexer: Indexer | None = None
    gemma: Gemma | None = None
    mamba: Mamba | None = None
    delta: Delta | None = None
    mtp: Steps | None = None

    @property
    def is_gated(self) -> bool:
        """Whether feed-forward layers have a gate."""
        return self.mamba is None and self.activation != "relu2"

    @property
    def is_composite(self) -> bool:
        """Whether a vision tower stands beside the language model, which all sizes here are of."""
        return self.architecture in COMPOSITES

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Global ids of the layers that hold routed experts."""
        if self.mamba is not None:
            return self.mamba.layers("E")
        every = range(self.layers)
        return () if self.experts is None else tuple(filter(self.experts.has_layer, every))

    def padded_vocab(self, tp_size: int, multiple: int = 128) -> int:
        """Vocabulary rows after megatron's padding; at tp 4 the last two ranks hold nothing but padding."""
        step = multiple * tp_size
        return -(-self.vocab // step) * step


# Both sides score a group by its best two experts only if top_k / groups_kept is 2, as published.
_DEEPSEEK = Experts(
    shared_width=80, dense_layers=1, router_bias=True, router_groups=2, groups_kept=1, scaling=2.5
)
_DEEPSEEK_V2 = Experts(shared_width=80, dense_layers=1, normalized=False, scaling=1.5)
_GLM = Experts(shared_width=80, dense_layers=1, router_bias=True, scaling=1.25)
_NEMOTRON = Experts(shared_width=80, router_bias=True, scaling=2.5)

_LLAMA4 = Family(
    "llama4",
    "Llama4ForCausalLM",
    rope_theta=500000,
    neighbours=True,
    plain_qk_norm=True,
    global_layers=(2,),
    experts=Experts(top_k=1, shared_width=40, step=2, weighs_inputs=True, score="sigmoid", normalized=False),
)

FAMILIES: tuple[Family, ...] = (
    Family("llama", "LlamaForCausalLM"),
    Family("llama_tied", "LlamaForCausalLM", tied=True),
    _LLAMA4,
    Family("mistral", "MistralForCausalLM", norm_eps=1e-6, window=20, window_of_all=True),
    Family("qwen2", "Qwen2ForCausalLM", qkv_bias=True, norm_eps=1e-6),
    Family("qwen3", "Qwen3ForCausalLM", qk_norm=True, norm_eps=1e-6),
    Family("qwen3_moe", "Qwen3MoeForCausalLM", qk_norm=True, norm_eps=1e-6, experts=Experts()),
    # its queries are as wide as the model, whatever config.json says
    Family(
        "olmoe",
        "OlmoeForCausalLM",
        hidden=96,
        full_norms="whole",
        experts=Experts(normalized=False),
    ),
    Family(
        "minimax_m2",
        "MiniMaxM2ForCausalLM",
        full_norms="cut",
        rotated=2 / 3,
        norm_eps=1e-6,
        experts=Experts(router_bias=True),
    ),
    Family(
        "ernie4_5_moe",
        "Ernie4_5_MoeForCausalLM",
        rope_theta=500000,
        neighbours=True,
        experts=Experts(shared_width=80, dense_layers=1, router_bias=True, score="softmax"),
    ),
    Family(
        "exaone_moe",
        "ExaoneMoeForCausalLM",
        qk_norm=True,
        window=20,
        global_layers=(1,),
        experts=Experts(shared_width=80, dense_layers=1, router_bias=True, scaling=1.25),
    ),
    Family(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        qkv_bias=True,
        norm_eps=1e-6,
        experts=Experts(shared_width=88, shared_gate=True, normalized=False),
    ),
    Family(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        qk_norm=True,
        rotated=0.5,
        norm="RMSNorm1P",
        norm_eps=1e-6,
        experts=Experts(shared_width=88, shared_gate=True),
        delta=Delta("D*D*"),
    ),
    Family(
        "qwen3_5",
        "Qwen3_5ForCausalLM",
        tied=True,
        qk_norm=True,
        rotated=0.5,
        norm="RMSNorm1P",
        norm_eps=1e-6,
        delta=Delta("*DD*"),
    ),
    Family(
        "qwen3_5_moe",
        "Qwen3_5MoeForCausalLM",
        qk_norm=True,
        rotated=0.5,
        norm="RMSNorm1P",
        norm_eps=1e-6,
        experts=Experts(shared_width=88, shared_gate=True),
        delta=Delta("DDD*"),
    ),
    Family("mixtral", "MixtralForCausalLM", experts=Experts(width=104)),
    Family(
        "gpt_oss",
        "GptOssForCausalLM",
        qkv_bias=True,
        bias=True,
        sinks=True,
        window=16,
        rope_theta=150000,
        experts=Experts(width=56),
    ),
    Family(
        "deepseek_v3", "DeepseekV3ForCausalLM", groups=8, norm_eps=1e-6, experts=_DEEPSEEK, latent=Latent()
    ),
    Family(
        "deepseek_v3_full_query",
        "DeepseekV3ForCausalLM",
        groups=8,
        norm_eps=1e-6,
        experts=_DEEPSEEK,
        latent=Latent(query_rank=0),
    ),
    # a token uses as many groups as experts: both sides then score a group by its best expert
    Family(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        groups=8,
        norm_eps=1e-6,
        experts=replace(_DEEPSEEK_V2, router_groups=4, groups_kept=2),
        latent=Latent(),
    ),
    Family(
        "deepseek_v2_lite",
        "DeepseekV2ForCausalLM",
        groups=8,
        norm_eps=1e-6,
        experts=_DEEPSEEK_V2,
        latent=Latent(query_rank=0),
    ),
    Family(
        "kimi_k2",
        "KimiK2ForCausalLM",
        groups=8,
        norm_eps=1e-6,
        experts=replace(_GLM, scaling=2.5),
        latent=Latent(),
    ),
    Family("dots1", "Dots1ForCausalLM", qk_norm=True, norm_eps=1e-6, experts=_GLM),
    Family("glm4_moe", "Glm4MoeForCausalLM", qkv_bias=True, qk_norm=True, experts=_GLM, rotated=0.5),
    Family("glm4_moe_lite", "Glm4MoeLiteForCausalLM", groups=8, experts=_GLM, latent=Latent()),
    Family(
        "deepseek_v32",
        "DeepseekV32ForCausalLM",
        groups=8,
        norm_eps=1e-6,
        experts=_DEEPSEEK,
        latent=Latent(),
        indexer=Indexer(),
    ),
    Family(
        "glm_moe_dsa",
        "GlmMoeDsaForCausalLM",
        groups=8,
        experts=_GLM,
        latent=Latent(),
        indexer=Indexer(interleaved=True),
    ),
    Family(
        "gemma3",
        "Gemma3ForCausalLM",
        tied=True,
        qk_norm=True,
        window=16,
        rope_theta=1000000,
        norm="RMSNorm1P",
        norm_eps=1e-6,
        activation="gelu_tanh",
        gemma=Gemma(),
    ),
    Family("nemotron", "NemotronForCausalLM", rotated=2 / 3, norm="LayerNorm1P", activation="relu2"),
    Family("nemotron_h", "NemotronHForCausalLM", experts=_NEMOTRON, mamba=Mamba("ME*-")),
    Family(
        "nemotron_h_latent",
        "NemotronHForCausalLM",
        experts=replace(_NEMOTRON, latent_width=32),
        mamba=Mamba("EM*E"),
    ),
    Family(
        "qwen3_vl",
        "Qwen3VLForConditionalGeneration",
        tied=True,
        qk_norm=True,
        norm_eps=1e-6,
        rope_theta=500000,
        rope_sections=(3, 2, 1),
    ),
    Family(
        "qwen3_vl_moe",
        "Qwen3VLMoeForConditionalGeneration",
        qk_norm=True,
        norm_eps=1e-6,
        rope_theta=500000,
        rope_sections=(3, 2, 1),
        experts=Experts(),
    ),
    Family(
        "qwen3_5_vl",
        "Qwen3_5ForConditionalGeneration",
        tied=True,
        qk_norm=True,
        rotated=0.5,
        rope_sections=(1, 1, 1),
        norm="RMSNorm1P",
        norm_eps=1e-6,
        delta=Delta("*DD*"),
    ),
    Family(
        "qwen3_5_moe_vl",
        "Qwen3_5MoeForConditionalGeneration",
        qk_norm=True,
        rotated=0.5,
        rope_sections=(1, 1, 1),
        norm="RMSNorm1P",
        norm_eps=1e-6,
        experts=Experts(shared_width=88, shared_gate=True),
        delta=Delta("DDD*"),
    ),
    Family(
        "kimi_k25",
        "KimiK25ForConditionalGeneration",
        groups=8,
        norm_eps=1e-6,
        experts=replace(_GLM, scaling=2.5),
        latent=Latent(),
    ),
    replace(_LLAMA4, name="llama4_vl", architecture="Llama4ForConditionalGeneration"),
)


def by_name(name: str) -> Family:
    """Return the row called `name`. Raises KeyError for an unknown one."""
    return {family.name: family for family in FAMILIES}[name]


def topologies_of(family: Family) -> tuple[Topology, ...]:
    """Return the listed worlds that can hold the family.

    megatron refuses ep and etp without experts, etp with biases of experts, and (0.16) virtual stages of Mamba and a
    DeltaNet with context parallelism.
    """
    worlds = (world for world in TOPOLOGIES if family.experts is not None or world.ep * world.etp == 1)
    worlds = (world for world in worlds if not family.bias or world.etp == 1)
    worlds = (world for world in worlds if family.delta is None or world.cp == 1 or HAS_DELTA_CP)
    return tuple(world for world in worlds if family.mamba is None or world.vpp == 1)
