"""Writes shards of a plan into OUT.partial: adopts fragments, has workers assemble the rest.

Shards that an earlier attempt finished stay. When a worker is killed, the others go on from the receipts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from shardmerge.common.command.progress import Progress
from shardmerge.common.command.talk import say
from shardmerge.common.errors import WorkerDiedError

from ..assembly import fork_server
from ..assembly.assemble import STAGING_BYTES
from ..assembly.workers import pool, write_shards
from ..output import receipts
from ..proof.checksums import verify_bytes
from .adopt import Adoption, adopt
from .plan import Adopted, Assembled, Plan, task
from .resume import forget, is_finished

MAX_POOLS = 3  # a worker that is killed again and again lacks memory, and no new pool gives it any


@dataclass(frozen=True, slots=True)
class AssemblyOptions:
    """What writing shards may use.

    Attributes:
        workers: Processes that assemble, one per core if None.
        executor: Used instead of a pool of our own.
        staging_bytes: Memory for data, in bytes, per worker.
        check: Whether all bytes are compared with their checksums.
        talk: Where progress goes.
    """

    workers: int | None = None
    executor: Executor | None = None
    staging_bytes: int = STAGING_BYTES
    check: bool = True
    talk: TextIO | None = None

    def num_workers(self, num_shards: int) -> int:
        """Return how many processes of our own assemble so many shards. 0 and 1 mean none but this one."""
        return 0 if self.executor else min(self.workers or fork_server.default_workers(), num_shards)


@dataclass(frozen=True, slots=True)
class Written:
    """How shards were adopted, how many assembled ones were finished before, and what was shared by reflink."""

    adoption: Adoption
    kept_shards: int
    cloned_bytes: int


def write(
    plan: Plan,
    shards: Sequence[Adopted | Assembled],
    folder: Path,
    options: AssemblyOptions,
    stage_ended: Callable[[str], None] = lambda stage: None,
) -> Written:
    """Put these shards of a plan into `folder`, with receipts of those that are assembled.

    Bytes of adopted shards are verified before, those of assembled ones as they pass: nothing is read twice.

    Args:
        plan: What is published.
        shards: All of its shards, or the share of one part of a merge.
        folder: OUT.partial, locked by the caller.
        options: What may be used, and whether bytes are compared with their checksums.
        stage_ended: Called with "adopting" and "assembling" when each has ended.

    Returns:
        What was done, and what was there already.

    Raises:
        CorruptFileError: Bytes do not have their checksum; several such as ProblemsFoundError.
        WorkerDiedError: Workers were killed again and again.
        OSError: Reading or writing fails.
    """
    adopted = [shard for shard in shards if isinstance(shard, Adopted)]
    assembled = [shard for shard in shards if isinstance(shard, Assembled)]
    unfinished = [
        shard for shard in assembled if not is_finished(folder, shard.name, plan.digest, check=options.check)
    ]
    forget(folder, unfinished)
    if options.num_workers(len(unfinished)) > 1:
        fork_server.start()  # it imports while bytes are verified and adopted
    if options.check:
        verify_bytes(plan.ledger, [shard.fragment for shard in adopted], options.talk)
    adoption = adopt(adopted, folder)
    stage_ended("adopting")
    cloned_bytes = _assemble(plan, unfinished, folder, options)
    stage_ended("assembling")
    return Written(adoption, len(assembled) - len(unfinished), cloned_bytes)


def _assemble(plan: Plan, unfinished: list[Assembled], folder: Path, options: AssemblyOptions) -> int:
    """Write these shards and their receipts. Returns how many bytes share blocks with the dump.

    A pool that dies is built anew. Raises what a task raised, WorkerDiedError.
    """
    progress = Progress("assembling", sum(shard.num_bytes for shard in unfinished), options.talk)
    workers, executor = options.num_workers(len(unfinished)), options.executor
    for pools_left in reversed(range(1 if executor else MAX_POOLS)):
        try:
            with nullcontext(executor) if executor else pool(workers) as running:
                tasks = (
                    task(plan, shard, check=options.check, plan_digest=plan.digest) for shard in unfinished
                )
                cloned_bytes = write_shards(tasks, folder, running, options.staging_bytes, progress.advance)
            break
        except WorkerDiedError as error:
            if not pools_left:
                raise
            unfinished = [shard for shard in unfinished if receipts.read(folder, shard.name) is None]
            killed = f"A worker was killed ({', '.join(error.shards[:1])}, ...)"
            say(options.talk, f"{killed}: {len(unfinished):,} shards left.")
    progress.close()
    return cloned_bytes
