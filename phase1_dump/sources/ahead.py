"""Computes blocks ahead of time in threads, and hands them out in their order.

Several threads with one block each need not wait for each other, as the threads inside a torch operation do for every
operation: on cores that others use too that waiting costs more than the work. What is in a block is not known here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import TypeVar

import torch

Key = TypeVar("Key")
THREADS_AT_MOST = 8  # each needs some MiB beside the block itself
WAITING_AT_MOST = 64


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A block to be computed. `ahead`: a worker thread may compute it before it is requested."""

    make: Callable[[], torch.Tensor]
    num_bytes: int
    ahead: bool


class Ahead:
    """Computes blocks in threads before they are requested, `max_bytes` of them at most."""

    def __init__(self, pool: ThreadPoolExecutor, max_bytes: int) -> None:
        self._pool, self._room = pool, max_bytes

    def in_order(self, blocks: Iterable[tuple[Key, Block]]) -> Iterator[tuple[Key, torch.Tensor]]:
        """Yield every block, computed, with its key, in the order given."""
        waiting: deque[tuple[Key, Block, Future[torch.Tensor] | None]] = deque()
        for key, block in blocks:
            while waiting and (
                len(waiting) >= WAITING_AT_MOST or (block.ahead and self._room < block.num_bytes)
            ):
                yield self._first(waiting)
            waiting.append((key, block, self._begin(block)))
        while waiting:
            yield self._first(waiting)

    def _begin(self, block: Block) -> Future[torch.Tensor] | None:
        if not block.ahead:
            return None
        self._room -= block.num_bytes
        return self._pool.submit(block.make)

    def _first(
        self, waiting: deque[tuple[Key, Block, Future[torch.Tensor] | None]]
    ) -> tuple[Key, torch.Tensor]:
        key, block, begun = waiting.popleft()
        if begun is None:
            return key, block.make()
        self._room += block.num_bytes
        return key, begun.result()


@dataclass(slots=True)
class SingleThreaded:
    """Lets each operation of torch use one thread, as long as anybody wants that. Several threads may."""

    lock: Lock = field(default_factory=Lock)
    users: int = 0
    threads: int = 1  # of an operation before

    @contextmanager
    def wanted(self) -> Iterator[int]:
        """Yield how many threads torch would use. That is a number of the process and one of each thread."""
        with self.lock:
            if not self.users:
                self.threads = torch.get_num_threads()
            self.users += 1
            torch.set_num_threads(1)  # threads that begin now inherit it
        try:
            yield self.threads
        finally:
            with self.lock:
                self.users -= 1
                if not self.users:
                    torch.set_num_threads(self.threads)


@contextmanager
def computing_ahead(
    max_bytes: int, single: SingleThreaded | None = None, streams: int = 1
) -> Iterator[Ahead]:
    """Yield an `Ahead` with as many threads as torch would use. Meanwhile each operation of torch uses only one.

    Args:
        max_bytes: how much may be computed before it is asked for.
        single: the same for all streams that are read at once; None if there is one.
        streams: how many there are. They share the threads.
    """
    with (single or SingleThreaded()).wanted() as threads:
        pool = ThreadPoolExecutor(min(-(-threads // streams), THREADS_AT_MOST))
        try:
            yield Ahead(pool, max_bytes)
        finally:
            pool.shutdown(cancel_futures=True)
