"""Runs one task for each shard on any `concurrent.futures.Executor`, and stops all of them if one fails.

Workers import this module, which must know neither Arrow nor ledger. A pool has ended before the lock of the output is
free: its processes never write beside those of the next merge.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from shardmerge.common.errors import WorkerDiedError

from ..disk.stamp import Stamp, stamp
from ..output import receipts
from . import fork_server
from .assemble import assemble
from .task import ShardTask

T = TypeVar("T")
IN_HAND = 64  # tasks that are submitted and not done: they name every piece of a shard


class InProcess(Executor):
    """Runs every task in this process when it is submitted: for a single worker, and for debugging."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # kept in the future, as every executor does; an interrupt goes through
            future.set_exception(error)
        return future


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A shard that a task wrote: its receipt's digest, its stamp, and how many bytes share blocks with the dump."""

    name: str
    num_bytes: int
    cloned_bytes: int
    receipt_digest: str
    stamp: Stamp


def each(
    work: Callable[[ShardTask, Path], T], tasks: Iterator[ShardTask], folder: Path, executor: Executor
) -> Iterator[T]:
    """Run a task for each shard, and yield what each returned, as they end.

    Args:
        work: What is done with a task, in a process of the executor.
        tasks: Made one by one, as they can be submitted.
        folder: The output that is being built; workers see it under the same path.
        executor: Runs the tasks.

    Returns:
        An iterator over what `work` returned.

    Raises:
        WorkerDiedError: A process of the executor was killed.
        ShardmergeError, OSError: Whatever a task raised.
    """
    pending: dict[Future[T], str] = {}
    try:
        while True:
            for task in islice(tasks, IN_HAND - len(pending)):
                pending[executor.submit(work, task, folder)] = task.name
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield future.result()
                del pending[future]
    except BrokenProcessPool as error:
        raise WorkerDiedError(tuple(sorted(pending.values()))) from error
    finally:
        for future in pending:
            future.cancel()


def write_shard(task: ShardTask, folder: Path, staging_bytes: int) -> WrittenShard:
    """Write one shard, and then its receipt, which says that the shard is complete.

    Args:
        task: The shard.
        folder: The output that is being built.
        staging_bytes: Memory for data, in bytes.

    Returns:
        What was written.

    Raises:
        CorruptFileError, BadInputError, OSError: See `assemble`.
    """
    receipt, cloned_bytes = assemble(task, folder, staging_bytes)
    receipts.write(folder, receipt)
    return WrittenShard(
        name=task.name,
        num_bytes=receipt.num_bytes,
        cloned_bytes=cloned_bytes,
        receipt_digest=receipts.digest(receipt),
        stamp=stamp(folder / task.name),
    )


def follow_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it is gone: if it was killed, no task will ever come."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def end_with_parent() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)  # what it was writing has a temporary name, and nobody is there to hear of it

    threading.Thread(target=end_with_parent, daemon=True).start()


@contextmanager
def pool(workers: int) -> Iterator[Executor]:
    """Run an executor of `workers` processes, or of this one for 1. Its processes end with the block."""
    if workers <= 1:
        yield InProcess()
        return
    others = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(workers, fork_server.start(), follow_parent)
    # queues and locks: a worker opens them by name when it starts, after a shutdown too
    _held = dict(vars(executor))
    try:
        yield executor
        executor.shutdown()
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
            child.join()
        raise
