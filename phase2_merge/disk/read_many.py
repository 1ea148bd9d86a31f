"""Reads many small files: one after the other while they come at once, else many at the same time.

A network file system answers late, but many requests together. Where files come at once, threads are in each other's
way: every call of one waits for the interpreter that another holds. So reading and working on what was read take turns,
and threads are used only after files were seen to come slowly. A local disk learns some files ahead what is wanted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TypeVar

from shardmerge.common import regular_files
from shardmerge.common.errors import CorruptFileError

READERS = 8
AT_ONCE = 128  # items in memory; the work on them comes in between
SLOW_S = 0.001  # for a file
T = TypeVar("T")
R = TypeVar("R")


def read_many(
    read: Callable[[T], R], items: Iterable[T], announce: Callable[[T], None]
) -> Iterator[tuple[T, R]]:
    """Yield many items with what was read of each, in order.

    Args:
        read: Reads one item. It may be called in threads, several at a time.
        items: What is read.
        announce: Called with an item that is read soon, as `announced` is with a file.

    Returns:
        An iterator over each item and what `read` returned of it. It raises what a read raised.
    """
    waiting, slow = iter(items), False
    with ThreadPoolExecutor(READERS) as pool:
        while batch := list(islice(waiting, AT_ONCE if slow else READERS)):
            began = time.perf_counter()
            for item in batch if not slow else ():
                announce(item)
            results = list((pool.map if slow else map)(read, batch))
            slow = slow or time.perf_counter() - began > SLOW_S * len(batch)
            yield from zip(batch, results, strict=True)


def announced(path: Path, num_bytes: int = 0) -> None:
    """Have the kernel read the first bytes of a file in the background, all of them for 0.

    Raises nothing: whoever reads the file learns what is wrong with it.
    """
    with suppress(OSError, CorruptFileError):
        file = regular_files.reopen(path)
        try:
            os.posix_fadvise(file, 0, num_bytes, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(file)
