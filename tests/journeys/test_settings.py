"""What config.json says that shows in no shape, against what real models compute.

Each setting of each family is changed once in the model and once in config.json, and must be noticed by its name.
Models as they are must agree with the config.json that transformers writes for them; what an importer of others makes
of it is compared in `tests.oracles.settings`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.activations import quick_gelu, squared_relu
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import YarnRotaryEmbedding
from megatron.core.transformer.enums import AttnMaskType

from shardmerge.common.architectures import blueprint
from shardmerge.common.architectures.settings.vocabulary import MTP_SETTINGS
from shardmerge.common.errors import (
    ConfigMismatchError,
)
from shardmerge.phase2_merge import check
from tests.journeys.settings import NAMES, Change, Dumped, dumped, mismatches, problems
from tests.worlds.families import by_name

DENSE = ("llama", "mistral", "qwen2", "qwen3")
NORMALIZED, UNNORMALIZED = (
    ("qwen3_moe", "mixtral", "ernie4_5_moe"),
    ("olmoe", "qwen2_moe"),
)  # weights of a token's experts add up to 1, or not
MOE = (*NORMALIZED, *UNNORMALIZED)
UNBIASED = ("qwen3_moe", "mixtral", "olmoe", "qwen2_moe")
SIGMOID = ("minimax_m2", "exaone_moe")  # of scores with a bias, without groups


@pytest.mark.parametrize("name", NAMES)
def test_a_model_agrees_with_its_own_config(name: str, dumps: dict[str, Dumped]) -> None:
    one = dumps[name]
    report = check([one.dump], hf_reference=one.reference, allow=["vision"])
    assert report.config.differing == ()
    said = {name for name, value in blueprint(one.config()).settings().items() if value.keys}
    assert said - MTP_SETTINGS <= {*report.config.settings}
    assert report.config.not_compared == ("vocab_size, of which megatron-core knows a padded number only",)


def setting(**values: Any) -> Change:
    """Fields of TransformerConfig, which all modules share."""

    def change(model: Any) -> None:
        for name, value in values.items():
            assert hasattr(model.config, name)
            setattr(model.config, name, value)

    return change


def rotating(**options: Any) -> Change:
    """Another rotary embedding of the model."""

    def change(model: Any) -> None:
        given = {"kv_channels": model.config.kv_channels, "rotary_percent": 1.0, "rotary_base": 10000}
        model.rotary_pos_emb = RotaryEmbedding(**given | {"use_cpu_initialization": True} | options)

    return change


def yarn(**options: Any) -> Change:
    def change(model: Any) -> None:
        given = {
            "kv_channels": model.config.kv_channels,
            "rotary_base": 10000.0,
            "use_cpu_initialization": True,
        }
        model.rotary_pos_emb = YarnRotaryEmbedding(**given | options)

    return change


def latent(kind: type[Any], **options: Any) -> Change:
    """Another rotary embedding of each latent attention."""

    def change(model: Any) -> None:
        found = [module for module in model.modules() if hasattr(module, "q_head_dim")]
        assert found
        for module in found:
            module.rotary_pos_emb = kind(
                model.config.qk_pos_emb_head_dim, use_cpu_initialization=True, **options
            )

    return change


def each_module(attribute: str, value: Any, part: str = "") -> Change:
    """An attribute of all modules that have it, and whose name holds `part`."""

    def change(model: Any) -> None:
        found = [
            module for name, module in model.named_modules() if hasattr(module, attribute) and part in name
        ]
        assert found
        for module in found:
            setattr(module, attribute, value)

    return change


def tied(model: Any) -> None:
    model.share_embeddings_and_output_weights = True


def one_of_another_base(model: Any) -> None:
    found = next(module for module in model.modules() if hasattr(module, "q_head_dim"))
    found.rotary_pos_emb = RotaryEmbedding(
        model.config.qk_pos_emb_head_dim, rotary_percent=1.0, rotary_base=5000, use_cpu_initialization=True
    )


def told_of_yarn(model: Any) -> None:
    """As a provider does: attention takes the factor from the config, whatever the rotary embedding is."""
    model.config.yarn_rotary_scaling_factor = 32.0


def seeing_all(model: Any) -> None:
    for name, module in model.named_modules():
        if name.endswith("self_attention") and hasattr(module, "attn_mask_type"):
            module.attn_mask_type = AttnMaskType.no_mask


GROUPED = (*DENSE, *MOE, *SIGMOID)
LATENT = ("deepseek_v3", "deepseek_v3_full_query")
HYBRID = ("nemotron_h",)
GLM = ("glm4_moe", "glm4_moe_lite", "dots1")
ROUTED = (*MOE, *SIGMOID, *LATENT, *HYBRID, *GLM, "deepseek_v2")
BIASED = ("ernie4_5_moe", *SIGMOID, *LATENT, *HYBRID, *GLM)
ALL = (*GROUPED, *LATENT, *HYBRID, *GLM, "deepseek_v2", "nemotron")
UNGATED = tuple(name for name in ROUTED if name != "qwen2_moe")
CHANGES: tuple[tuple[str, tuple[str, ...], Change, set[str]], ...] = (
    ("base", GROUPED, rotating(rotary_base=600000), {"rope_frequencies"}),
    ("whole heads", ("glm4_moe",), rotating(), {"rope_frequencies"}),
    ("percent", GROUPED, rotating(rotary_percent=0.5), {"rope_frequencies"}),
    ("interpolation", GROUPED, rotating(seq_len_interpolation_factor=4.0), {"rope_frequencies"}),
    ("llama 3", GROUPED, rotating(rope_scaling=True), {"rope_frequencies"}),
    ("yarn", GROUPED, yarn(scaling_factor=8.0), {"rope_frequencies", "rope_factor"}),
    (
        "base of latent",
        LATENT,
        latent(RotaryEmbedding, rotary_percent=1.0, rotary_base=5000),
        {"rope_frequencies"},
    ),
    (
        "yarn of latent",
        LATENT,
        latent(YarnRotaryEmbedding, scaling_factor=40.0, original_max_position_embeddings=64),
        {"rope_frequencies", "rope_factor"},
    ),
    ("factor of yarn without yarn", GROUPED, told_of_yarn, {"rope_factor"}),
    ("attention to what comes later", ALL, seeing_all, {"causal"}),
    ("base of one latent attention", LATENT, one_of_another_base, {"rope_frequencies"}),
    ("no rotation", GROUPED, lambda model: delattr(model, "rotary_pos_emb"), {"rope_frequencies"}),
    ("neighbours", ("llama", "qwen3_moe"), setting(rotary_interleaved=True), {"rope_interleaved"}),
    ("halves", ("ernie4_5_moe",), setting(rotary_interleaved=False), {"rope_interleaved"}),
    ("layers without", GROUPED, setting(no_rope_freq=[0, 0, 0, 1]), {"layers_without_rope"}),
    ("eps of all", GROUPED, each_module("eps", 3e-4), {"norm_eps"}),
    ("eps of one norm", GROUPED, each_module("eps", 3e-4, "final_layernorm"), {"norm_eps"}),
    ("eps of hybrids", HYBRID, each_module("eps", 3e-4, "input_layernorm"), {"norm_eps"}),
    ("eps of mixers", HYBRID, each_module("eps", 3e-4, "mixer.norm"), {"mamba_norm_eps"}),
    ("eps of latent norms", LATENT, each_module("eps", 3e-4, "kv_layernorm"), {"latent_norm_eps"}),
    ("kind of norms", ALL[:-1], setting(normalization="LayerNorm"), {"norm"}),
    ("another kind of norms", ("nemotron",), setting(normalization="RMSNorm"), {"norm"}),
    ("another base", ("nemotron",), rotating(rotary_base=600000, rotary_percent=2 / 3), {"rope_frequencies"}),
    ("norm of heads", ALL, setting(qk_l2_norm=True), {"query_key_norm"}),
    ("scale", (*GROUPED, *HYBRID), setting(softmax_scale=0.125), {"softmax_scale"}),
    (
        "scale of latent attention",
        LATENT,
        each_module("softmax_scale", 0.5, "self_attention"),
        {"softmax_scale"},
    ),
    ("sink", ALL, setting(softmax_type="off-by-one"), {"attention_sink"}),
    ("windows", ALL, setting(window_size=(15, 0)), {"sliding_windows"}),
    ("some windows", ALL, setting(window_size=(15, 0), window_attn_skip_freq=2), {"sliding_windows"}),
    ("activation", ALL, setting(activation_func=torch.nn.functional.gelu), {"activation"}),
    ("another activation", ALL, setting(activation_func=quick_gelu), {"activation"}),
    ("a third", GROUPED, setting(activation_func=squared_relu), {"activation"}),
    ("clamp", (*GROUPED, *LATENT), setting(activation_func_clamp_value=7.0), {"activation_clamp"}),
    ("offset", (*GROUPED, *LATENT), setting(glu_linear_offset=1.0), {"gate_offset"}),
    ("top-k", MOE, setting(moe_router_topk=1), {"experts_per_token"}),
    ("more experts", LATENT, setting(moe_router_topk=4), {"experts_per_token", "router_group_score"}),
    (
        "more experts without groups",
        (*HYBRID, *GLM, *SIGMOID),
        setting(moe_router_topk=3),
        {"experts_per_token"},
    ),
    ("score", NORMALIZED, setting(moe_router_score_function="sigmoid"), {"router_score"}),
    (
        "another score",
        UNNORMALIZED,
        setting(moe_router_score_function="sigmoid"),
        {"router_score", "router_normalized"},
    ),
    ("score of softmax", BIASED[1:], setting(moe_router_score_function="softmax"), {"router_score"}),
    ("normalisation", NORMALIZED, setting(moe_router_pre_softmax=True), {"router_normalized"}),
    ("none", UNNORMALIZED, setting(moe_router_pre_softmax=False), {"router_normalized"}),
    ("scaling", ROUTED, setting(moe_router_topk_scaling_factor=1.75), {"router_scaling"}),
    (
        "groups",
        (*MOE, *SIGMOID),
        setting(moe_router_num_groups=2, moe_router_group_topk=1),
        {"router_groups", "router_group_score"},
    ),
    ("no groups", LATENT, setting(moe_router_group_topk=None), {"router_groups", "router_group_score"}),
    ("bias", UNBIASED, setting(moe_router_enable_expert_bias=True), {"router_bias"}),
    (
        "groups scored by several",
        ("deepseek_v2",),
        setting(moe_router_topk=4),
        {"experts_per_token", "router_group_score"},
    ),
    (
        "normalisation of DeepSeek-V2",
        ("deepseek_v2",),
        setting(moe_router_pre_softmax=False),
        {"router_normalized"},
    ),
    ("no bias", BIASED, setting(moe_router_enable_expert_bias=False), {"router_bias"}),
    ("weights on inputs", ROUTED, setting(moe_apply_probs_on_input=True), {"router_weights_input"}),
    ("gate of shared experts", UNGATED, setting(moe_shared_expert_gate=True), {"shared_expert_gate"}),
    ("no such gate", ("qwen2_moe",), setting(moe_shared_expert_gate=False), {"shared_expert_gate"}),
    ("variant", ALL, setting(experimental_attention_variant="dsa"), {"attention_variant"}),
    ("gate of attention", ALL, setting(attention_output_gate=True), {"attention_gate"}),
    ("linear layers", ALL, setting(linear_attention_freq=2), {"linear_attention_layers"}),
    ("tied", ALL, tied, {"tied_embeddings"}),
    ("activation of mixers", HYBRID, each_module("activation", "gelu", "mixer"), {"mamba_activation"}),
)
SPARSE = ("deepseek_v32", "glm_moe_dsa")  # not of 0.16
CHANGES += (
    ("indexed tokens", SPARSE, setting(dsa_indexer_topk=5), {"indexer_top_k"}),
    ("heads of the indexer", SPARSE, setting(dsa_indexer_n_heads=3), {"indexer_heads"}),
    ("channels of the indexer", SPARSE, setting(dsa_indexer_head_dim=28), {"indexer_head_dim"}),
    (
        "rotation of the indexer",
        SPARSE[:1],
        setting(dsa_indexer_rope_interleaved=True),
        {"indexer_rope_interleaved"},
    ),
    (
        "rotation of the indexer",
        SPARSE[1:],
        setting(dsa_indexer_rope_interleaved=False),
        {"indexer_rope_interleaved"},
    ),
    ("eps of the indexer", SPARSE, each_module("eps", 3e-4, "indexer.k_norm"), {"indexer_norm_eps"}),
    ("no indexer", SPARSE, setting(experimental_attention_variant=None), {"attention_variant"}),
    (
        "base of sparse attention",
        SPARSE,
        latent(RotaryEmbedding, rotary_percent=1.0, rotary_base=5000),
        {"rope_frequencies"},
    ),
    (
        "scale of sparse attention",
        SPARSE,
        each_module("softmax_scale", 0.5, "self_attention"),
        {"softmax_scale"},
    ),
    ("top-k beside an indexer", SPARSE[1:], setting(moe_router_topk=4), {"experts_per_token"}),
    ("bias beside an indexer", SPARSE, setting(moe_router_enable_expert_bias=False), {"router_bias"}),
)
MODELS = [
    pytest.param(name, change, wanted, id=f"{name}-{what}")
    for what, names, change, wanted in CHANGES
    for name in names
    if name in NAMES
]


@pytest.mark.sampled
@pytest.mark.parametrize(("name", "change", "wanted"), MODELS)
def test_a_model_that_computes_something_else_is_noticed(
    name: str, change: Change, wanted: set[str], dumps: dict[str, Dumped], tmp_path: Path
) -> None:
    one = dumped(by_name(name), dumps[name].reference, tmp_path / "dump", change)
    found = problems(one)
    assert mismatches(found).keys() == wanted
    assert [type(problem) for problem in found] == [ConfigMismatchError] * len(wanted)
    assert problems(one, allow=["config"]) == []
