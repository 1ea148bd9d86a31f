"""Rows of gated and of plain MLPs, and so of routed experts, whose keys have another prefix.

Settings of the activation stand here too. A gated fc1 appears as `weight_w` (gate) and `weight_v` (up).
Source: megatron/core/transformer/mlp.py (`apply_swiglu_sharded_factory`).
"""

from __future__ import annotations

from ..keys import EXPERT, HF_LAYER, LAYER
from ..rows import Row, same
from ..settings.says import Says, key

# names of transformers' ACT2FN that say the same -> the name of the setting's value
ACTIVATIONS = {
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def activation(name: str = "hidden_act", otherwise: str = "silu") -> Says:
    """Return the setting of the activation, which config.json says under `name`."""
    return key("activation", name, otherwise=otherwise, reads=lambda said: ACTIVATIONS.get(said, said))


def gated_mlp(prefix: str, hf_prefix: str, width: str, where: str, when: str = "") -> tuple[Row, ...]:
    """Return the rows of a gated MLP whose Hugging Face names are gate_proj, up_proj and down_proj.

    Args:
        prefix: what the Megatron keys begin with.
        hf_prefix: what the Hugging Face names begin with.
        width: name of the dimension inside the MLP.
        where: the layers that have it.
        when: the flag of config.json that must be set, "" for none.

    Returns:
        A row each for gate, up and down.
    """
    names = (hf_prefix + "gate_proj.weight", hf_prefix + "up_proj.weight", hf_prefix + "down_proj.weight")
    return gated_mlp_named(prefix, names, width, where, when)


def gated_mlp_named(
    prefix: str, names: tuple[str, str, str], width: str, where: str, when: str = ""
) -> tuple[Row, ...]:
    """Return the rows of a gated MLP whose Hugging Face tensors have names of their own.

    Args:
        prefix: what the Megatron keys begin with.
        names: Hugging Face names of (gate, up, down).
        width: name of the dimension inside the MLP.
        where: the layers that have it.
        when: the flag of config.json that must be set, "" for none.

    Returns:
        A row each for gate, up and down.
    """
    gate, up, down = names
    return (
        same(prefix + "linear_fc1.weight_w", gate, width, "hidden", where=where, when=when),
        same(prefix + "linear_fc1.weight_v", up, width, "hidden", where=where, when=when),
        same(prefix + "linear_fc2.weight", down, "hidden", width, where=where, when=when),
    )


DENSE_MLP = gated_mlp(LAYER + "mlp.", HF_LAYER + "mlp.", "ffn", "dense")
SHARED_EXPERTS = gated_mlp(
    LAYER + "mlp.shared_experts.", HF_LAYER + "mlp.shared_experts.", "shared_ffn", "moe", "shared_experts"
)
# one shared expert, whose output a gate multiplies
GATED_SHARED_EXPERT = (
    *gated_mlp(LAYER + "mlp.shared_experts.", HF_LAYER + "mlp.shared_expert.", "shared_ffn", "moe"),
    same(
        LAYER + "mlp.shared_experts.gate_weight",
        HF_LAYER + "mlp.shared_expert_gate.weight",
        "one",
        "hidden",
        where="moe",
    ),
)
ROUTED_EXPERTS = gated_mlp(EXPERT, HF_LAYER + "mlp.experts.{expert}.", "moe_ffn", "moe")


def plain_mlp(
    prefix: str, hf_prefix: str, width: str, outside: str, *, where: str, when: str = ""
) -> tuple[Row, ...]:
    """Return the rows of an MLP that is not gated: up [`width`, `outside`] and down [`outside`, `width`].

    Args:
        prefix: what the Megatron keys begin with.
        hf_prefix: what the Hugging Face names begin with.
        width: name of the dimension inside the MLP.
        outside: name of the dimension of its inputs and outputs.
        where: the layers that have it.
        when: the flag of config.json that must be set, "" for none.

    Returns:
        A row each for up and down.
    """
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
