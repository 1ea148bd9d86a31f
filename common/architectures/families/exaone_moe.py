"""EXAONE-MoE: dense first layers, shared experts, a router with a bias; layers without a window do not rotate.

A step of multi-token prediction is a dense layer of its own, `mtp.layers.{n}`, and there is one.
Source: transformers, models/exaone_moe/{configuration,modeling}_exaone_moe.py; vllm, exaone_moe_mtp.py;
megatron-bridge, models/exaone/exaone_moe/exaone_moe_bridge.py.
"""

from __future__ import annotations

from ..blocks.attention import GROUPED_QUERY_ATTENTION, HEAD_NORMS, rotated_heads, windows_by_layer
from ..blocks.embeddings import EMBEDDINGS, NORMS, TIED, rms_norms
from ..blocks.experts import EITHER, IN_EITHER
from ..blocks.mlp import DENSE_MLP, SHARED_EXPERTS, activation
from ..blocks.mtp import FIRST, LAST, NUMBER, one_step, promising_none, steps_of
from ..blocks.router import biased_router_settings, router_with_bias
from ..dimensions import (
    common_dimensions,
    divisor,
    expert_dimensions,
    integer,
    set_flags,
    unbiased_flags,
    unless_absent,
)
from ..keys import HF_LAYER, STEP_LAYER
from ..rows import Architecture, Config, Layers, MultiTokenPrediction
from ..settings.says import derived

SHARED_STEP = "mtp_share_layers"  # one stored step predicts several tokens
WINDOW_KEYS = ("sliding_window", "layer_types", "sliding_window_pattern")


def _dimensions(config: Config) -> dict[str, int]:
    experts = expert_dimensions(config, config["num_experts"], _shared_experts(config))
    return common_dimensions(config) | experts | {"two_hidden": 2 * integer(config, "hidden_size")}


def _shared_experts(config: Config) -> int:
    """Return how many there are: one where config.json says nothing, as transformers reads it."""
    return unless_absent(config, "num_shared_experts", 1)


def _flags(config: Config) -> frozenset[str]:
    return unbiased_flags(config) | set_flags({"shared_experts": _shared_experts(config)})


def _layers(config: Config) -> Layers:
    decoder, (steps, _) = config["num_hidden_layers"], _steps(config)
    kinds = config.get("mlp_layer_types") or [
        "dense" if layer < config.get("first_k_dense_replace", 1) else "sparse" for layer in range(decoder)
    ]
    if len(kinds) != decoder:
        raise ValueError(f"num_hidden_layers and mlp_layer_types of {len(kinds)} layers")
    every = range(decoder + steps)
    moe = frozenset(layer for layer, kind in enumerate(kinds) if kind == "sparse")
    return {
        "layers": every,
        "moe": moe,
        "dense": frozenset(every) - moe,
        FIRST: every[decoder:],
        LAST: every[decoder:],
    }


def _steps(config: Config) -> tuple[int, int]:
    """Return how many steps are stored, each of one layer. There are names for one."""
    steps = steps_of(config)
    if steps > 1 and not config.get(SHARED_STEP):
        raise ValueError(f"{NUMBER} = {steps} without {SHARED_STEP}")
    return min(steps, 1), 1


def _kinds(config: Config) -> list[str]:
    """Return the kind of attention of each layer.

    Source: `ExaoneMoeConfig.__post_init__`, which takes a pattern of letters only beside a list.
    """
    layers, kinds = range(integer(config, "num_hidden_layers")), config.get("layer_types")
    if kinds is None:
        pattern = divisor(config, "sliding_window_pattern", 4)
        kinds = ["sliding_attention" if (layer + 1) % pattern else "full_attention" for layer in layers]
    if len(kinds) != len(layers):
        raise ValueError(f"num_hidden_layers and layer_types of {len(kinds)} layers")
    return list(kinds)


def _window(config: Config) -> int:
    return unless_absent(config, "sliding_window", 4096)


def _windows(config: Config) -> list[int] | None:
    window = _window(config)
    return windows_by_layer(window, _kinds(config)) if window else None


def _without_rope(config: Config) -> list[int] | None:
    """Layers that see all do not rotate where others have a window. Source: `ExaoneMoeAttention.forward`."""
    without = [int(kind != "sliding_attention") for kind in _kinds(config)] if _window(config) else []
    return without if any(without) else None


EXAONE_MOE = Architecture(
    "ExaoneMoeForCausalLM",
    "transformers models/exaone_moe/modeling_exaone_moe.py",
    EMBEDDINGS
    + NORMS
    + GROUPED_QUERY_ATTENTION
    + HEAD_NORMS
    + DENSE_MLP
    + router_with_bias(HF_LAYER + "mlp.gate.weight", HF_LAYER + "mlp.e_score_correction_bias")
    + SHARED_EXPERTS
    + IN_EITHER
    + one_step(),
    _dimensions,
    _flags,
    _layers,
    model_types=("exaone_moe",),
    mtp=MultiTokenPrediction(
        _steps,
        STEP_LAYER,
        (HF_LAYER, "mtp.layers.{mtp}."),
        promising_none,
        "vllm/model_executor/models/exaone_moe_mtp.py",
    ),
    settings=(
        *rotated_heads(),
        derived("sliding_windows", WINDOW_KEYS, _windows),
        derived("layers_without_rope", WINDOW_KEYS, _without_rope),
        rms_norms(1e-5),
        activation(),
        TIED,
        *biased_router_settings(groups=(1, 1), scaling=2.5),
        derived("mtp_steps", (NUMBER, SHARED_STEP), lambda config: _steps(config)[0]),
    ),
    aliases=("ExaoneMoEForCausalLM",),
    experts=EITHER,
    oracles=("Megatron-Bridge", "transformers"),
)
