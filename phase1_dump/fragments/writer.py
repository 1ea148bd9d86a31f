"""Writes one fragment: hashes each block that a source delivers, while a thread writes the block before it.

Must not know which holdings belong into which file, nor what the numbers mean.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import xxhash

from shardmerge.common import durable

from ..source import Holding, Seen, Source, Stream
from .plan import PlannedFragment

Progress: TypeAlias = Callable[[int], None]
SMALL_BYTES, JOINED_BYTES = 4096, 1 << 18
IN_FLIGHT = 2


@dataclass(frozen=True, slots=True)
class Written:
    """What was learnt about one rectangle while its bytes passed."""

    xxh3_128: str
    seen: Seen


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file that grows at its end, and whose name stands in every OSError."""

    path: Path
    end: durable.Appending

    def write(self, data: memoryview) -> None:
        """Append all of `data`. Raises OSError."""
        with durable.naming(self.path):
            self.end.write(data)

    def sync(self) -> None:
        """Make everything durable. Raises OSError."""
        with durable.naming(self.path):
            os.fsync(self.end.file)


@dataclass(slots=True)
class WriteQueue:
    """Writes to one file, made in order by one thread, `IN_FLIGHT` of them at most.

    Small blocks that follow each other are copied and written as one: scalars would each cost a turn of the thread.
    """

    write: Callable[[memoryview], None]
    thread: Executor
    progress: Progress
    joined: bytearray = field(default_factory=bytearray)
    pending: deque[Future[None]] = field(default_factory=deque)
    submitted: int = 0
    last_block: int = 0  # how many writes had been submitted with the last block; 0 if it was copied

    def add(self, block: memoryview) -> None:
        """Write the next block of a source, and wait until the block before it is written.

        The source may use the memory of that one again when it is asked for the next. Raises what writing raised.
        """
        before, self.last_block = self.last_block, 0
        if len(block) <= SMALL_BYTES:
            self.joined += block
            if len(self.joined) >= JOINED_BYTES:
                self.flush()
        else:
            self.flush()
            self._submit(block)
            self.last_block = self.submitted
        self._wait_for(before)

    def flush(self) -> None:
        """Write the small blocks that have been joined."""
        if self.joined:
            self._submit(memoryview(self.joined))
            self.joined = bytearray()

    def drain(self) -> None:
        """Wait until everything is written. Raises what writing raised."""
        self._wait_for(self.submitted)

    def _submit(self, data: memoryview) -> None:
        self._wait_for(self.submitted - IN_FLIGHT + 1)
        self.pending.append(self.thread.submit(self.write, data))
        self.submitted += 1
        self.progress(len(data))

    def _wait_for(self, number: int) -> None:
        """Wait until the first `number` of all writes are done."""
        while self.submitted - len(self.pending) < number:
            self.pending.popleft().result()


class _Here(Executor):
    """Runs at once what is submitted: beside other fragments one more thread would only wait for the interpreter."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        ended = Future[Any]()
        try:
            ended.set_result(fn(*args, **kwargs))
        except BaseException as error:
            ended.set_exception(error)
        return ended


def write_fragment(
    folder: Path,
    fragment: PlannedFragment,
    source: Source,
    progress: Progress,
    streams: int = 1,
    *,
    past_the_cache: bool = False,
) -> list[Written]:
    """Write and fsync one file.

    Args:
        folder: where; the file must not be there yet.
        fragment: its name, first bytes and holdings.
        source: what delivers the holdings' bytes.
        progress: called with the number of bytes each time some are handed to the writing thread. What it raises ends
            the writing.
        streams: how many fragments are written at the same time.
        past_the_cache: write whole pages past the page cache, if blocks of the source begin on pages.

    Returns:
        What was learnt about each holding, in the order of the fragment.

    Raises:
        OSError: the file could not be written; nothing is cleaned up here.
        RuntimeError: the source delivered less or more than the holdings, or was wrong about the size of one.
    """
    path = folder / fragment.name
    with (
        open(path, "xb", buffering=0) as file,
        ThreadPoolExecutor(1) if streams == 1 else _Here() as thread,
        closing(source.read(fragment.holdings, streams=streams)) as stream,
    ):
        kind = durable.Uncached if past_the_cache else durable.Appending
        end = NamedFile(path, kind(file.fileno(), durable.call_bytes(file.fileno())))
        end.write(memoryview(fragment.head))
        queue = WriteQueue(end.write, thread, progress)
        try:
            written = list(_hashed(fragment.holdings, stream, queue.add))
            queue.flush()
        finally:
            queue.drain()
        end.sync()
    return written


def checksums(holdings: Sequence[Holding], source: Source) -> list[str]:
    """Return the xxh3_128 of the bytes that would be written, for rectangles that another rank writes.

    Raises RuntimeError if the source delivered less or more than the holdings, or was wrong about the size of one.
    """
    with closing(source.read(holdings, inspect=False)) as stream:
        return [written.xxh3_128 for written in _hashed(holdings, stream, lambda _block: None)]


def _hashed(
    holdings: Sequence[Holding], stream: Stream, take: Callable[[memoryview], None]
) -> Iterator[Written]:
    """Take each block as it comes, and yield what was learnt about each holding after its last block."""
    for holding in holdings:
        checksum, num_bytes = xxhash.xxh3_128(), 0
        for block in stream:
            if isinstance(block, Seen):
                _require_size(holding, num_bytes)
                yield Written(checksum.hexdigest(), block)
                break
            checksum.update(block)
            take(block)
            num_bytes += len(block)
        else:
            raise RuntimeError(f"the source ended before it had delivered {holding.rectangle.fragment_key}")
    if next(stream, None) is not None:
        raise RuntimeError(
            f"the source delivered more than the {len(holdings):,} rectangles it was asked for"
        )


def _require_size(holding: Holding, num_bytes: int) -> None:
    """Raise RuntimeError if a source delivered more or less than the rectangle has: all that follows would be moved."""
    expected = holding.rectangle.num_bytes
    if num_bytes != expected:
        key = holding.rectangle.fragment_key
        raise RuntimeError(f"the source delivered {num_bytes:,} bytes of {key}, which has {expected:,}")
