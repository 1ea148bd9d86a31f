"""The way of a rank's bytes into the shared memory: where the next go, and what the child is told of them.

Where the memory is smaller than the rank, it is filled again as the child frees it. Must not know what copies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..fragments.write_rank import RankPlan
from ..source import Holding, Seen
from .arriving import SHARE
from .messages import Failed, Filled, Freed, Spot
from .writer_process import WriterProcess


class NoMoreError(Exception):
    """The child has given up, so that the rest is not wanted. `error` says why."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(slots=True)
class Outgoing:
    """`num_bytes` that pass through `memory_bytes` of shared memory."""

    writer: WriterProcess
    num_bytes: int
    memory_bytes: int
    position: int = 0  # how many have been put there
    freed: int = 0  # how many the child no longer needs

    @property
    def fits(self) -> bool:
        """Whether all bytes find a place without waiting for the child."""
        return self.num_bytes <= self.memory_bytes

    def space(self, wanted: int) -> tuple[int, int]:
        """Return where in the memory the next bytes go, and how many of `wanted` find a place there; waits for some.

        Raises NoMoreError if the child has failed, EOFError if it was killed.
        """
        while self.position - self.freed >= self.memory_bytes:
            self._listen()
        begin = self.position % self.memory_bytes
        size = min(wanted, self.memory_bytes - begin, self.freed + self.memory_bytes - self.position)
        return begin, size if self.fits else min(size, max(1, self.memory_bytes // SHARE))

    def put(self, num_bytes: int) -> None:
        """So many bytes are on their way to the place that `space` gave."""
        self.position += num_bytes

    def tell(self, seen: tuple[Seen, ...] = ()) -> None:
        """Tell the child that all bytes so far are there, and what was seen of the next holdings. Raises OSError."""
        self.writer.send(Filled(self.position, seen))

    def _listen(self) -> None:
        match self.writer.answer(None):
            case Freed(end):
                self.freed = end
            case Failed(error):
                raise NoMoreError(error)
            case _:
                raise AssertionError("the child was done before it had everything")


def with_spots(plan: RankPlan) -> tuple[RankPlan, list[Holding], int]:
    """Return a plan for the child, whose holdings say where their bytes pass in place of how they are made.

    Args:
        plan: with holdings of a source.

    Returns:
        The plan for the child; the holdings of the source in the order in which their bytes must come; and how many
        bytes that are.
    """
    held = [holding for fragment in plan.fragments for holding in fragment.holdings]
    held += [replica.holding for replica in plan.replicas]
    spots, begin = [], 0
    for number, holding in enumerate(held):
        spots.append(replace(holding, recipe=Spot(number, begin)))
        begin += holding.rectangle.num_bytes
    following = iter(spots)
    fragments = tuple(
        replace(one, holdings=tuple(next(following) for _ in one.holdings)) for one in plan.fragments
    )
    replicas = tuple(replace(one, holding=next(following)) for one in plan.replicas)
    return RankPlan(fragments, replicas), held, begin
