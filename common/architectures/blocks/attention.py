"""Rows of grouped-query attention: fused projection, output projection, biases, norms of heads; its settings.

Source: megatron/core/transformer/attention.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..dimensions import head_channels, integer, unless_absent
from ..keys import HF_LAYER, LAYER
from ..rows import Layout, Row, Target, same
from ..settings.rope import NEW, PARTIAL, Rotated, rope
from ..settings.says import Config, Says, derived, key, said


def grouped_query_attention(hf_prefix: str, where: str) -> tuple[Row, ...]:
    """Return the rows of the fused projection of queries, keys and values, and of the output projection."""
    return (_fused(hf_prefix, where, "q", Layout.QKV), _output(hf_prefix, where))


def gated_attention(hf_prefix: str, where: str) -> tuple[Row, ...]:
    """Return the same rows of attention whose output a gate multiplies, of which the fused projection has rows too."""
    return (_fused(hf_prefix, where, "gated_q", Layout.GATED_QKV), _output(hf_prefix, where))


def _fused(hf_prefix: str, where: str, queries: str, layout: Layout) -> Row:
    targets = (
        Target(hf_prefix + "q_proj.weight", (queries, "hidden")),
        Target(hf_prefix + "k_proj.weight", ("kv", "hidden")),
        Target(hf_prefix + "v_proj.weight", ("kv", "hidden")),
    )
    return Row((LAYER + "self_attention.linear_qkv.weight",), targets, layout, where=where)


def _output(hf_prefix: str, where: str) -> Row:
    name = hf_prefix + "o_proj.weight"
    return same(LAYER + "self_attention.linear_proj.weight", name, "hidden", "q", where=where)


GROUPED_QUERY_ATTENTION = grouped_query_attention(HF_LAYER + "self_attn.", "layers")

QKV_BIAS = (
    Row(
        (LAYER + "self_attention.linear_qkv.bias",),
        (
            Target(HF_LAYER + "self_attn.q_proj.bias", ("q",)),
            Target(HF_LAYER + "self_attn.k_proj.bias", ("kv",)),
            Target(HF_LAYER + "self_attn.v_proj.bias", ("kv",)),
        ),
        Layout.QKV,
        where="layers",
        when="qkv_bias",
    ),
)


def head_norms(when: str = "", where: str = "layers") -> tuple[Row, ...]:
    """Return the rows of the norms of each query and key, which exist if the flag `when` is set."""
    return tuple(
        same(
            LAYER + f"self_attention.{side}_layernorm.weight",
            HF_LAYER + f"self_attn.{side}_norm.weight",
            "head_dim",
            where=where,
            when=when,
        )
        for side in "qk"
    )


HEAD_NORMS = head_norms()

# one norm over all heads of the queries, and one over those of the keys. Megatron-Bridge and mcore-bridge, which alone
# build them, call them differently; megatron-core has norms of heads under the first of these keys
FULL_WIDTH_NORMS = tuple(
    Row(
        (LAYER + f"self_attention.{one}_layernorm.weight", LAYER + f"self_attention.{one}_norm.weight"),
        (Target(HF_LAYER + f"self_attn.{one}_norm.weight", (width,)),),
        where="layers",
    )
    for one, width in (("q", "q"), ("k", "kv"))
)


# transformers (masking_utils.py, `create_causal_mask`) and vLLM
CAUSAL = key("causal", "is_causal", otherwise=True)

CHANNELS = "rotary_dim"


def _part(config: Config) -> float:
    """Return the part of a head that rotates. Raises ValueError if its two spellings differ.

    Readers take either: transformers the part, vLLM both.
    """
    head_dim, channels = head_channels(config), integer(config, CHANNELS, 0)
    parts = [float(part) for _, part in said(config, (f"{NEW}.{PARTIAL}", PARTIAL)) if part is not None]
    if channels and parts and int(head_dim * parts[0]) != channels:
        raise ValueError(f"{CHANNELS} = {channels} and {PARTIAL} = {parts[0]}")
    return channels / head_dim if channels else 1.0


# config.json says how many channels of a head rotate, or which part of them
BY_CHANNELS = Rotated(_part, (CHANNELS,))

HEADS = (
    CAUSAL,
    key("attention_heads", "num_attention_heads"),
    derived(
        "key_value_heads",
        ("num_key_value_heads",),
        lambda config: integer(config, "num_key_value_heads", integer(config, "num_attention_heads")),
    ),
    derived("head_dim", ("head_dim",), head_channels),
    derived("softmax_scale", ("head_dim",), lambda config: head_channels(config) ** -0.5),
)


def rotated_heads(
    theta: float = 10000.0, rotated: Rotated | None = None, scaling: Mapping[str, Any] | None = None
) -> tuple[Says, ...]:
    """Return the settings of grouped-query attention with rotary positions.

    Args:
        theta: The base where config.json says none.
        rotated: Which channels of a head rotate, if config.json can say it; None: all.
        scaling: What an absent `rope_parameters` stands for; None: nothing.

    Returns:
        Rows.
    """
    return HEADS + rope(head_channels, theta, rotated, scaling)


def window_of_all(*, switch: str | None, otherwise: int = 0) -> Says:
    """Return the setting of a sliding window that all layers have if config.json has a number under sliding_window.

    Args:
        switch: The key that must be true besides; None without one.
        otherwise: The window where config.json lacks sliding_window. Null there is always none.

    Returns:
        The row.
    """

    def windows(config: Config) -> list[int] | None:
        used = switch is None or config.get(switch)
        said = unless_absent(config, "sliding_window", otherwise)
        window = said if used else 0
        return [window] * integer(config, "num_hidden_layers") if window else None

    return derived("sliding_windows", ("sliding_window", *([switch] if switch else [])), windows)


def window_by_layer(config: Config) -> list[int] | None:
    """Return the window of each layer of a config.json that lists kinds of layers, or says which is the first with one.

    Source: transformers, models/qwen2/configuration_qwen2.py.
    """
    none = "sliding_window" in config and config["sliding_window"] is None
    window = integer(config, "sliding_window", 4096) if config.get("use_sliding_window") and not none else 0
    return windows_from(config, window, config.get("max_window_layers", 28))


def windows_from(config: Config, window: int, first: int) -> list[int] | None:
    """Return the window of each layer: by listed kinds, or where none are listed, from a certain layer on.

    Args:
        config: The config.json, or its part of the language model.
        window: In tokens; 0 for none.
        first: The first layer that has one where no kinds are listed.

    Returns:
        One for each layer, 0 for none; None if no layer has one.

    Raises:
        ValueError: A layer is said to have a window, and there is none.
    """
    layers = range(integer(config, "num_hidden_layers"))
    counted = ["sliding_attention" if window and layer >= first else "" for layer in layers]
    return windows_by_layer(window, config.get("layer_types") or counted)


def windows_by_layer(window: int, kinds: Iterable[str]) -> list[int] | None:
    """Return the window of each layer, by the names that transformers gives to kinds of layers.

    Raises ValueError if one should have a window and there is none: such a layer sees nothing in some readers.
    """
    kinds = tuple(kinds)
    if not window and "sliding_attention" in kinds:
        raise ValueError("layer_types says sliding_attention, and there is no window")
    windows = [window if kind == "sliding_attention" else 0 for kind in kinds]
    return windows if any(windows) else None


WINDOW_BY_LAYER = derived(
    "sliding_windows",
    ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
    window_by_layer,
)
