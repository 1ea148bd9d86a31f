"""Reads holdings of a live model: blocks of host bytes, and what was seen of their numbers.

While a block is written, the next one is computed on its device, inspected there and copied to the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from threading import Lock
from typing import TypeAlias

import torch

from shardmerge.common.quantization.rows import Encoding

from ..rectangles.parts import Recipe, Scalar
from ..source import Holding, Seen, Stream
from .ahead import Ahead, SingleThreaded, computing_ahead
from .blocks import blocks_of, planned
from .health import Health, count_nonfinite, narrowed_elements
from .host_memory.host_buffers import HostBuffers, StreamBuffers
from .module_words import Shifted

AHEAD_SHARE = 4  # blocks computed ahead take a quarter of the memory of the buffers beside them
Computed: TypeAlias = tuple[Holding, Health, Iterator[torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the holdings of one live model, in several streams at a time if need be.

    `turn`: streams of a GPU compute and copy one at a time. Each operation lets go of the interpreter and wants it
    back: several that do so at once keep those waiting that write, and copies come one after the other anyway.
    """

    buffers: HostBuffers
    turn: Lock = field(default_factory=Lock)
    single: SingleThreaded = field(default_factory=SingleThreaded)

    def read(self, holdings: Sequence[Holding], *, inspect: bool, streams: int) -> Stream:
        """Yield the blocks of each holding, then one `Seen`, as `Source.read` describes it.

        Args:
            holdings: of a live model; each has a `Recipe` whose parts are tensors, derived tensors or scalars.
            inspect: whether the numbers are inspected.
            streams: how many streams are read at the same time.

        Returns:
            A generator, which ends its threads when it is closed.
        """
        with self.buffers.taken(streams) as buffers, on_device(holdings) as is_gpu:
            if is_gpu:
                buffers.make()
            ahead_bytes = self.buffers.num_bytes // (AHEAD_SHARE * streams)
            with computing_ahead(ahead_bytes, self.single, streams) as ahead:
                events = _events(holdings, buffers, ahead, inspect=inspect)
                turn: AbstractContextManager[object] = self.turn if is_gpu else nullcontext()
                while True:
                    with turn:
                        event = next(events, None)
                    if event is None:
                        return
                    yield event


def _events(holdings: Sequence[Holding], buffers: StreamBuffers, ahead: Ahead, *, inspect: bool) -> Stream:
    for holding, health, blocks in computed(holdings, buffers.block_bytes, ahead):
        for block in blocks:
            if inspect:
                health.look(block)
            yield buffers.host(block)
        yield seen(holding, health, buffers.block_bytes) if inspect else Seen()


@contextmanager
def on_device(holdings: Sequence[Holding]) -> Iterator[bool]:
    """Make the device of the holdings that of this thread: a thread begins on the first one, whatever the rank.

    Yields whether it is a GPU.
    """
    parts = (part.data for holding in holdings for part in holding.recipe.parts)
    device = next((data.device for data in parts if not isinstance(data, Scalar) and data.is_cuda), None)
    with nullcontext() if device is None else torch.cuda.device(device):
        yield device is not None


def computed(holdings: Sequence[Holding], block_bytes: int, ahead: Ahead) -> Iterator[Computed]:
    """Yield each holding with a health that has seen nothing yet, and its blocks, computed as they are asked for.

    Args:
        holdings: of a live model.
        block_bytes: how large a block may be, unless a single row is larger.
        ahead: what computes blocks that any thread may compute.
    """
    blocks = ((holding, block) for holding in holdings for block in planned(holding, block_bytes))
    for holding, own in groupby(ahead.in_order(blocks), key=itemgetter(0)):
        recipe: Recipe = holding.recipe
        yield holding, Health(recipe.encoding, recipe.is_scale), (block for _, block in own)


def seen(holding: Holding, health: Health, max_bytes: int) -> Seen:
    """Return what was seen, as plain numbers: small tensors that stayed would keep the heap from closing holes.

    Args:
        holding: the holding, whose blocks are computed once more if some of its elements are not finite.
        health: what has looked at all of its blocks.
        max_bytes: how large a block may be.

    Returns:
        What was seen. Waits for the device.
    """
    finite, all_zero = health.verdict()
    nonfinite = None if finite else _count_nonfinite(holding, health.encoding, max_bytes)
    invalid_scales = health.count_invalid_scales()
    return Seen(nonfinite, all_zero, narrowed_elements(holding), invalid_scales, _added(holding))


def _added(holding: Holding) -> int:
    """Return what is added to each element: a norm is one part."""
    return next((part.data.by for part in holding.recipe.parts if isinstance(part.data, Shifted)), 0)


def _count_nonfinite(holding: Holding, encoding: Encoding, max_bytes: int) -> tuple[int, int]:
    """Count (NaN, infinite) elements by making the blocks once more."""
    counts = [count_nonfinite(block, encoding) for block in blocks_of(holding, max_bytes)]
    return sum(nan for nan, _ in counts), sum(inf for _, inf in counts)
