"""Cuts what is to be written into runs of about equal size: files of a rank, and shares of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def enough_bytes(total: int, runs: int, least: int, most: int) -> int:
    """Return with how many bytes a run is complete, so that there are so many runs of equal size.

    Args:
        total: bytes of all runs.
        runs: how many there should be.
        least: what a run must have to be worth its while.
        most: what a run may have.

    Returns:
        A number of bytes.
    """
    return min(most, max(least, -(-total // runs)))


def even_runs(sizes: Sequence[int], enough: int, most: int) -> Iterator[range]:
    """Cut a row into runs that have `enough` bytes or a little more: a last small one would keep others waiting.

    Args:
        sizes: bytes of each, in their order.
        enough: with how many a run is complete.
        most: how many it may have, unless it is of one alone.

    Returns:
        For each run the places of its neighbours in `sizes`.
    """
    first = held = 0
    for at, size in enumerate(sizes):
        if at > first and (held >= enough or held + size > most):
            yield range(first, at)
            first, held = at, 0
        held += size
    if first < len(sizes):
        yield range(first, len(sizes))
