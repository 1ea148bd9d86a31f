"""Rows of a Mamba-2 mixer, whose projections megatron-core describes in parts.

Source: megatron/core/ssm/mamba_mixer.py (order of the parts of in_proj and conv1d; A_log and D are float32 there).
"""

from __future__ import annotations

from ..keys import LAYER
from ..rows import Layout, Row, Target, same

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
