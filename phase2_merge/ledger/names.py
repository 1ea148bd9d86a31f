"""Hugging Face names by layer and expert, so that a message can describe a thousand tensors in one line.

Must not know which tensors there are.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

# as many digits as any model has: a longer number is a part of a name, and numbers no layer
FIRST_MTP = 1_000_000  # added to numbers of layers below `mtp.`, which count for themselves
LAYER = re.compile(r"\.layers\.([0-9]{1,6})\.")
EXPERT = re.compile(r"\.experts\.([0-9]{1,6})\.")


def layer_of(name: str) -> int | None:
    """Return the layer in a name, None for embeddings, final norms and heads.

    Layers of multi-token prediction follow the decoder's in some families. In others names below `mtp.` count them for
    themselves, and they are numbered from FIRST_MTP on here.
    """
    found = LAYER.search(name)
    return int(found[1]) + FIRST_MTP * name.startswith("mtp.") if found else None


def layer_label(layer: int) -> str:
    """Return how people call a layer that `layer_of` returned: `12`, or `mtp.0`."""
    return f"mtp.{layer - FIRST_MTP}" if layer >= FIRST_MTP else str(layer)


def expert_of(name: str) -> int | None:
    """Return the routed expert in a name, None if it belongs to none."""
    found = EXPERT.search(name)
    return int(found[1]) if found else None


def ranges(numbers: Iterable[int], label: Callable[[int], str] = str) -> str:
    """Return numbers as people write them: `0-3, 7 and 9-12`. `label` writes one of them."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return _spelt(spans, label)


def ranges_without(known: Iterable[int], count: int) -> str:
    """Return the numbers from 0 to `count` that are not known, as `ranges` does, without listing them."""
    edges = [-1, *sorted({number for number in known if 0 <= number < count}), count]
    return _spelt([low + 1, high - 1] for low, high in pairwise(edges) if high - low > 1)


def _spelt(spans: Iterable[Sequence[int]], label: Callable[[int], str] = str) -> str:
    """Return spans of numbers as people write them. Both ends of each are in it."""
    ends = ((label(low), label(high)) for low, high in spans)
    texts = [low if low == high else f"{low}-{high}" for low, high in ends]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}" if texts else ""


def summary(names: Iterable[str]) -> str:
    """Return how many tensors, of which experts and layers: `1,344 tensors, experts 40-47 of layers 24-35`."""
    tensors = list(names)
    routed = [name for name in tensors if expert_of(name) is not None]
    others = [name for name in tensors if expert_of(name) is None]
    parts = [f"{len(tensors):,} tensor{'s' if len(tensors) != 1 else ''}"]
    if routed:
        parts.append(
            f"{_plural('expert', map(expert_of, routed))} of {_plural('layer', map(layer_of, routed))}"
        )
    if others:
        parts.append(_others(others, bool(routed)))
    return ", ".join(parts)


def grouped(names: Iterable[str]) -> list[str]:
    """Return a line for names that differ in layer and expert alone: `mlp.up_proj.weight of expert 3 of layer 12`."""
    alike: dict[tuple[str, int | None], list[str]] = defaultdict(list)
    for name in names:
        alike[_pattern(name), layer_of(name) if expert_of(name) is not None else None].append(name)
    merged: dict[tuple[str, tuple[int, ...]], list[int]] = defaultdict(list)
    lines: list[str] = []
    for (pattern, layer), members in alike.items():
        if layer is not None:
            experts = tuple(sorted(expert for name in members if (expert := expert_of(name)) is not None))
            merged[pattern, experts].append(layer)
        elif layer_of(members[0]) is not None:
            lines.append(f"{pattern} of {_plural('layer', map(layer_of, members))}")
        else:
            lines += members
    for (pattern, experts), layers in merged.items():
        lines.append(f"{pattern} of {_plural('expert', experts)} of {_plural('layer', layers)}")
    return lines


def _pattern(name: str) -> str:
    """Return what follows the expert, or else the layer, in a name."""
    return (EXPERT if EXPERT.search(name) else LAYER).split(name)[-1]


def _others(names: list[str], beside_experts: bool) -> str:
    """Return tensors of no expert: those in layers by layer, the others by name."""
    layers = [layer for name in names if (layer := layer_of(name)) is not None]
    parts = [name for name in names if layer_of(name) is None]
    if layers:
        count = f"{len(layers):,} other{'s' if len(layers) > 1 else ''} of " if beside_experts else ""
        parts.insert(0, count + _plural("layer", layers))
    return ", ".join(parts)


def _plural(noun: str, numbers: Iterable[int | None]) -> str:
    found = {number for number in numbers if number is not None}
    label = layer_label if noun == "layer" else str
    return f"{noun}{'s' if len(found) > 1 else ''} {ranges(found, label)}"
