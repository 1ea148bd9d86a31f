"""Copies everything that a plan takes of a live model to memory that another process reads.

On a GPU the copies run on a stream of their own, behind what the caller's stream holds, and nobody waits for a single
one. Must not know who reads the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch

from ...rectangles.parts import Scalar
from ...source import Holding, Seen
from ..ahead import computing_ahead
from ..health import Health, bring_to_host
from ..reading import computed, on_device, seen

BLOCK_BYTES = 32 << 20  # on the device, of what is not there as it is written


class Destination(Protocol):
    """Where bytes go, one after another."""

    @property
    def fits(self) -> bool: ...
    def space(self, wanted: int) -> tuple[int, int]: ...
    def put(self, num_bytes: int) -> None: ...
    def tell(self, seen: tuple[Seen, ...] = ()) -> None: ...


@dataclass(slots=True)
class Copying:
    """Copies on their way. `looked`: holdings whose health was looked at, and not yet read; `found`: what was seen."""

    to: Destination
    memory: torch.Tensor
    stream: torch.cuda.Stream | None
    block_bytes: int
    looked: list[tuple[Holding, Health]] = field(default_factory=list)
    found: list[Seen] = field(default_factory=list)

    def add(self, block: torch.Tensor) -> None:
        """Copy a block, or let it be copied."""
        flat, done = block.view(torch.uint8), 0
        while done < flat.numel():
            begin, size = self.to.space(flat.numel() - done)
            self.memory[begin : begin + size].copy_(flat[done : done + size], non_blocking=True)
            self.to.put(size)
            done += size
            if not self.to.fits:
                self.arrive()

    def read(self) -> None:
        """Read what was looked at. Waits for the device."""
        bring_to_host([health for _, health in self.looked])
        self.found += (
            seen(holding, health, self.block_bytes) if health.extremes else Seen()
            for holding, health in self.looked
        )
        self.looked.clear()

    def arrive(self) -> None:
        """Wait for all copies, and tell of them and of what was seen."""
        if self.stream is not None:
            self.stream.synchronize()
        self.read()
        self.to.tell(tuple(self.found))
        self.found.clear()


def copy_out(
    holdings: Sequence[Holding], num_inspected: int, memory: torch.Tensor, to: Destination, block_bytes: int
) -> None:
    """Copy holdings of a live model. When this returns, all of their bytes have left the model.

    Args:
        holdings: in the order in which they are read.
        num_inspected: how many of them, from the first on, have their numbers inspected.
        memory: the bytes of the memory that they go to; pinned, if they come from a GPU.
        to: where in the memory, and whom to tell.
        block_bytes: how much is computed at once.
    """
    block_bytes = min(block_bytes, BLOCK_BYTES)
    with (
        on_device(holdings),
        side_stream(holdings) as stream,
        computing_ahead(block_bytes) as ahead,
    ):
        copying = Copying(to, memory, stream, block_bytes)
        for number, (holding, health, blocks) in enumerate(computed(holdings, block_bytes, ahead)):
            for block in blocks:
                if number < num_inspected:
                    health.look(block)
                copying.add(block)
            copying.looked.append((holding, health))
            if not to.fits:
                copying.arrive()
            elif stream is None:
                copying.read()  # small tensors that stayed would keep the heap from closing holes
        copying.arrive()


@contextmanager
def side_stream(holdings: Sequence[Holding]) -> Iterator[torch.cuda.Stream | None]:
    """Work on a stream of its own, behind what the current stream holds now; None for a model on the CPU."""
    parts = (part.data for holding in holdings for part in holding.recipe.parts)
    device = next((data.device for data in parts if not isinstance(data, Scalar) and data.is_cuda), None)
    if device is None:
        yield None
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield stream
