"""GPT-OSS: every layer has routed experts with biases, packed in one tensor for all; attention has sinks.

Experts are stored as they multiply from the right, [experts, in, out], and the columns of gate and up alternate. Every
other layer sees a window.
Source: transformers, models/gpt_oss/modeling_gpt_oss.py (`GptOssExperts`); megatron/core/transformer/moe/experts.py.
"""

from __future__ import annotations

from ..blocks.attention import GROUPED_QUERY_ATTENTION, QKV_BIAS, rotated_heads, windows_by_layer
from ..blocks.embeddings import EMBEDDINGS, NORMS, TIED, rms_norms
from ..blocks.experts import ONLY_PACKED
from ..blocks.router import EXPERTS_PER_TOKEN
from ..dimensions import common_dimensions, common_flags, integer, layers_alike
from ..keys import EXPERT, HF_LAYER, LAYER
from ..rows import Architecture, Config, Layout, Row, Target, same
from ..settings.says import always, derived, key

ATTENTION, MLP = HF_LAYER + "self_attn.", HF_LAYER + "mlp."
QUICK_GELU = 1.702  # megatron-core's quick_gelu is x * sigmoid(1.702 x)
# what transformers takes where config.json says nothing of scaling, or null (configuration_gpt_oss.py)
YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
BOTH = ("moe_ffn", "moe_ffn")  # rows of gate, and of up


def _dimensions(config: Config) -> dict[str, int]:
    width = integer(config, "intermediate_size")
    experts = config["num_local_experts"] if "num_local_experts" in config else config["num_experts"]
    return common_dimensions(config) | {"num_experts": experts, "moe_ffn": width, "gate_up": 2 * width}


def _windows(config: Config) -> list[int] | None:
    layers = range(integer(config, "num_hidden_layers"))
    kinds = config.get("layer_types") or [
        "full_attention" if layer % 2 else "sliding_attention" for layer in layers
    ]
    return windows_by_layer(integer(config, "sliding_window", 128), kinds)


def _activation(config: Config) -> str:
    alpha = config.get("swiglu_alpha", QUICK_GELU)
    return "quick_gelu" if alpha == QUICK_GELU else f"x * sigmoid({alpha} * x)"


def _gate_up(kind: str, name: str, shape: tuple[str, ...], *, transposed: bool) -> tuple[Row, ...]:
    """Return the rows of gate and of up, which alternate in one tensor."""
    return tuple(
        Row(
            (f"{EXPERT}linear_fc1.{kind}_{part}",),
            (Target(MLP + name, shape),),
            Layout.PACKED,
            "moe",
            sections=BOTH,
            part=number,
            interleaved=True,
            transposed=transposed,
        )
        for number, part in enumerate("wv")
    )


def _down(kind: str, name: str, shape: tuple[str, ...], *, transposed: bool) -> Row:
    target = Target(MLP + name, shape)
    return Row((f"{EXPERT}linear_fc2.{kind}",), (target,), Layout.PACKED, "moe", transposed=transposed)


EXPERTS = (
    *_gate_up("weight", "experts.gate_up_proj", ("num_experts", "hidden", "gate_up"), transposed=True),
    *_gate_up("bias", "experts.gate_up_proj_bias", ("num_experts", "gate_up"), transposed=False),
    _down("weight", "experts.down_proj", ("num_experts", "moe_ffn", "hidden"), transposed=True),
    _down("bias", "experts.down_proj_bias", ("num_experts", "hidden"), transposed=False),
)

GPT_OSS = Architecture(
    "GptOssForCausalLM",
    "transformers models/gpt_oss/modeling_gpt_oss.py",
    EMBEDDINGS
    + NORMS
    + GROUPED_QUERY_ATTENTION
    + QKV_BIAS
    + (
        same(LAYER + "self_attention.linear_proj.bias", ATTENTION + "o_proj.bias", "hidden", when="o_bias"),
        same(LAYER + "self_attention.core_attention.softmax_offset", ATTENTION + "sinks", "heads"),
        same(LAYER + "mlp.router.weight", MLP + "router.weight", "num_experts", "hidden", where="moe"),
        same(LAYER + "mlp.router.bias", MLP + "router.bias", "num_experts", where="moe"),
    )
    + EXPERTS,
    _dimensions,
    lambda config: (
        common_flags(config) | ({"qkv_bias", "o_bias"} if config.get("attention_bias", True) else set())
    ),
    layers_alike("moe"),
    model_types=("gpt_oss",),
    settings=(
        *rotated_heads(150000.0, scaling=YARN),
        rms_norms(1e-5),
        derived("activation", ("swiglu_alpha",), _activation),
        key("activation_clamp", "swiglu_limit", otherwise=7.0),
        always("gate_offset", 1.0),
        TIED,
        EXPERTS_PER_TOKEN,
        always("router_normalized", True),
        always("attention_sink", "learnable"),
        derived("sliding_windows", ("sliding_window", "layer_types"), _windows),
    ),
    experts=ONLY_PACKED,
    oracles=("Megatron-Bridge", "mcore-bridge", "transformers"),
)
