"""Has workers write the shards that are left, and goes on from receipts when one of them is killed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from shardmerge.common.command.progress import Progress
from shardmerge.common.errors import WorkerDiedError

from ..assembly.assemble import STAGING_BYTES
from ..assembly.fork_server import default_workers
from ..assembly.workers import pool, write_shards
from ..output import receipts
from .plan import Assembled, Plan, task

MAX_POOLS = 3  # a worker that is killed again and again lacks memory, and no new pool gives it any


@dataclass(frozen=True, slots=True)
class Means:
    """What assembling may use. `executor`: instead of a pool of our own. `check`: compare pieces with checksums."""

    workers: int | None = None
    executor: Executor | None = None
    staging_bytes: int = STAGING_BYTES
    check: bool = True
    talk: TextIO | None = None


def assemble_shards(plan: Plan, left: Sequence[Assembled], folder: Path, means: Means) -> int:
    """Write these shards and their receipts into `folder`; bytes that share blocks with the dump.

    A pool that dies is built anew. Split tensors are verified here, as they pass: nothing is read twice. Raises what a
    task raised, WorkerDiedError.
    """
    progress = Progress("assembling", sum(shard.num_bytes for shard in left), means.talk)
    count, digest = min(means.workers or default_workers(), len(left)), plan.digest
    for pools_left in reversed(range(1 if means.executor else MAX_POOLS)):
        try:
            with nullcontext(means.executor) if means.executor else pool(count) as running:
                tasks = (task(plan, shard, check=means.check, plan_digest=digest) for shard in left)
                cloned_bytes = write_shards(tasks, folder, running, means.staging_bytes, progress.advance)
            break
        except WorkerDiedError as error:
            if not pools_left:
                raise
            left = [shard for shard in left if receipts.read(folder, shard.name) is None]
            if means.talk:
                print(
                    f"A worker was killed ({error.shards[0]}, ...): {len(left):,} shards left.",
                    file=means.talk,
                )
    progress.close()
    return cloned_bytes
