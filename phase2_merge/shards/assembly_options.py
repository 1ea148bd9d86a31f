"""What writing and reading shards may use: processes, memory, and whether bytes are compared.

Must not know the shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from ..assembly import fork_server
from ..assembly.assemble import STAGING_BYTES
from ..assembly.workers import pool


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


@contextmanager
def running(options: AssemblyOptions, num_shards: int) -> Iterator[Executor]:
    """Run the executor of tasks for so many shards. One of our own ends with the block, another is left alone."""
    if options.executor:
        yield options.executor
        return
    with pool(options.num_workers(num_shards)) as executor:
        yield executor
