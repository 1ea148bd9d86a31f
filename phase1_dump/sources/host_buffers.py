"""Brings blocks to host memory: from a GPU through two pinned buffers, from a CPU as they are.

A fresh pageable copy would be many times slower than a pinned one that is used again. What is in a block is not
known here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch


@dataclass(slots=True)
class HostBuffers:
    """Two buffers that blocks are copied to in turn, at most `num_bytes` together unless a single row is larger.

    A buffer is filled again with the block after the next: until then the caller has written its bytes, as
    `Source.read` demands.
    """

    num_bytes: int
    buffers: list[torch.Tensor] = field(default_factory=list)
    turn: int = 0

    @property
    def block_bytes(self) -> int:
        """Return how large a block should be."""
        return max(1, self.num_bytes // 2)

    def host(self, block: torch.Tensor) -> memoryview:
        """Return the bytes of a contiguous block in host memory, complete when this returns.

        What lies in host memory already is not copied. From a GPU the copy is asynchronous, and the stream it was
        put on is waited for: a block must never be handed on before it has arrived.
        """
        flat = block.view(torch.uint8)
        if block.device.type != "cpu":
            staged = self.next_buffer(flat.numel())[: flat.numel()]
            staged.copy_(flat, non_blocking=True)
            torch.cuda.current_stream(block.device).synchronize()
            flat = staged
        return memoryview(cast(Any, flat.numpy()))

    def next_buffer(self, num_bytes: int) -> torch.Tensor:
        """Return the buffer whose turn it is, made larger if a single row needs that."""
        while len(self.buffers) < 2:
            self.buffers.append(self.allocated(self.block_bytes))
        self.turn = 1 - self.turn
        if num_bytes > self.buffers[self.turn].numel():
            self.buffers[self.turn] = self.allocated(num_bytes)
        return self.buffers[self.turn]

    def allocated(self, num_bytes: int) -> torch.Tensor:
        """Return new pinned host memory."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
