"""Makes the manifest of a rank: what was written where, and what a merge must know about the rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import xxhash

from shardmerge.common.manifest import FragmentFile, Manifest, Placed, columns
from shardmerge.common.manifest_facts import Facts, Health, QuantizationFacts

from ..source import Source
from .plan import PlannedFragment
from .writer import Written


def manifest_of(
    source: Source,
    fragments: Sequence[PlannedFragment],
    written: Sequence[Sequence[Written]],
    replicas: Sequence[Placed] = (),
) -> Manifest:
    """Return the manifest of a rank whose fragments are written.

    Args:
        source: says who the rank is, and all facts that are not about bytes.
        fragments: the files.
        written: `written[i][j]` is what was learnt about holding j of fragment i.
        replicas: rows of what is held here and written elsewhere.

    Returns:
        The manifest, which is not written yet.
    """
    placed = list(_placed(fragments, written, source.world.rank))
    names, dtypes, rows = columns([*placed, *replicas])
    learnt = [rectangle for fragment in written for rectangle in fragment]
    facts, generation, world = source.facts, source.generation, source.world
    return Manifest(
        run_id=generation.run_id,
        step=generation.step,
        attempt=generation.attempt,
        rank=world.rank,
        world_size=world.size,
        coordinates=world.coordinates,
        groups=world.groups,
        architecture=facts.architecture,
        facts=Facts(
            dtype=facts.params_dtype,
            dimensions=facts.dimensions,
            dtype_from_reference=facts.dtype_from_reference,
            settings=facts.settings,
            experts=facts.experts or None,
            table=facts.table,
            own_options=None if facts.settings is None else list(facts.own_options),
        ),
        files=tuple(map(_file, fragments)),
        names=names,
        dtypes=dtypes,
        columns=rows,
        health=_health(placed, learnt),
        quantization=_quantization(facts.quantization, placed, learnt),
        drops=facts.drops,
        statistics=_statistics(facts.router_bias_dtypes, placed, learnt) | facts.statistics,
        producer=facts.producer,
    )


def _placed(
    fragments: Sequence[PlannedFragment], written: Sequence[Sequence[Written]], rank: int
) -> Iterator[Placed]:
    for number, (fragment, learnt) in enumerate(zip(fragments, written, strict=True)):
        start = fragment.header.data_offset
        for holding, entry, one in zip(fragment.holdings, fragment.header.entries, learnt, strict=True):
            yield Placed(
                holding.rectangle, number, start + entry.begin, start + entry.end, rank, one.xxh3_128
            )


def _file(fragment: PlannedFragment) -> FragmentFile:
    digest = xxhash.xxh3_128_hexdigest(fragment.head)
    return FragmentFile(fragment.name, fragment.header.file_bytes, len(fragment.head), digest)


def _health(placed: Sequence[Placed], learnt: Sequence[Written]) -> Health:
    shifted = [(p.rectangle, one.seen) for p, one in zip(placed, learnt, strict=True) if one.seen.added]
    return Health(
        nonfinite=[[row, *one.seen.nonfinite] for row, one in enumerate(learnt) if one.seen.nonfinite],
        all_zero=[row for row, one in enumerate(learnt) if one.seen.all_zero],
        shifted_norms={
            "added": sum(rectangle.num_elements for rectangle, seen in shifted if seen.added > 0),
            "subtracted": sum(rectangle.num_elements for rectangle, seen in shifted if seen.added < 0),
            "rounded": sum(seen.narrowed for _, seen in shifted),
        }
        if shifted
        else None,
    )


def _quantization(
    facts: QuantizationFacts | None, placed: Sequence[Placed], learnt: Sequence[Written]
) -> QuantizationFacts | None:
    """Return the facts, with the number of invalid elements of each scale that was written."""
    bad = {
        p.rectangle.fragment_key: one.seen.invalid_scales
        for p, one in zip(placed, learnt, strict=True)
        if one.seen.invalid_scales
    }
    return None if facts is None else replace(facts, bad_scales=bad)


def _statistics(
    router_bias_dtypes: dict[str, int], placed: Sequence[Placed], learnt: Sequence[Written]
) -> dict[str, Any]:
    narrowed = {
        p.rectangle.fragment_key: one.seen.narrowed
        for p, one in zip(placed, learnt, strict=True)
        if one.seen.narrowed
    }
    return {
        "written_bytes": sum(p.rectangle.num_bytes for p in placed),
        "narrowed_elements": narrowed,
        "router_bias_dtypes": router_bias_dtypes,
    }
