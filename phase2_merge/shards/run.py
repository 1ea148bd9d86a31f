"""Writes shards of a plan into OUT.partial: adopts fragments, has workers assemble the rest.

Shards that an earlier attempt finished stay. When a worker is killed, a new pool writes what is left. Must not know
whether the shards are all of the plan or the share of one part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shardmerge.common.command.progress import Progress
from shardmerge.common.command.talk import say
from shardmerge.common.errors import WorkerDiedError
from shardmerge.common.errors.wording import counted

from ..assembly import fork_server
from ..assembly.workers import WrittenShard, each, write_shard
from ..output.lock import Lock
from .adopt import Adoption
from .adopted_bytes import put
from .assembly_options import AssemblyOptions, running
from .final_proof import NOTHING_REREAD, Reread, Seen, finished, seen_as_adopted, seen_as_written
from .plan import Adopted, Assembled, Plan, task
from .resume import forget

MAX_POOLS = 3  # a worker that is killed again and again lacks memory, and no new pool gives it any


@dataclass(frozen=True, slots=True)
class Written:
    """What was done.

    Attributes:
        adoption: How shards were adopted.
        kept_shards: How many assembled ones were finished before.
        cloned_bytes: What was shared by reflink.
        seen: Each shard as it was when its bytes were verified or written, by name.
        reread: How much was read again, because an earlier attempt or another process wrote it.
    """

    adoption: Adoption
    kept_shards: int
    cloned_bytes: int
    seen: dict[str, Seen]
    reread: Reread = NOTHING_REREAD


def write(
    plan: Plan,
    shards: Sequence[Adopted | Assembled],
    held: Lock,
    options: AssemblyOptions,
    stage_ended: Callable[[str], None] = lambda stage: None,
) -> Written:
    """Put these shards of a plan into an output, with receipts of those that are assembled.

    Args:
        plan: What is published.
        shards: All of its shards, or the share of one part of a merge.
        held: The lock of OUT.partial.
        options: What may be used, and whether bytes are compared with their checksums.
        stage_ended: Called with "adopting" and "assembling" when each has ended.

    Returns:
        What was done, and what was there already.

    Raises:
        CorruptFileError: Bytes do not have their checksum; several such as ProblemsFoundError.
        LockLostError: The lock was taken away.
        WorkerDiedError: Workers were killed again and again.
        OSError: Reading or writing fails.
    """
    folder = held.folder
    adopted = [shard for shard in shards if isinstance(shard, Adopted)]
    assembled = [shard for shard in shards if isinstance(shard, Assembled)]
    earlier = finished(plan, assembled, folder, options)
    unfinished = [shard for shard in assembled if shard.name not in earlier.seen]
    forget(held, unfinished)
    if options.num_workers(len(unfinished)) > 1:
        fork_server.start()  # it imports while bytes are verified and adopted
    adoption, stamps = put(plan, adopted, folder, check=options.check, talk=options.talk)
    stage_ended("adopting")
    written = _assemble(plan, unfinished, folder, options)
    stage_ended("assembling")
    seen = {shard.name: seen_as_adopted(shard, stamps[shard.name]) for shard in adopted}
    seen |= earlier.seen | {shard.name: seen_as_written(shard) for shard in written}
    cloned_bytes = sum(shard.cloned_bytes for shard in written)
    return Written(adoption, len(earlier.seen), cloned_bytes, seen, earlier.reread)


def _assemble(
    plan: Plan, unfinished: list[Assembled], folder: Path, options: AssemblyOptions
) -> list[WrittenShard]:
    """Write these shards and their receipts. Returns what was written.

    A pool that dies is built anew. Raises what a task raised, WorkerDiedError.
    """
    progress = Progress("assembling", sum(shard.num_bytes for shard in unfinished), options.talk)
    written: list[WrittenShard] = []
    pools_left = 1 if options.executor else MAX_POOLS
    while True:
        pools_left -= 1
        try:
            _write_all(plan, unfinished, folder, options, progress, written)
            break
        except WorkerDiedError as error:
            if not pools_left:
                raise
            done = {shard.name for shard in written}
            unfinished = [shard for shard in unfinished if shard.name not in done]
            killed = f"A worker was killed ({', '.join(error.shards[:1])}, ...)"
            say(options.talk, f"{killed}: {counted(len(unfinished), 'shard')} left.")
    progress.close()
    return written


def _write_all(
    plan: Plan,
    shards: Sequence[Assembled],
    folder: Path,
    options: AssemblyOptions,
    progress: Progress,
    written: list[WrittenShard],
) -> None:
    """Write shards in one pool, and append each to `written` as it ends. Raises WorkerDiedError, what a task raised."""
    tasks = (task(plan, shard, check=options.check, plan_digest=plan.digest) for shard in shards)
    with running(options, len(shards)) as executor:
        work = partial(write_shard, staging_bytes=options.staging_bytes)
        for shard in each(work, tasks, folder, executor):
            written.append(shard)
            progress.advance(shard.num_bytes)
