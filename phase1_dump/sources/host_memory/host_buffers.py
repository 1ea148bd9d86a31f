"""Brings blocks to host memory: from a GPU through pinned buffers that are used again, from a CPU as they are.

A fresh pageable copy would be many times slower than a pinned one that is used again. What is in a block is not
known here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, cast

import torch

from .pinned import PinnedMemory

MAX_BLOCK_BYTES = 16 << 20  # a larger one would only make the first write wait


@dataclass(slots=True)
class StreamBuffers:
    """`count` buffers of one stream, which blocks are copied to in turn; larger ones if a single row needs that.

    A buffer is filled again with the `count`-th block after: until then the caller has written its bytes, as
    `Source.read` demands.
    """

    block_bytes: int
    count: int
    buffers: list[PinnedMemory] = field(default_factory=list)
    turn: int = 0

    def host(self, block: torch.Tensor) -> memoryview:
        """Return the bytes of a contiguous block in host memory, complete when this returns.

        What lies in host memory already is not copied. From a GPU the copy is asynchronous, and the stream is waited
        for: a block must never be handed on before it has arrived.
        """
        if block.device.type == "cpu":
            return memoryview(cast(Any, block.view(torch.uint8).numpy()))
        buffer = self.next_buffer(block.nbytes)
        buffer.elements(block.dtype, block.numel()).copy_(block, non_blocking=True)
        torch.cuda.current_stream(block.device).synchronize()
        return memoryview(buffer.map)[: block.nbytes]

    def next_buffer(self, num_bytes: int) -> PinnedMemory:
        """Return the buffer whose turn it is, of at least so many bytes."""
        self.make()
        self.turn = (self.turn + 1) % self.count
        if num_bytes > self.buffers[self.turn].num_bytes:
            self.buffers[self.turn].release()
            self.buffers[self.turn] = self.allocated(num_bytes)
        return self.buffers[self.turn]

    def make(self) -> None:
        """Have all buffers, so that the first blocks need not wait for them."""
        while len(self.buffers) < self.count:
            self.buffers.append(self.allocated(self.block_bytes))

    def allocated(self, num_bytes: int) -> PinnedMemory:
        """Return new host memory, pinned."""
        return PinnedMemory.allocated(num_bytes)


@dataclass(slots=True)
class HostBuffers:
    """Buffers for the streams of one source, at most `num_bytes` together unless single rows are larger.

    A stream alone has two, of which one is written while the other is filled. Each of several has one, twice as
    large: what they have to do for every block costs more than their waiting, in which others write.

    Used as a context manager; its end gives the memory back.
    """

    num_bytes: int
    unused: list[StreamBuffers] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def block_bytes(self, streams: int) -> int:
        """Return how large a block of one of so many streams should be."""
        return max(1, min(self.num_bytes // (_buffers_of_each(streams) * streams), MAX_BLOCK_BYTES))

    @contextmanager
    def taken(self, streams: int) -> Iterator[StreamBuffers]:
        """Yield the buffers of one of so many streams. Nobody else has them meanwhile."""
        count = _buffers_of_each(streams)
        with self.lock:
            if any(
                one.count != count for one in self.unused
            ):  # of streams that are over: more were read, or fewer
                self.release()
            found = self.unused.pop() if self.unused else None
        buffers = found or self.new_buffers(self.block_bytes(streams), count)
        try:
            yield buffers
        finally:
            with self.lock:
                self.unused.append(buffers)

    def new_buffers(self, block_bytes: int, count: int) -> StreamBuffers:
        """Return buffers that allocate when they are first used."""
        return StreamBuffers(block_bytes, count)

    def release(self) -> None:
        """Give all memory back. No stream may be open."""
        for stream in self.unused:
            for buffer in stream.buffers:
                buffer.release()
        self.unused.clear()


def _buffers_of_each(streams: int) -> int:
    return 2 if streams == 1 else 1
