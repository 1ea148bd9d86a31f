"""Writes one fragment: the device copies and hashes block n+1 while a thread writes block n.

Host memory is two staging buffers, pinned for a CUDA source (a fresh pageable copy is many times slower). A block
that already lies in host memory as it should is written from where it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from math import prod
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import torch
import xxhash

from shardmerge.common import durable

from ..quantization.element_types import TORCH
from ..rectangles.holdings import Holding
from ..sources.ahead import Ahead, computing_ahead
from ..sources.blocks import blocks_of, planned
from ..sources.health import Health, count_changed, count_nonfinite
from .plan import Fragment

Progress = Callable[[int], None]
SMALL_BYTES, JOINED_BYTES = 4096, 1 << 18
NARROWING_ELEMENTS = 1 << 22  # compared at a time, so that no large temporary appears on a full device


@dataclass(frozen=True, slots=True)
class Written:
    """What was learnt about one rectangle while its bytes passed."""

    xxh3_128: str
    nonfinite: tuple[int, int] | None
    all_zero: bool
    narrowed: int
    invalid_scales: int = 0  # elements of a scale that are zero, negative or not finite


@dataclass(slots=True)
class Staging:
    """Two buffers of host memory that blocks pass through on their way to the file, at most `num_bytes` together."""

    num_bytes: int
    buffers: list[torch.Tensor] = field(default_factory=list)
    pending: list[Future[None] | None] = field(default_factory=lambda: [None, None])
    turn: int = 0

    @property
    def block_bytes(self) -> int:
        return max(1, self.num_bytes // 2)

    def host(self, block: torch.Tensor) -> torch.Tensor:
        """The block as bytes in host memory, once the buffer it needs is free."""
        flat = block.view(torch.uint8)
        if block.device.type == "cpu":
            return flat
        staged = self._buffer(flat.numel())[: flat.numel()]
        staged.copy_(flat, non_blocking=True)
        torch.cuda.current_stream(block.device).synchronize()
        return staged

    def wait(self) -> None:
        """Until the buffer whose turn it is has been written."""
        future = self.pending[self.turn]
        if future is not None:
            future.result()
            self.pending[self.turn] = None

    def drain(self) -> None:
        """Until everything has been written; raises what the writing thread raised."""
        for _ in self.pending:
            self.wait()
            self.turn = 1 - self.turn

    def _buffer(self, num_bytes: int) -> torch.Tensor:
        while len(self.buffers) < 2:
            self.buffers.append(torch.empty(self.block_bytes, dtype=torch.uint8, pin_memory=True))
        if num_bytes > self.buffers[self.turn].numel():  # a single row larger than a buffer
            self.buffers[self.turn] = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        return self.buffers[self.turn]


@dataclass(slots=True)
class Joining:
    """Small pieces that follow each other are handed on as one: scalars would each cost a turn of the thread."""

    submit: Callable[[memoryview], None]
    joined: bytearray = field(default_factory=bytearray)

    def prepare(self, num_bytes: int) -> None:
        """Before a piece is staged: what precedes a large one takes its turn first, or buffers would be mixed up."""
        if num_bytes > SMALL_BYTES or len(self.joined) >= JOINED_BYTES:
            self.flush()

    def add(self, data: memoryview) -> None:
        """The next piece."""
        if len(data) > SMALL_BYTES:
            self.submit(data)
        else:
            self.joined += data

    def flush(self) -> None:
        """Hand on what has been joined."""
        if self.joined:
            self.submit(memoryview(self.joined))
            self.joined = bytearray()


def settle(fragments: Iterable[Fragment]) -> None:
    """Wait until every kernel that may still write to the parameters is through, on whatever stream it runs."""
    parts = (part for fragment in fragments for holding in fragment.holdings for part in holding.parts)
    for device in {part.data.device for part in parts if part.data.is_cuda}:
        torch.cuda.synchronize(device)


def write_fragment(folder: Path, fragment: Fragment, staging: Staging, progress: Progress) -> list[Written]:
    """Write and fsync one file; what was learnt about each holding, in order. Raises OSError."""
    with (
        open(folder / fragment.name, "xb", buffering=0) as file,
        ThreadPoolExecutor(1) as thread,
        computing_ahead(staging.num_bytes // 4) as ahead,
    ):
        end = durable.Appending(file.fileno())
        end.write(memoryview(fragment.head))

        def submit(data: memoryview) -> None:
            staging.wait()
            staging.pending[staging.turn] = thread.submit(end.write, data)
            staging.turn = 1 - staging.turn
            progress(len(data))

        joining = Joining(submit)
        try:
            found = _write_holdings(fragment.holdings, staging, joining, ahead)
            joining.flush()
        finally:
            staging.drain()
        os.fsync(file.fileno())
    return found


def checksum_of(holding: Holding, staging: Staging) -> str:
    """xxh3_128 of the bytes that would be written, for a rectangle that another rank writes."""
    checksum = xxhash.xxh3_128()
    for block in blocks_of(holding, staging.block_bytes):
        checksum.update(memoryview(cast(Any, staging.host(block).numpy())))
    return checksum.hexdigest()


def _write_holdings(
    holdings: Sequence[Holding], staging: Staging, joining: Joining, ahead: Ahead
) -> list[Written]:
    blocks = ((holding, block) for holding in holdings for block in planned(holding, staging.block_bytes))
    return [
        _write_holding(holding, (block for _, block in made), staging, joining)
        for holding, made in groupby(ahead.in_order(blocks), key=itemgetter(0))
    ]


def _write_holding(
    holding: Holding, blocks: Iterable[torch.Tensor], staging: Staging, joining: Joining
) -> Written:
    """What is learnt is settled at once: small tensors that stayed would keep the heap from closing its holes."""
    checksum, health = xxhash.xxh3_128(), Health(holding.encoding, holding.is_scale)
    for block in blocks:
        health.look(block)
        joining.prepare(block.nbytes)
        staging.wait()
        data = memoryview(cast(Any, staging.host(block).numpy()))
        checksum.update(data)
        joining.add(data)
    finite, all_zero = health.verdict()
    nonfinite = None if finite else _count(holding, staging.block_bytes)
    return Written(
        checksum.hexdigest(), nonfinite, all_zero, _narrowed(holding), health.count_invalid_scales()
    )


def _count(holding: Holding, max_bytes: int) -> tuple[int, int]:
    counts = [count_nonfinite(block, holding.encoding) for block in blocks_of(holding, max_bytes)]
    return sum(nan for nan, _ in counts), sum(inf for _, inf in counts)


def _narrowed(holding: Holding) -> int:
    """Elements that lost bits because the tensor is written in a narrower dtype than the model holds."""
    if not holding.rectangle.local_shape:
        return 0
    target = TORCH[holding.rectangle.dtype]
    return sum(count_changed(source, target) for source in _narrower(holding, target))


def _narrower(holding: Holding, target: torch.dtype) -> Iterator[torch.Tensor]:
    for part in holding.parts:
        if part.data.dtype != target and torch.promote_types(part.data.dtype, target) != target:
            box = tuple(slice(at, at + n) for at, n in zip(part.source, part.shape, strict=True))
            yield from part.data.detach()[box].split(
                max(1, NARROWING_ELEMENTS // max(1, prod(part.shape[1:])))
            )
