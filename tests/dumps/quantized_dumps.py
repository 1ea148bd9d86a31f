"""Dumps of models that modelopt really quantized, and manifests of them edited as no honest rank would write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron.core.models.gpt.gpt_model import GPTModel

from shardmerge.common.manifest import Manifest, columns, encode, read
from shardmerge.common.manifest_facts import Health, QuantizationFacts
from tests.phase1_dump.dumped import dumped
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import Family
from tests.worlds.filling import fill
from tests.worlds.quantizing import quantize, recipe
from tests.worlds.topology import Topology

Spoil = Callable[[int, GPTModel], None]
Edit = Callable[[Manifest], Manifest]


def dump_quantized(
    family: Family,
    topology: Topology,
    recipe_name: str,
    out: Path,
    reference: Path,
    *,
    spoil: Spoil | None = None,
    recipe_of_rank: Callable[[int], str] | None = None,
    te: bool = False,
    kv_cache: bool = False,
    mtp: bool = True,
    experts: str | None = None,
) -> None:
    """Dump every rank of a fake world; `spoil` changes a rank's model after it was calibrated.

    `te`: grouped experts and Transformer Engine's attention, which alone has quantizers for a KV cache.
    `mtp`: quantize multi-token prediction too. `experts`: how they are spelled.
    """
    for rank in range(topology.world_size):
        with fake_world(topology, rank):
            chunks = build_model(family, topology, te=te)
            fill(chunks, family, topology, rank)
            name = recipe_of_rank(rank) if recipe_of_rank else recipe_name
            if name != "none":
                config = recipe(name, kv_cache=kv_cache, mtp=mtp)
                quantize(chunks, family, topology, rank, config, shared_inputs=te)
            if spoil is not None:
                spoil(rank, chunks[0])
            dumped(chunks, out, reference, experts=experts)


def edit_manifests(dump: Path, edit: Edit) -> None:
    """Write every manifest again, edited, with a digest that fits."""
    for path in sorted(dump.glob("rank-*/manifest.json")):
        path.write_bytes(encode(edit(read(path))))


def without(name: str) -> Edit:
    """A manifest that does not speak of a tensor."""

    def edit(found: Manifest) -> Manifest:
        names, dtypes, kept = columns([one for one in found.placed() if one.rectangle.name != name])
        return replace(found, names=names, dtypes=dtypes, columns=kept, health=Health())

    return edit


def with_facts(change: Callable[[dict[str, Any], int], None]) -> Edit:
    """A manifest whose quantization facts, as JSON, were changed in place."""

    def edit(found: Manifest) -> Manifest:
        told = found.quantization.as_json() if found.quantization else {}
        change(told, found.rank)
        return replace(found, quantization=QuantizationFacts.of_json(told) if told else None)

    return edit


def with_scalar(name: str, value: float, *, rank: int | None = None) -> Edit:
    """A manifest, or that of one rank, that tells another value of a scalar."""

    def change(told: dict[str, Any], of: int) -> None:
        names, values = told["scalars"]["names"], told["scalars"]["values"]
        if name in names and rank in (None, of):
            values[names.index(name)] = value

    return with_facts(change)


def moved(module: str, to: str) -> Edit:
    """A manifest that calls a module excluded, or of a format, on every rank that speaks of it."""

    def change(told: dict[str, Any], of: int) -> None:
        lists = [*told["layers"].values(), told["excluded"]]
        if any(module in one for one in lists):
            for one in lists:
                one[:] = [name for name in one if name != module]
            (told["excluded"] if to == "excluded" else told["layers"][to]).append(module)

    return with_facts(change)
