"""Dumps made from arrays by the code of phase one, without torch: what `dump` does once it knows the model."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from shardmerge.common.architectures import blueprint
from shardmerge.common.rectangle import Rectangle
from shardmerge.phase1_dump.fragments.failed_ranks import forget_failure, record_failure
from shardmerge.phase1_dump.fragments.rank_directory import refuse_existing
from shardmerge.phase1_dump.fragments.write_rank import write_rank
from shardmerge.phase1_dump.generation import Generation
from shardmerge.phase1_dump.source import Holding, ManifestFacts
from shardmerge.phase1_dump.world import World
from tests.dumps.dumps import Model, Topology, cuts_of, dense_config, model_of, piece_bytes
from tests.phase1_dump.fragments.without_torch import ArraySource, sources

RUN = "run"
AXES = ("tp", "cp", "pp", "dp", "ep", "etp", "edp")
MAX_FRAGMENT_BYTES = 1500


@cache
def source(rank: int) -> ArraySource:
    """One of two tensor-parallel ranks."""
    return sources(model_of(dense_config(layers=1)))[rank]


def dump_rank(out: Path, rank: int) -> None:
    """Write a rank, in the order of `phase1_dump.dump_model.dump`. Raises SystemExit if it fails."""
    forget_failure(out, rank)
    try:
        refuse_existing(out, rank)
        write_rank(source(rank), out, max_fragment_bytes=MAX_FRAGMENT_BYTES, check_replicas=True)
    except Exception as error:
        record_failure(out, rank, RUN, error)
        print(f"{type(error).__name__}: {error}")
        raise SystemExit(getattr(error, "exit_code", 1)) from error


def write_dump(out: Path, model: Model, topology: Topology, step: int) -> None:
    """Write every rank of a model, each with what it alone has."""
    table = blueprint(model.config)
    facts = ManifestFacts(table.architecture.name, table.dimensions, "BF16", producer={"arrays": "1"})
    held: list[list[Holding]] = [[] for _ in range(topology.size)]
    for name, cuts in cuts_of(model, topology).items():
        dtype, shape, _ = model.tensors[name]
        for cut in cuts:
            rectangle = Rectangle(name, dtype, shape, cut.offset, cut.shape)
            held[cut.rank].append(Holding(rectangle, (cut.rank,), piece_bytes(model, name, cut)))
    for rank, holdings in enumerate(held):
        coordinates = dict.fromkeys(AXES, 0) | topology.coordinates(rank)
        groups = {axis: [rank] for axis in AXES} | topology.groups(rank)
        world = World(rank, topology.size, coordinates, groups)
        write_rank(ArraySource(world, Generation(RUN, step, "0"), facts, holdings), out)
