"""Reads holdings of a live model: blocks of host bytes, and what was seen of their numbers.

While a block is written, the next one is computed on its device, inspected there and copied to the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

from shardmerge.common.quantization.rows import Encoding

from ..rectangles.parts import Recipe
from ..source import Holding, Seen, Stream
from .ahead import computing_ahead
from .blocks import blocks_of, planned
from .health import Health, count_nonfinite, narrowed_elements
from .host_buffers import HostBuffers

AHEAD_SHARE = 4  # blocks computed ahead take a quarter of the memory of the buffers beside them


def read(holdings: Sequence[Holding], buffers: HostBuffers, *, inspect: bool) -> Stream:
    """Yield the blocks of each holding, then one `Seen`, as `Source.read` describes it.

    Args:
        holdings: of a live model; each has a `Recipe` whose parts are tensors, derived tensors or scalars.
        buffers: what blocks of a GPU pass through; they also say how large a block is.
        inspect: whether the numbers are inspected.

    Returns:
        A generator, which ends its threads when it is closed.
    """
    with computing_ahead(buffers.num_bytes // AHEAD_SHARE) as ahead:
        blocks = ((holding, block) for holding in holdings for block in planned(holding, buffers.block_bytes))
        for holding, computed in groupby(ahead.in_order(blocks), key=itemgetter(0)):
            recipe: Recipe = holding.recipe
            health = Health(recipe.encoding, recipe.is_scale)
            for _, block in computed:
                if inspect:
                    health.look(block)
                yield buffers.host(block)
            yield _seen(holding, recipe.encoding, health, buffers.block_bytes) if inspect else Seen()


def _seen(holding: Holding, encoding: Encoding, health: Health, max_bytes: int) -> Seen:
    """Return what was seen, as plain numbers: small tensors that stayed would keep the heap from closing holes."""
    finite, all_zero = health.verdict()
    nonfinite = None if finite else _count_nonfinite(holding, encoding, max_bytes)
    return Seen(nonfinite, all_zero, narrowed_elements(holding), health.count_invalid_scales())


def _count_nonfinite(holding: Holding, encoding: Encoding, max_bytes: int) -> tuple[int, int]:
    """Count (NaN, infinite) elements by making the blocks once more."""
    counts = [count_nonfinite(block, encoding) for block in blocks_of(holding, max_bytes)]
    return sum(nan for nan, _ in counts), sum(inf for _, inf in counts)
