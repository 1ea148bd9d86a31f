"""Dumps made from arrays by the code of phase one, without torch: what `dump` does once it knows the model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from shardmerge.common.architectures import blueprint
from shardmerge.common.rectangle import Rectangle
from shardmerge.phase1_dump.background.dumping import Dumping
from shardmerge.phase1_dump.background.messages import Begin, Complete, Job, Memory
from shardmerge.phase1_dump.background.outgoing import NoMoreError, Outgoing, with_spots
from shardmerge.phase1_dump.background.shared_memory import SharedMemory
from shardmerge.phase1_dump.background.writer_process import WriterProcess
from shardmerge.phase1_dump.fragments.failed_ranks import forget_failure, record_failure
from shardmerge.phase1_dump.fragments.rank_directory import refuse_existing
from shardmerge.phase1_dump.fragments.write_rank import plan_rank, write_rank
from shardmerge.phase1_dump.generation import Generation
from shardmerge.phase1_dump.source import Holding, ManifestFacts, Seen
from shardmerge.phase1_dump.world import World
from tests.dumps.dumps import Model, Topology, cuts_of, dense_config, model_of, piece_bytes
from tests.phase1_dump.fragments.without_torch import ArraySource, sources

RUN = "run"
AXES = ("tp", "cp", "pp", "dp", "ep", "etp", "edp")
MAX_FRAGMENT_BYTES = 1500
MEMORY_BYTES = 4096


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


def dump_rank_beside(out: Path, rank: int) -> None:
    """The same by the process that writes beside training, through memory that holds a part of the rank."""
    forget_failure(out, rank)
    held, memory = source(rank), SharedMemory.made(MEMORY_BYTES)
    writer = WriterProcess.started()
    dumping = Dumping(out, rank, RUN, "raise", writer)
    try:
        refuse_existing(out, rank)
        held.settle()
        plan = plan_rank(held, max_fragment_bytes=MAX_FRAGMENT_BYTES, check_replicas=True)
        plan, holdings, num_bytes = with_spots(plan)
        job = Job(held.world, held.generation, held.facts, plan, out, 1, num_bytes, MEMORY_BYTES)
        writer.send(Memory(), memory.file)
        writer.send(Begin(job))
        _copy(held, holdings, Outgoing(writer, num_bytes, MEMORY_BYTES), memory)
        writer.send(Complete({}))
        dumping.wait()
    except Exception as error:
        record_failure(out, rank, RUN, error)
        print(f"{type(error).__name__}: {error}")
        raise SystemExit(getattr(error, "exit_code", 1)) from error
    finally:
        writer.end()
        memory.close()


def _copy(held: ArraySource, holdings: Sequence[Holding], to: Outgoing, memory: SharedMemory) -> None:
    """Copy every block, as far as it finds a place; what the writer has said when it fails is told by its dump."""
    try:
        for block in held.read(holdings):
            if isinstance(block, Seen):
                to.tell((block,))
                continue
            done = 0
            while done < len(block):
                begin, size = to.space(len(block) - done)
                memory.map[begin : begin + size] = block[done : done + size]
                to.put(size)
                to.tell()
                done += size
    except NoMoreError as error:
        raise error.error from None


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
