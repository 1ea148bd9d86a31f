"""Nemotron-H: one mixer a layer, which is Mamba-2, attention, a dense MLP or routed experts; no MLP is gated.

config.json says which, either as `hybrid_override_pattern`, a letter a layer, or as `layers_block_type`, a word a
layer. The norm before a mixer has two keys: a module of its own (local spec), or fused into the first projection.
Source: transformers, models/nemotron_h/{configuration,modeling}_nemotron_h.py; config.json of
nvidia/NVIDIA-Nemotron-3-{Nano-30B-A3B,Super-120B-A12B,Ultra-550B-A55B}-BF16; megatron/core/ssm/mamba_mixer.py (order
of the parts of in_proj and conv1d; A_log and D are float32 there).
"""

from __future__ import annotations

from .blocks import (
    EXPERT,
    LAYER,
    biased_router,
    common_dimensions,
    common_flags,
    embeddings,
    grouped_query_attention,
    same,
    set_flags,
)
from .table import Architecture, Config, Layers, Layout, Row, Target

HF_LAYER = "backbone.layers.{layer}."
MIXER, HF_MIXER = LAYER + "mixer.", HF_LAYER + "mixer."
MLP = LAYER + "mlp."

KINDS = {"M": "mamba", "*": "attention", "-": "dense", "E": "moe"}
# the words of published files, and those that transformers 5 writes
WORDS = {
    "mamba": "M",
    "linear_attention": "M",
    "attention": "*",
    "full_attention": "*",
    "mlp": "-",
    "moe": "E",
}


def _pattern(config: Config) -> str:
    """A letter a layer. Raises KeyError or ValueError for none, for another word, for a length that is contradicted."""
    found = config.get("hybrid_override_pattern") or "".join(WORDS[w] for w in config["layers_block_type"])
    if not found or not set(found) <= set(KINDS):
        raise ValueError(f"the kinds of layers {found!r:.40}")
    if config.get("num_hidden_layers") not in (None, len(found)):
        raise ValueError(f"num_hidden_layers and the kinds of {len(found)} layers")
    return found


def _dimensions(config: Config) -> dict[str, int]:
    pattern = _pattern(config)
    inner = config["mamba_num_heads"] * config["mamba_head_dim"]
    state = config["n_groups"] * config["ssm_state_size"]

    def of(letter: str, name: str) -> int:
        return config[name] if letter in pattern else 0

    plain = {"num_hidden_layers": len(pattern), "intermediate_size": of("-", "intermediate_size")}
    return common_dimensions({**config, **plain}) | {
        "num_experts": of("E", "n_routed_experts"),
        "moe_ffn": of("E", "moe_intermediate_size"),
        "shared_ffn": config.get("moe_shared_expert_intermediate_size") or 0,
        "latent": config.get("moe_latent_size") or 0,
        "expert_width": config.get("moe_latent_size") or config["hidden_size"],
        "mamba_heads": config["mamba_num_heads"],
        "inner": inner,
        "state": state,
        "in_proj": 2 * inner + 2 * state + config["mamba_num_heads"],
        "conv": inner + 2 * state,
        "conv_kernel": config["conv_kernel"],
        "one": 1,
    }


def _flags(config: Config) -> frozenset[str]:
    own = {
        "latent": config.get("moe_latent_size"),
        "shared_experts": config.get("moe_shared_expert_intermediate_size"),
        "conv_bias": config.get("use_conv_bias", True),
    }
    return common_flags(config) | set_flags(own)


def _layers(config: Config) -> Layers:
    pattern = _pattern(config)
    of = {
        kind: frozenset(i for i, at in enumerate(pattern) if at == letter) for letter, kind in KINDS.items()
    }
    return {**of, "layers": range(len(pattern)), "feed_forward": of["dense"] | of["moe"]}


def _norm(where: str, *keys: str) -> Row:
    return Row(
        tuple(LAYER + key for key in keys), (Target(HF_LAYER + "norm.weight", ("hidden",)),), where=where
    )


def _parts(
    of: str, parts: str, sections: tuple[str, ...], shape: tuple[str, ...], when: str = ""
) -> tuple[Row, ...]:
    """A row for each Megatron tensor `of`.z, `of`.x and so on; `sections` are the rows of all."""
    target = Target(HF_MIXER + of, shape)
    return tuple(
        Row((f"{MIXER}{of}.{name}",), (target,), Layout.PART, "mamba", when, sections=sections, part=at)
        for at, name in enumerate(parts.split())
    )


EMBEDDINGS = embeddings("backbone.embeddings.weight", "decoder.final_norm.weight", "backbone.norm_f.weight")

NORMS = (
    _norm("mamba", "mixer.in_proj.layer_norm_weight", "norm.weight"),
    _norm("attention", "self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
    _norm("feed_forward", "mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
)

CONVOLVED = ("inner", "state", "state")  # rows of x, B and C

MAMBA = (
    _parts("in_proj.weight", "z x B C dt", ("inner", *CONVOLVED, "mamba_heads"), ("in_proj", "hidden"))
    + _parts("conv1d.weight", "x B C", CONVOLVED, ("conv", "one", "conv_kernel"))
    + _parts("conv1d.bias", "x B C", CONVOLVED, ("conv",), when="conv_bias")
    + (
        same(MIXER + "dt_bias", HF_MIXER + "dt_bias", "mamba_heads", where="mamba"),
        same(MIXER + "A_log", HF_MIXER + "A_log", "mamba_heads", where="mamba", float32=True),
        same(MIXER + "D", HF_MIXER + "D", "mamba_heads", where="mamba", float32=True),
        same(MIXER + "norm.weight", HF_MIXER + "norm.weight", "inner", where="mamba"),
        same(MIXER + "out_proj.weight", HF_MIXER + "out_proj.weight", "hidden", "inner", where="mamba"),
    )
)

LATENT = tuple(
    same(MLP + name, HF_MIXER + name, *shape, where="moe", when="latent")
    for name, shape in (
        ("fc1_latent_proj.weight", ("latent", "hidden")),
        ("fc2_latent_proj.weight", ("hidden", "latent")),
    )
)


def _mlp(
    prefix: str, hf_prefix: str, width: str, outside: str, where: str, when: str = ""
) -> tuple[Row, ...]:
    """Up and down: [`width`, `outside`] and back."""
    return (
        same(
            prefix + "linear_fc1.weight", hf_prefix + "up_proj.weight", width, outside, where=where, when=when
        ),
        same(
            prefix + "linear_fc2.weight",
            hf_prefix + "down_proj.weight",
            outside,
            width,
            where=where,
            when=when,
        ),
    )


NEMOTRON_H = Architecture(
    "NemotronHForCausalLM",
    "transformers models/nemotron_h/modeling_nemotron_h.py",
    EMBEDDINGS
    + NORMS
    + MAMBA
    + grouped_query_attention(HF_MIXER, "attention")
    + biased_router(HF_MIXER + "gate.")
    + LATENT
    + _mlp(MLP, HF_MIXER, "ffn", "hidden", "dense")
    + _mlp(
        MLP + "shared_experts.", HF_MIXER + "shared_experts.", "shared_ffn", "hidden", "moe", "shared_experts"
    )
    + _mlp(EXPERT, HF_MIXER + "experts.{expert}.", "moe_ffn", "expert_width", "moe"),
    _dimensions,
    _flags,
    _layers,
)
