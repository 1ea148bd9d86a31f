"""Rows of routed experts in both spellings: a tensor for each expert, and one for all experts of a layer.

A table describes its experts once, one by one; the rows of packed tensors follow from that. Which spelling a layer gets
is decided in `architectures/spelling.py`.
Source: transformers, conversion_mapping.py ("qwen2_moe", "nemotron_h"); vLLM,
model_executor/layers/fused_moe/routed_experts.py (`load_weights`, `build_expert_params_mapping`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..rows import Layout, Row, Spelling, Spellings, Target
from .mlp import ROUTED_EXPERTS

PER_EXPERT, PACKED = Spelling.PER_EXPERT, Spelling.PACKED
# Of published files that hold each expert's, where readers take packed ones of the decoder too.
EITHER = Spellings((PER_EXPERT, PACKED))
OWN_LOADER = Spellings(
    (PER_EXPERT,),
    only="vLLM loads this architecture with code of its own, which takes experts one by one alone.",
)
TWO_NAMES = Spellings(
    (PER_EXPERT,),
    only="transformers and vLLM look for its packed experts under different names (gate_up_proj, w13).",
)
ONE_READER = Spellings(
    (PER_EXPERT,), only="transformers alone reads this architecture; published files hold experts one by one."
)
ONLY_PACKED = Spellings((PACKED,), (PACKED,), only="transformers and vLLM take its experts packed alone.")


def both_spellings(
    per_expert: tuple[Row, ...],
    *,
    gate_up: str = "gate_up_proj",
    down: str = "down_proj",
    transposed: bool = False,
    interleaved: bool = False,
) -> tuple[Row, ...]:
    """Return the rows of routed experts in both spellings, each marked with its own.

    Args:
        per_expert: Of a gated expert the rows of gate [I, h], up [I, h] and down [h, I]; of a plain one those of up and
            down. Their Hugging Face names hold {expert}.
        gate_up: What follows `experts.` in the name of the packed [E, 2 I, h] of gate, then up; or the [E, I, h] of up.
        down: What follows `experts.` in the name of the packed [E, h, I].
        transposed: Packed tensors hold each expert's transposed: [E, h, 2 I] and [E, I, h].
        interleaved: Rows of gate and up alternate in the packed tensor.

    Returns:
        The given rows, then as many for packed tensors.
    """
    *first, last = per_expert
    turned = Row((), (), Layout.PACKED, transposed=transposed, interleaved=interleaved, spelling=PACKED)
    return (
        *(replace(row, spelling=PER_EXPERT) for row in per_expert),
        *_sections(first, replace(turned, interleaved=interleaved and len(first) > 1), gate_up),
        *_sections([last], replace(turned, interleaved=False), down),
    )


def _sections(rows: list[Row], packed: Row, name: str) -> Iterator[Row]:
    """Yield the rows of one packed tensor, whose sections are what `rows` hold of each expert."""
    prefix = rows[0].targets[0].name.partition("{expert}")[0]
    sizes = tuple(row.targets[0].shape[0] for row in rows)
    shape = ("+".join(sizes), *rows[0].targets[0].shape[1:])
    target = Target(prefix + name, ("num_experts", *(shape[::-1] if packed.transposed else shape)))
    for part, row in enumerate(rows):
        yield replace(
            packed,
            keys=row.keys,
            targets=(target,),
            where=row.where,
            when=row.when,
            sections=sizes if len(sizes) > 1 else (),
            part=part,
        )


IN_EITHER = both_spellings(ROUTED_EXPERTS)
