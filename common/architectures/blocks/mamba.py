"""Rows of a Mamba-2 mixer, whose projections megatron-core describes in parts; its settings.

Source: megatron/core/ssm/mamba_mixer.py (order of the parts of in_proj and conv1d; A_log and D are float32 there).
"""

from __future__ import annotations

import math

from ..keys import LAYER
from ..rows import Layout, Row, Target, same
from ..settings.says import key
from ..settings.vocabulary import Value

MIXER = LAYER + "mixer."
CONVOLVED = ("inner", "state", "state")  # rows of x, B and C


def mamba(hf_mixer: str) -> tuple[Row, ...]:
    """Return the rows of a Mamba-2 mixer, with `in_proj` and `conv1d` in parts. A_log and D stay float32."""
    return (
        _parts(
            hf_mixer,
            "in_proj.weight",
            "z x B C dt",
            ("inner", *CONVOLVED, "mamba_heads"),
            ("in_proj", "hidden"),
        )
        + _parts(hf_mixer, "conv1d.weight", "x B C", CONVOLVED, ("conv", "one", "conv_kernel"))
        + _parts(hf_mixer, "conv1d.bias", "x B C", CONVOLVED, ("conv",), when="conv_bias")
        + (
            same(MIXER + "dt_bias", hf_mixer + "dt_bias", "mamba_heads", where="mamba"),
            same(MIXER + "A_log", hf_mixer + "A_log", "mamba_heads", where="mamba", float32=True),
            same(MIXER + "D", hf_mixer + "D", "mamba_heads", where="mamba", float32=True),
            same(MIXER + "norm.weight", hf_mixer + "norm.weight", "inner", where="mamba"),
            same(MIXER + "out_proj.weight", hf_mixer + "out_proj.weight", "hidden", "inner", where="mamba"),
        )
    )


def _parts(
    hf_mixer: str, tensor: str, parts: str, sections: tuple[str, ...], shape: tuple[str, ...], when: str = ""
) -> tuple[Row, ...]:
    """Return a row for each Megatron tensor, `tensor`.z, `tensor`.x and so on. `sections` are the sizes of all."""
    target = Target(hf_mixer + tensor, shape)
    return tuple(
        Row(
            (f"{MIXER}{tensor}.{name}",),
            (target,),
            Layout.PART,
            "mamba",
            when,
            sections=sections,
            part=number,
        )
        for number, name in enumerate(parts.split())
    )


def _bounds(said: Value) -> list[float | None]:
    """Return the least and the largest time step, null for no bound: JSON has no infinity.

    transformers 5 writes it as an object.
    """
    least, largest = said
    return [float(least), None if largest in (None, math.inf, {"__float__": "Infinity"}) else float(largest)]


MAMBA_SETTINGS = (
    key("mamba_heads", "mamba_num_heads"),
    key("mamba_head_dim", "mamba_head_dim"),
    key("mamba_groups", "mamba_n_groups", "n_groups"),
    key("mamba_state", "ssm_state_size"),
    key("mamba_activation", "mamba_hidden_act", otherwise="silu"),
    key("mamba_time_step", "mamba_dt_limit", "time_step_limit", otherwise=[0.0, None], reads=_bounds),
    key("mamba_norm_eps", "layer_norm_epsilon", "norm_eps", otherwise=1e-5),
)
