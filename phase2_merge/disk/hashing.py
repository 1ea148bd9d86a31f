"""Checksums of spans of a file, read once in large pieces; and many stretches of files at once, in threads.

Hashing and reading release the interpreter, so threads are enough.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, TypeVar

import xxhash

from shardmerge.common import durable, regular_files
from shardmerge.common.errors import CorruptFileError, ShardmergeError

CHUNK_BYTES = 1 << 20  # stays in the cache of a core until it is hashed
STRETCH_BYTES = 64 << 20
READERS = 4  # more than a few cores: a disk that is asked for one piece after the other waits in between
Span: TypeAlias = tuple[int, int]
Advance = Callable[[int], None]
K = TypeVar("K")
T = TypeVar("T")


def checksums(path: Path, spans: Iterable[Span], advance: Advance) -> Iterator[str]:
    """Yield the checksum of each span of a file. Ascending spans are read without going back.

    Args:
        path: The file, whose header was read before.
        spans: (begin, end) of each, in bytes.
        advance: Called with numbers of bytes as they are read.

    Returns:
        An iterator over xxh3_128 of each span, hexadecimal.

    Raises:
        CorruptFileError: The file ends before a span does, or is not a regular file.
        OSError: Reading fails.
    """
    buffer = memoryview(bytearray(CHUNK_BYTES))
    filled_from = filled_to = 0
    with durable.naming(path), open(regular_files.reopen(path), "rb", buffering=0) as file:
        for begin, end in spans:
            position, checksum = begin, xxhash.xxh3_128()
            while position < end:
                if not filled_from <= position < filled_to:
                    count = _fill(file.fileno(), buffer, position, path)
                    filled_from, filled_to = position, position + count
                    advance(count)
                part = buffer[position - filled_from : min(end, filled_to) - filled_from]
                checksum.update(part)
                position += len(part)
            yield checksum.hexdigest()


def wrong_bytes(what: str, got: str, expected: str) -> str:
    """Return the reason of a CorruptFileError for bytes that changed after they were written.

    Args:
        what: Names the bytes.
        got: Their checksum now.
        expected: The one that was recorded.

    Returns:
        A sentence without its end.
    """
    return f"the bytes of {what} have checksum {got}, {expected} was recorded when they were written"


def stretches(spans: Sequence[Span]) -> Iterator[slice]:
    """Yield which consecutive spans of a file one thread reads: about STRETCH_BYTES together."""
    first = size = 0
    for number, (begin, end) in enumerate(spans, start=1):
        size += end - begin
        if size >= STRETCH_BYTES or number == len(spans):
            yield slice(first, number)
            first, size = number, 0


def in_threads(
    check: Callable[[K, T], ShardmergeError | None], parts: Sequence[tuple[K, T]]
) -> list[ShardmergeError]:
    """Check stretches T of files K. Returns the first problem of each file.

    An interrupt waits for the stretches in hand only.
    """
    pool = ThreadPoolExecutor(max(READERS, len(os.sched_getaffinity(0))))
    try:
        futures = [(file, pool.submit(check, file, stretch)) for file, stretch in parts]
        problems: dict[K, ShardmergeError] = {}
        for file, future in futures:
            if problem := future.result():
                problems.setdefault(file, problem)
        return list(problems.values())
    finally:
        pool.shutdown(cancel_futures=True)


def _fill(file: int, buffer: memoryview, position: int, path: Path) -> int:
    """Read from a position on. Returns how many bytes were read, at least one. Raises CorruptFileError, OSError."""
    count = os.preadv(file, [buffer], position)
    if not count:
        raise CorruptFileError(str(path), f"it ends at byte {position:,}")
    return count
