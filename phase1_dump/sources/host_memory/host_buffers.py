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
class Pair:
    """Two buffers of one stream, which blocks are copied to in turn. Each is made larger if a single row needs that.

    A buffer is filled again with the block after the next: until then the caller has written its bytes, as
    `Source.read` demands.
    """

    block_bytes: int
    buffers: list[PinnedMemory] = field(default_factory=list)
    turn: int = 0

    def host(self, block: torch.Tensor) -> memoryview:
        """Return the bytes of a contiguous block in host memory, complete when this returns.

        What lies in host memory already is not copied. From a GPU the copy is asynchronous, and an event behind it is
        waited for: a block must never be handed on before it has arrived.
        """
        flat = block.view(torch.uint8)
        if block.device.type != "cpu":
            staged = self.next_buffer(flat.numel())[: flat.numel()]
            staged.copy_(flat, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(block.device))
            copied.synchronize()
            flat = staged
        return memoryview(cast(Any, flat.numpy()))

    def next_buffer(self, num_bytes: int) -> torch.Tensor:
        """Return the buffer whose turn it is, as a tensor of at least so many bytes."""
        while len(self.buffers) < 2:
            self.buffers.append(self.allocated(max(num_bytes, self.block_bytes)))
        self.turn = 1 - self.turn
        if num_bytes > self.buffers[self.turn].num_bytes:
            self.buffers[self.turn].release()
            self.buffers[self.turn] = self.allocated(num_bytes)
        return self.buffers[self.turn].tensor

    def allocated(self, num_bytes: int) -> PinnedMemory:
        """Return new host memory, pinned."""
        return PinnedMemory.allocated(num_bytes)


@dataclass(slots=True)
class HostBuffers:
    """Pairs of buffers for the streams of one source, at most `num_bytes` together unless single rows are larger.

    Used as a context manager; its end gives the memory back.
    """

    num_bytes: int
    pairs: list[Pair] = field(default_factory=list)  # that no stream uses now
    lock: Lock = field(default_factory=Lock)

    def block_bytes(self, streams: int) -> int:
        """Return how large a block of one of so many streams should be."""
        return max(1, min(self.num_bytes // (2 * streams), MAX_BLOCK_BYTES))

    @contextmanager
    def taken(self, streams: int) -> Iterator[Pair]:
        """Yield two buffers for one of so many streams. Nobody else has them meanwhile."""
        with self.lock:
            pair = self.pairs.pop() if self.pairs else self.new_pair(self.block_bytes(streams))
        try:
            yield pair
        finally:
            with self.lock:
                self.pairs.append(pair)

    def new_pair(self, block_bytes: int) -> Pair:
        """Return buffers that allocate when they are first used."""
        return Pair(block_bytes)

    def release(self) -> None:
        """Give all memory back. No stream may be open."""
        for pair in self.pairs:
            for buffer in pair.buffers:
                buffer.release()
        self.pairs.clear()
