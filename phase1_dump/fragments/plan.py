"""Decides which fragment each owned rectangle goes to, and where in it, before a byte is copied.

Must not know where the bytes come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shardmerge.common import places, safetensors_header
from shardmerge.common.places import SPLIT, WHOLE
from shardmerge.common.safetensors_header import Header

from ..even_runs import enough_bytes, even_runs
from ..source import Holding

FILES_AT_ONCE = 15  # with a buffer of 16 MiB each a dump stays below 300 MB of host memory
MIN_PARALLEL_BYTES = 512 << 20


@dataclass(frozen=True, slots=True, eq=False)
class PlannedFragment:
    """A file to be written: its name, first bytes, header, and the holdings in the order of the header's entries."""

    name: str
    head: bytes
    header: Header
    holdings: tuple[Holding, ...]


def plan_fragments(
    holdings: Sequence[Holding], max_bytes: int, at_once: int = 1
) -> tuple[PlannedFragment, ...]:
    """Plan `whole-*` files of entire tensors, then `split-*` files of parts, each at most `max_bytes` of data.

    A tensor larger than that has a file of its own. File systems let one thread at a time write to a file, so what is
    to be written by several is spread over as many files, unless they would be smaller than `MIN_PARALLEL_BYTES`.

    Args:
        holdings: what is to be written.
        max_bytes: of the data of a file.
        at_once: how many files should be written at the same time.

    Returns:
        The files.
    """
    total = sum(holding.rectangle.num_bytes for holding in holdings)
    enough = enough_bytes(total, at_once, MIN_PARALLEL_BYTES, max_bytes)
    whole = [h for h in holdings if h.rectangle.is_whole]
    split = [h for h in holdings if not h.rectangle.is_whole]
    return tuple(_fragments(WHOLE, whole, enough, max_bytes)) + tuple(
        _fragments(SPLIT, split, enough, max_bytes)
    )


def _fragments(
    kind: str, holdings: Sequence[Holding], enough: int, max_bytes: int
) -> Iterator[PlannedFragment]:
    sizes = [holding.rectangle.num_bytes for holding in holdings]
    for number, run in enumerate(even_runs(sizes, enough, max_bytes), start=1):
        ordered = sorted(
            holdings[run.start : run.stop],
            key=lambda h: safetensors_header.layout_order(h.rectangle.num_bytes, h.rectangle.name),
        )
        rectangles = [h.rectangle for h in ordered]
        head, header = safetensors_header.build((r.fragment_key, r.dtype, r.local_shape) for r in rectangles)
        yield PlannedFragment(places.fragment(kind, number), head, header, tuple(ordered))
