"""Divides a checkpoint into shares: which of them holds what, by sizes and order alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from ..even_runs import enough_bytes, even_runs

MAX_SHARE_BYTES = 5_000_000_000
MIN_SHARE_BYTES = 512 << 20
SHARES = 8  # at least so many, if each has MIN_SHARE_BYTES: several processes then have something to do


@dataclass(frozen=True, slots=True)
class Unit:
    """What no share may cut: a tensor, or all weights of a routed expert.

    `place` is its layer, its expert or -1, and the name of a tensor: units are written in this order.
    """

    place: tuple[int, int, str]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Share:
    """What is dumped as one rank: parameters from `first` to `end`, in the order of shares, and their bytes."""

    first: int
    end: int
    num_bytes: int


def distributed(
    units: Sequence[Unit], rows: Sequence[int], max_bytes: int | None
) -> tuple[tuple[Share, ...], tuple[int, ...]]:
    """Give units to shares in their order: to each so many that it has its part of all bytes, or as many as fit.

    Args:
        units: All units.
        rows: How many parameters each has.
        max_bytes: Size of a share, which a single unit may exceed; None chooses one by the size of all.

    Returns:
        The shares, and the order of the units.
    """
    order = sorted(range(len(units)), key=lambda unit: units[unit].place)
    sizes, most = [units[unit].num_bytes for unit in order], max_bytes or MAX_SHARE_BYTES
    enough = max_bytes or enough_bytes(sum(sizes), SHARES, MIN_SHARE_BYTES, most)
    begins = list(accumulate((rows[unit] for unit in order), initial=0))  # of each unit, among parameters
    shares = (
        Share(begins[run.start], begins[run.stop], sum(sizes[run.start : run.stop]))
        for run in even_runs(sizes, enough, most)
    )
    return tuple(shares) or (Share(0, 0, 0),), tuple(order)
