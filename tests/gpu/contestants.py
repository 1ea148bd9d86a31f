"""What a dump is measured beside: the same bytes from the device to plain files, by one, two, four or eight threads.

A floor: nothing is described, hashed, inspected or named. Buffers are pinned before the clock starts. Must not know
what shardmerge does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

BLOCK_BYTES = 16 << 20
WRITE_BYTES = 1 << 20  # of one call; for larger ones some kernels take longer


def blocks_of(tensors: Sequence[torch.Tensor], num_bytes: int) -> list[torch.Tensor]:
    """The first `num_bytes` of some tensors, as flat blocks of bytes."""
    found, left = list[torch.Tensor](), num_bytes
    for tensor in tensors:
        flat = tensor.detach().reshape(-1).view(torch.uint8)
        for block in flat[: min(left, flat.numel())].split(BLOCK_BYTES):
            found.append(block)
            left -= block.numel()
        if left <= 0:
            break
    return found


@dataclass(slots=True)
class Floor:
    """Threads that each copy their share of the blocks through two pinned buffers to a file, with fsync."""

    writers: int
    device: torch.device
    buffers: list[list[torch.Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        pinned = self.device.type == "cuda"
        self.buffers = [
            [torch.empty(BLOCK_BYTES, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
            for _ in range(self.writers)
        ]

    def write(self, blocks: Sequence[torch.Tensor], folder: Path, name: str) -> None:
        """Write all blocks into `folder`. Raises what a thread raised."""
        errors: list[BaseException] = []
        threads = []
        for number in range(self.writers):
            work = (number, blocks[number :: self.writers], folder / f"{name}-{number}")
            threads.append(threading.Thread(target=self._safely, args=(errors, *work)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def _safely(self, errors: list[BaseException], *work: Any) -> None:
        try:
            self._share(*work)
        except BaseException as error:
            errors.append(error)

    def _share(self, number: int, blocks: Sequence[torch.Tensor], path: Path) -> None:
        copies = Copies(self.buffers[number], self.device)
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        try:
            for turn, block in enumerate(blocks):
                if not turn:
                    copies.start(0, block)
                if turn + 1 < len(blocks):
                    copies.start(turn + 1, blocks[turn + 1])
                data = copies.finished(turn, block.numel())
                for at in range(0, len(data), WRITE_BYTES):
                    os.write(file, data[at : at + WRITE_BYTES])
            os.fsync(file)
        finally:
            os.close(file)


class Copies:
    """Copies of one thread, the next on its way while the last is written."""

    def __init__(self, buffers: Sequence[torch.Tensor], device: torch.device) -> None:
        self.buffers, self.device = buffers, device
        if device.type == "cuda":
            torch.cuda.set_device(device)
            self.stream = torch.cuda.Stream(device)
            self.events = [torch.cuda.Event() for _ in buffers]

    def start(self, turn: int, block: torch.Tensor) -> None:
        target = self.buffers[turn % 2][: block.numel()]
        if self.device.type != "cuda":
            target.copy_(block)
            return
        with torch.cuda.stream(self.stream):
            target.copy_(block, non_blocking=True)
            self.events[turn % 2].record(self.stream)

    def finished(self, turn: int, num_bytes: int) -> memoryview:
        if self.device.type == "cuda":
            self.events[turn % 2].synchronize()
        return memoryview(self.buffers[turn % 2].numpy())[:num_bytes]  # type: ignore[arg-type]


def bare_copy(blocks: Sequence[torch.Tensor], memory: torch.Tensor) -> Callable[[], None]:
    """A function that copies the blocks to pinned memory, one behind the other, and waits for all of them."""

    def copy() -> None:
        at = 0
        for block in blocks:
            memory[at : at + block.numel()].copy_(block, non_blocking=True)
            at += block.numel()
        if blocks and blocks[0].is_cuda:
            torch.cuda.synchronize()

    return copy
