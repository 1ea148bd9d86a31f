"""Rows of a Gated DeltaNet, whose projections megatron-core describes in parts; its settings.

Published tensors differ: Qwen3-Next stacks the parts of each head of keys, Qwen3.5 stacks heads. The norm of the output
is the only one that readers do not add 1 to.
Source: megatron/core/ssm/gated_delta_net (`sharded_state_dict`: beta comes before alpha); transformers,
models/{qwen3_next,qwen3_5}/modeling_*.py; mcore-bridge, model/modules/gated_delta_net.py and
model/gpts/qwen3_next_gdn.py, for what is refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..dimensions import integer
from ..keys import HF_LAYER, LAYER
from ..rows import Layout, Refusal, Row, Target, same
from ..settings.says import Config, Says, always, derived, key
from .embeddings import NORMS

DELTA, FULL = (
    "delta",
    "attention",
)  # the sets of layers with a DeltaNet, and with attention, which a table defines
ATTENTION, HF_DELTA = LAYER + "self_attention.", HF_LAYER + "linear_attn."
SIZES = {  # dimension -> its key in config.json, and what an absent key stands for
    "delta_key_heads": ("linear_num_key_heads", 16),
    "delta_value_heads": ("linear_num_value_heads", 32),
    "delta_key_dim": ("linear_key_head_dim", 128),
    "delta_value_dim": ("linear_value_head_dim", 128),
    "delta_kernel": ("linear_conv_kernel_dim", 4),
}
KINDS = {"linear_attention": 1, "full_attention": 0}
KIND_KEYS = ("layer_types", "full_attention_interval")
QKV = ("delta_keys", "delta_keys", "delta_values")


def _parts(tensor: str, parts: str, name: str, rows: str, sections: tuple[str, ...]) -> tuple[Row, ...]:
    """Return a row for each Megatron tensor `tensor`.query and so on, all of one Hugging Face tensor."""
    others = ("one", "delta_kernel") if tensor.startswith("conv1d") else ("hidden",)
    target = Target(HF_DELTA + name, (rows, *others))
    return tuple(
        Row((f"{ATTENTION}{tensor}.{part}",), (target,), Layout.PART, DELTA, sections=sections, part=number)
        for number, part in enumerate(parts.split())
    )


def _projection(part: str, name: str, rows: str) -> Row:
    return same(f"{ATTENTION}in_proj.weight.{part}", HF_DELTA + name, rows, "hidden", where=DELTA)


# the norm before a DeltaNet has a key of its own where it is fused into the projection
DELTA_NORMS = (replace(NORMS[0], keys=(*NORMS[0].keys, ATTENTION + "in_proj.layer_norm_weight")), *NORMS[1:])

# each head of keys has its query, its key, and the values and gates of the heads of values that read it
STACKED_BY_HEAD = (
    *_parts(
        "in_proj.weight",
        "query key value z",
        "in_proj_qkvz.weight",
        "delta_qkvz",
        ("delta_key_dim", "delta_key_dim", "group_values", "group_values"),
    ),
    *_parts("in_proj.weight", "beta alpha", "in_proj_ba.weight", "delta_ba", ("group_heads", "group_heads")),
)
STACKED = (
    *_parts("in_proj.weight", "query key value", "in_proj_qkv.weight", "delta_qkv", QKV),
    _projection("z", "in_proj_z.weight", "delta_values"),
    _projection("beta", "in_proj_b.weight", "delta_value_heads"),
    _projection("alpha", "in_proj_a.weight", "delta_value_heads"),
)


def delta_net(projections: tuple[Row, ...]) -> tuple[Row, ...]:
    """Return the rows of a DeltaNet; `projections` are those of what multiplies its input."""
    norm = Target(HF_DELTA + "norm.weight", ("delta_value_dim",))
    return (
        *projections,
        *_parts("conv1d.weight", "query key value", "conv1d.weight", "delta_qkv", QKV),
        same(ATTENTION + "dt_bias", HF_DELTA + "dt_bias", "delta_value_heads", where=DELTA),
        same(ATTENTION + "A_log", HF_DELTA + "A_log", "delta_value_heads", where=DELTA),
        Row((ATTENTION + "out_norm.weight",), (norm,), where=DELTA, plain_norm=True),
        same(
            ATTENTION + "out_proj.weight", HF_DELTA + "out_proj.weight", "hidden", "delta_values", where=DELTA
        ),
    )


# by keys of mcore-bridge's class, in whose state no part has a key of its own
DESCRIBED_WHOLE = tuple(
    Refusal(
        f"{ATTENTION}{tensor}.weight",
        "mcore-bridge describes a DeltaNet so: one tensor whose rows are those of each head of keys together, and with "
        "tensor parallelism those of each rank one after the other, which no shape shows. Load it into megatron-core's "
        "own GatedDeltaNet, which describes the parts, or let mcore-bridge write the Hugging Face files",
    )
    for tensor in ("in_proj", "in_proj_qkvz", "in_proj_ba", "conv1d")
)


def delta_dimensions(config: Config) -> dict[str, int]:
    """Return the dimensions that rows of a DeltaNet name.

    Raises ValueError for a size that is not an integer, and for heads of values that heads of keys do not divide.
    """
    sizes = {name: integer(config, said, absent) for name, (said, absent) in SIZES.items()}
    key_heads, value_heads = sizes["delta_key_heads"], sizes["delta_value_heads"]
    each, rest = divmod(value_heads, key_heads)
    if rest:
        raise ValueError(f"linear_num_value_heads = {value_heads} and linear_num_key_heads = {key_heads}")
    keys, values = key_heads * sizes["delta_key_dim"], value_heads * sizes["delta_value_dim"]
    return sizes | {
        "delta_keys": keys,
        "delta_values": values,
        "delta_qkv": 2 * keys + values,
        "delta_qkvz": 2 * keys + 2 * values,
        "delta_ba": 2 * value_heads,
        "group_values": each * sizes["delta_value_dim"],
        "group_heads": each,
        "one": 1,
    }


def linear_layers(config: Config) -> list[int]:
    """Return 1 for each layer of the decoder with a DeltaNet, and 0 for each with attention.

    Raises ValueError for other kinds, and for another number of them. Source: `Qwen3NextConfig.__post_init__`.
    """
    layers, kinds = integer(config, "num_hidden_layers"), config.get("layer_types")
    if kinds is None:
        interval = integer(config, "full_attention_interval", 4)
        return [int((layer + 1) % interval != 0) for layer in range(layers)]
    if len(kinds) != layers or not set(kinds) <= set(KINDS):
        raise ValueError(f"num_hidden_layers and layer_types {kinds!r:.60}")
    return [KINDS[kind] for kind in kinds]


def _activation(said: Any) -> str:
    """Return the activation: readers have silu before a DeltaNet's norm, and Megatron the model's."""
    if said not in ("silu", "swish"):
        raise ValueError(f"hidden_act = {said!r:.40}, where a DeltaNet has silu")
    return "silu"


def _any(config: Config) -> bool:
    return any(linear_layers(config))


DELTA_SETTINGS: tuple[Says, ...] = (
    derived("attention_variant", KIND_KEYS, lambda config: "gated_delta_net" if _any(config) else None),
    derived(
        "linear_attention_layers", KIND_KEYS, lambda config: linear_layers(config) if _any(config) else None
    ),
    *(key(name, said, otherwise=absent) for name, (said, absent) in SIZES.items()),
    key("activation", "hidden_act", otherwise="silu", reads=_activation),
    always("zero_centred_norms", True),
    always("attention_gate", True),
)
