"""The manifest of a live dump: what was written where, and what a merge must know about this rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import xxhash
from torch import nn

from shardmerge.common.architectures import Blueprint
from shardmerge.common.manifest import FragmentFile, Manifest, Placed, columns
from shardmerge.common.manifest_facts import Facts, Health, QuantizationFacts

from ..sources.generation import Generation
from ..sources.refusals import unwrap
from ..sources.world import World
from .plan import Fragment
from .writer import Written

PRODUCERS = ("shardmerge", "megatron-core", "torch")


@dataclass(frozen=True, slots=True)
class Head:
    """Everything a manifest says besides rectangles."""

    generation: Generation
    world: World
    blueprint: Blueprint
    params_dtype: str
    drops: dict[str, int]
    router_bias_dtypes: dict[str, int]
    dtype_from_reference: bool
    quantization: QuantizationFacts | None = None


def manifest_of(
    head: Head,
    fragments: Sequence[Fragment],
    written: Sequence[Sequence[Written]],
    replicas: Sequence[Placed] = (),
) -> Manifest:
    """`written[i][j]` is what was learnt about holding j of fragment i; `replicas` are held here, written elsewhere."""
    placed = list(_placed(fragments, written, head.world.rank))
    names, dtypes, found = columns([*placed, *replicas])
    learnt = [one for of in written for one in of]
    return Manifest(
        run_id=head.generation.run_id,
        step=head.generation.step,
        attempt=head.generation.attempt,
        rank=head.world.rank,
        world_size=head.world.size,
        coordinates=head.world.coordinates,
        groups=head.world.groups,
        architecture=head.blueprint.architecture.name,
        facts=Facts(
            dtype=head.params_dtype,
            dimensions=head.blueprint.dimensions,
            dtype_from_reference=head.dtype_from_reference,
        ),
        files=tuple(map(_file, fragments)),
        names=names,
        dtypes=dtypes,
        columns=found,
        health=_health(learnt),
        quantization=_quantization(head, placed, learnt),
        drops=head.drops,
        statistics=_statistics(head, placed, learnt),
        producer=dict(versions()),
    )


def router_bias_dtypes(chunks: Iterable[nn.Module]) -> dict[str, int]:
    """How many router biases the model holds in each dtype: training may have rounded what is exported as float32."""
    found: dict[str, int] = {}
    for chunk in chunks:
        for name, buffer in unwrap(chunk).named_buffers():
            if name.endswith("router.expert_bias"):
                found[str(buffer.dtype)] = found.get(str(buffer.dtype), 0) + 1
    return found


def _placed(
    fragments: Sequence[Fragment], written: Sequence[Sequence[Written]], rank: int
) -> Iterator[Placed]:
    for number, (fragment, learnt) in enumerate(zip(fragments, written, strict=True)):
        start = fragment.header.data_offset
        for holding, entry, one in zip(fragment.holdings, fragment.header.entries, learnt, strict=True):
            yield Placed(
                holding.rectangle, number, start + entry.begin, start + entry.end, rank, one.xxh3_128
            )


def _file(fragment: Fragment) -> FragmentFile:
    digest = xxhash.xxh3_128_hexdigest(fragment.head)
    return FragmentFile(fragment.name, fragment.header.file_bytes, len(fragment.head), digest)


def _health(learnt: Sequence[Written]) -> Health:
    return Health(
        nonfinite=[[row, *one.nonfinite] for row, one in enumerate(learnt) if one.nonfinite],
        all_zero=[row for row, one in enumerate(learnt) if one.all_zero],
    )


def _quantization(
    head: Head, placed: Sequence[Placed], learnt: Sequence[Written]
) -> QuantizationFacts | None:
    """The facts, and of each written scale how many elements cannot be one."""
    bad = {
        p.rectangle.fragment_key: one.invalid_scales
        for p, one in zip(placed, learnt, strict=True)
        if one.invalid_scales
    }
    return None if head.quantization is None else replace(head.quantization, bad_scales=bad)


def _statistics(head: Head, placed: Sequence[Placed], learnt: Sequence[Written]) -> dict[str, Any]:
    narrowed = {
        p.rectangle.fragment_key: one.narrowed for p, one in zip(placed, learnt, strict=True) if one.narrowed
    }
    return {
        "written_bytes": sum(p.rectangle.num_bytes for p in placed),
        "narrowed_elements": narrowed,
        "router_bias_dtypes": head.router_bias_dtypes,
    }


def versions() -> Iterator[tuple[str, str]]:
    """(program, version) of what makes a dump."""
    for name in PRODUCERS:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "unknown"
