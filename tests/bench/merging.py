"""A merge as a user starts it, with two workers, and the lines about its memory."""

from __future__ import annotations

from pathlib import Path

from .line import Bound, Line, mib
from .making import Made
from .rounds import Turns
from .watching import Ran, shardmerge

MERGE = "merge"
WORKERS = 2
SHARD_SIZE = "256MiB"  # several for each worker, as in any model that is merged in earnest
WORKER_BOUND = Bound(100 << 20, "under 100 MiB a worker")


def merged(made: Made, out: Path, *options: str, shard_size: str = SHARD_SIZE) -> Ran:
    """Checksums are compared unless `options` say otherwise."""
    given = ("--hf-reference", made.reference, "--workers", str(WORKERS), "--max-shard-size", shard_size)
    return shardmerge("merge", made.dump, out, *given, *options)


def memory_line(what: str, cache: str, turns: Turns, name: str = MERGE) -> Line:
    """The largest worker against its bound, and the parent beside it."""
    peak = turns.worker_peak(name)
    told, parent = f"{mib(peak)} a worker", f"{mib(turns.parent_peak(name))} parent"
    return Line(f"memory of {what}", cache, told, "", told, peak, WORKER_BOUND, parent)
