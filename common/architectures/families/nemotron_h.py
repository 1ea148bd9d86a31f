"""Nemotron-H: a layer is one mixer: Mamba-2, attention, a dense MLP or routed experts. No MLP is gated.

config.json says which, either as `hybrid_override_pattern`, a letter a layer, or as `layers_block_type`, a word a
layer. The norm before a mixer has two keys: a module of its own (local spec), or fused into the first projection.

A step of multi-token prediction is a short stack of such layers, `mtp_hybrid_override_pattern` or
`mtp_layers_block_type`. They are stored as `mtp.layers.{f}`, f counting through all steps; what joins the embedding is
on the first layer of a step, its final norm on the last. Where training repeats one stored step, it is one step here.
Source: transformers, models/nemotron_h/{configuration,modeling}_nemotron_h.py; config.json of
nvidia/NVIDIA-Nemotron-3-{Nano-30B-A3B,Super-120B-A12B,Ultra-550B-A55B}-BF16; megatron/core/ssm/mamba_mixer.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..blocks.attention import HEADS, grouped_query_attention
from ..blocks.embeddings import TIED, embeddings
from ..blocks.experts import EITHER, both_spellings
from ..blocks.mamba import MAMBA_SETTINGS, mamba
from ..blocks.mlp import activation, plain_mlp
from ..blocks.mtp import FIRST, LAST, NUMBER, step_rows, steps_of
from ..blocks.router import biased_router, biased_router_settings
from ..dimensions import common_dimensions, integer, set_flags, unbiased_flags
from ..keys import EXPERT, LAYER, STEP_HYBRID_LAYER
from ..rows import OF_EVERY_TABLE, Architecture, Config, Layers, MultiTokenPrediction, Row, Target, same
from ..settings.says import always, derived, key, said

CONV_BIAS = ("use_conv_bias", "mamba_conv_bias")
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
    """Return a letter for each layer. Raises KeyError or ValueError if layers are missing, unknown or contradicted."""
    listed = [config[name] for name in ("layers_block_type", "layer_types") if config.get(name) is not None]
    pattern = config.get("hybrid_override_pattern") or _letters(listed[0] if listed else ())
    if any(_letters(words) != pattern for words in listed):  # some readers take the words, others the letters
        raise ValueError(f"the kinds of layers {pattern!r:.40} and {listed!r:.60}")
    if not pattern or not set(pattern) <= set(KINDS):
        raise ValueError(f"the kinds of layers {pattern!r:.40}")
    if config.get("num_hidden_layers") not in (None, len(pattern)):
        raise ValueError(f"num_hidden_layers and the kinds of {len(pattern)} layers")
    return pattern


def _letters(words: Iterable[str]) -> str:
    return "".join(WORDS[word] for word in words)


def _mtp_pattern(config: Config) -> str:
    """Return a letter for each layer of a step of multi-token prediction."""
    words = config.get("mtp_layers_block_type")
    if not isinstance(words, list | None):
        raise ValueError(f"mtp_layers_block_type = {words!r:.40}")
    listed = _letters(words or ())
    pattern = config.get("mtp_hybrid_override_pattern") or listed
    # readers take the list, but for this one, which transformers always writes
    if listed not in ("", "*E", pattern):
        raise ValueError(
            f"mtp_layers_block_type {words!r:.40} beside mtp_hybrid_override_pattern {pattern!r:.40}"
        )
    if not pattern or not set(pattern) <= set(KINDS):
        raise ValueError(f"mtp_hybrid_override_pattern: the kinds of layers {pattern!r:.40}")
    return pattern


def _steps(config: Config) -> tuple[int, int]:
    steps = steps_of(config)
    return steps, len(_mtp_pattern(config)) if steps else 1


def _dimensions(config: Config) -> dict[str, int]:
    pattern = _pattern(config)
    mamba_heads = integer(config, "mamba_num_heads")
    mamba_groups, mamba_state = integer(config, "n_groups"), integer(config, "ssm_state_size")
    inner, state = mamba_heads * integer(config, "mamba_head_dim"), mamba_groups * mamba_state

    def if_used(letter: str, name: str) -> int:
        """Return a size that the decoder needs, or that only steps of MTP may need: leaving these out changes none."""
        return config[name] if letter in pattern else config.get(name) or 0

    plain = {"num_hidden_layers": len(pattern), "intermediate_size": if_used("-", "intermediate_size")}
    return common_dimensions({**config, **plain}) | {
        "num_experts": if_used("E", "n_routed_experts"),
        "moe_ffn": if_used("E", "moe_intermediate_size"),
        "shared_ffn": config.get("moe_shared_expert_intermediate_size") or 0,
        "latent": config.get("moe_latent_size") or 0,
        "expert_width": config.get("moe_latent_size") or config["hidden_size"],
        "mamba_heads": mamba_heads,
        "mamba_groups": mamba_groups,  # no shape shows the factors of `state`, but readers cut it by them
        "mamba_state": mamba_state,
        "inner": inner,
        "state": state,
        "in_proj": 2 * inner + 2 * state + mamba_heads,
        "conv": inner + 2 * state,
        "conv_kernel": config["conv_kernel"],
        "one": 1,
        "two_hidden": 2 * integer(config, "hidden_size"),
    }


def _flags(config: Config) -> frozenset[str]:
    if (config.get("n_shared_experts") or 1) != 1:  # vLLM multiplies the width by it, transformers does not
        raise ValueError(f"n_shared_experts = {config['n_shared_experts']!r:.40}")
    own = {
        "latent": config.get("moe_latent_size"),
        "shared_experts": config.get("moe_shared_expert_intermediate_size"),
        "conv_bias": next((bias for _, bias in said(config, CONV_BIAS)), True),
    }
    return unbiased_flags(config, "use_bias", "mamba_proj_bias") | set_flags(own)


def _layers(config: Config) -> Layers:
    decoder, (steps, period) = _pattern(config), _steps(config)
    pattern, first = decoder + (_mtp_pattern(config) * steps if steps else ""), len(decoder)
    by_kind = {
        kind: frozenset(i for i, own in enumerate(pattern) if own == letter) for letter, kind in KINDS.items()
    }
    return {
        **by_kind,
        "layers": range(len(pattern)),
        "feed_forward": by_kind["dense"] | by_kind["moe"],
        FIRST: range(first, len(pattern), period),
        LAST: range(first + period - 1, len(pattern), period),
    }


def _windows(config: Config) -> list[int] | None:
    """Read the window of all layers, which vLLM heeds and transformers does not."""
    window = integer(config, "sliding_window", 0)
    return [window] * len(_pattern(config)) if window else None


def _without_mtp(config: Config) -> dict[str, Any]:
    """Say it three times: vLLM looks at the number, SGLang at the words of a step, and null is refused by all.

    Source: transformers `NemotronHConfig`; vllm/config/speculative.py; sglang/srt/models/nemotron_h_mtp.py.
    """
    plain = {key: value for key, value in config.items() if key != "mtp_hybrid_override_pattern"}
    return {**plain, NUMBER: 0, "mtp_layers_block_type": []}


def _norm(where: str, *keys: str) -> Row:
    return Row(
        tuple(LAYER + key for key in keys), (Target(HF_LAYER + "norm.weight", ("hidden",)),), where=where
    )


EMBEDDINGS = embeddings("backbone.embeddings.weight", "decoder.final_norm.weight", "backbone.norm_f.weight")

NORMS = (
    _norm("mamba", "mixer.in_proj.layer_norm_weight", "norm.weight"),
    _norm("attention", "self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
    _norm("feed_forward", "mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
)

LATENT = tuple(
    same(MLP + name, HF_MIXER + name, *shape, where="moe", when="latent")
    for name, shape in (
        ("fc1_latent_proj.weight", ("latent", "hidden")),
        ("fc2_latent_proj.weight", ("hidden", "latent")),
    )
)


NEMOTRON_H = Architecture(
    "NemotronHForCausalLM",
    "transformers models/nemotron_h/modeling_nemotron_h.py",
    EMBEDDINGS
    + NORMS
    + mamba(HF_MIXER)
    + grouped_query_attention(HF_MIXER, "attention")
    + biased_router(HF_MIXER + "gate.")
    + LATENT
    + plain_mlp(MLP, HF_MIXER, width="ffn", outside="hidden", where="dense")
    + plain_mlp(
        MLP + "shared_experts.",
        HF_MIXER + "shared_experts.",
        width="shared_ffn",
        outside="hidden",
        where="moe",
        when="shared_experts",
    )
    + both_spellings(
        plain_mlp(
            EXPERT, HF_MIXER + "experts.{expert}.", width="moe_ffn", outside="expert_width", where="moe"
        ),
        gate_up="up_proj",
    )
    + step_rows("mtp.layers.{mtp}.", "mtp.layers.{mtp}.final_layernorm.weight"),
    _dimensions,
    _flags,
    _layers,
    model_types=("nemotron_h",),
    mtp=MultiTokenPrediction(
        _steps,
        STEP_HYBRID_LAYER,
        (HF_LAYER, "mtp.layers.{mtp}."),
        _without_mtp,
        "vllm/model_executor/models/nemotron_h_mtp.py; megatron-bridge, models/nemotronh/nemotron_h_bridge.py",
    ),
    settings=(
        *HEADS,
        derived("sliding_windows", ("sliding_window",), _windows),
        key("norm_eps", "layer_norm_epsilon", "norm_eps", otherwise=1e-5),
        activation("mlp_hidden_act", "relu2"),
        always("gated", False),
        TIED,
        *MAMBA_SETTINGS,
        *biased_router_settings(groups=(1, 1), scaling=1.0),
        key("moe_latent", "moe_latent_size"),
        key("mtp_steps", NUMBER, otherwise=0),
        derived(
            "mtp_pattern",
            ("mtp_hybrid_override_pattern", "mtp_layers_block_type"),
            lambda config: _mtp_pattern(config) if steps_of(config) else None,
        ),
    ),
    experts=EITHER,
    repeated=(*OF_EVERY_TABLE, CONV_BIAS, ("conv_kernel", "mamba_d_conv")),
    oracles=("Megatron-Bridge", "Model-Optimizer"),
)
