"""Checksums of spans of a file, read once in large pieces; and many files at once, in threads.

Hashing and reading release the interpreter, so threads are enough.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import xxhash

from shardmerge.common.errors import CorruptFileError, ShardmergeError

CHUNK_BYTES = 1 << 20  # stays in the cache of a core until it is hashed
Advance = Callable[[int], None]
T = TypeVar("T")


def checksums(path: Path, spans: Iterable[tuple[int, int]], advance: Advance) -> Iterator[str]:
    """xxh3_128 of each (begin, end) of a file; ascending spans are read without going back.

    Raises CorruptFileError if the file ends before a span does, OSError.
    """
    buffer = memoryview(bytearray(CHUNK_BYTES))
    filled_from = filled_to = 0
    with open(path, "rb", buffering=0) as file:
        for begin, end in spans:
            at, state = begin, xxhash.xxh3_128()
            while at < end:
                if not filled_from <= at < filled_to:
                    filled_from, filled_to = at, at + _fill(file.fileno(), buffer, at, path)
                    advance(filled_to - filled_from)
                part = buffer[at - filled_from : min(end, filled_to) - filled_from]
                state.update(part)
                at += len(part)
            yield state.hexdigest()


def wrong_bytes(what: str, got: str, expected: str) -> str:
    """The reason of a CorruptFileError for bytes that changed after they were written."""
    return f"the bytes of {what} have checksum {got}, {expected} was recorded when they were written"


def in_threads(check: Callable[[T], ShardmergeError | None], every: Sequence[T]) -> list[ShardmergeError]:
    """Check all and collect what is wrong. An interrupt waits for the items in hand only."""
    pool = ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0))))
    try:
        found = [pool.submit(check, one) for one in every]
        return [problem for future in found if (problem := future.result())]
    finally:
        pool.shutdown(cancel_futures=True)


def _fill(file: int, buffer: memoryview, at: int, path: Path) -> int:
    count = os.preadv(file, [buffer], at)
    if not count:
        raise CorruptFileError(str(path), f"it ends at byte {at:,}")
    return count
