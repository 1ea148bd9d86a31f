"""Leaves out of what ranks say of quantization the modules that a merge drops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from shardmerge.common.manifest import Manifest
from shardmerge.common.manifest_facts import QuantizationFacts, Scalars

IsDropped = Callable[[str], bool]


def without(manifests: Sequence[Manifest], is_dropped: IsDropped) -> tuple[Manifest, ...]:
    """Return manifests that say nothing of what is dropped, and nothing at all if no quantized module is left.

    Args:
        manifests: Of all ranks.
        is_dropped: Whether the merge leaves out a module or a tensor of this name.

    Returns:
        Copies, in the same order.
    """
    left = [
        replace(one, quantization=_facts(one.quantization, is_dropped)) if one.quantization else one
        for one in manifests
    ]
    if any(_quantizes(one.quantization) for one in left):
        return tuple(left)
    return tuple(replace(one, quantization=None) for one in left)


def _quantizes(facts: QuantizationFacts | None) -> bool:
    if facts is None:
        return False
    return any((facts.layers or {}).values()) or any((facts.kv_cache or {}).values())


def _facts(facts: QuantizationFacts, is_dropped: IsDropped) -> QuantizationFacts:
    return replace(
        facts,
        layers=_lists(facts.layers, is_dropped),
        excluded=_names(facts.excluded, is_dropped),
        kv_cache=_lists(facts.kv_cache, is_dropped),
        scalars=_scalars(facts.scalars, is_dropped),
        uncalibrated=_names(facts.uncalibrated, is_dropped),
        bad_scales=None
        if facts.bad_scales is None
        else {name: count for name, count in facts.bad_scales.items() if not is_dropped(name)},
    )


def _lists(lists: dict[str, list[str]] | None, is_dropped: IsDropped) -> dict[str, list[str]] | None:
    """Return the lists that still name something: a format of dropped modules alone is not one of the checkpoint."""
    if lists is None:
        return None
    left = {key: [name for name in names if not is_dropped(name)] for key, names in lists.items()}
    return {key: names for key, names in left.items() if names}


def _names(names: list[str] | None, is_dropped: IsDropped) -> list[str] | None:
    return None if names is None else [name for name in names if not is_dropped(name)]


def _scalars(scalars: Scalars | None, is_dropped: IsDropped) -> Scalars | None:
    if scalars is None:
        return None
    kept = [
        (name, value)
        for name, value in zip(scalars.names, scalars.values, strict=True)
        if not is_dropped(name)
    ]
    return Scalars([name for name, _ in kept], [value for _, value in kept])
