"""The source of the child: bytes that its parent puts into memory which both share, and what it saw of them.

Must not know what is written, nor where.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from threading import Condition

from ..generation import Generation
from ..source import Holding, ManifestFacts, Seen, Stream
from ..world import World
from .messages import Job, Spot

BLOCK_BYTES = 8 << 20
SHARE = 4  # of the memory, where it is smaller than the rank: a block is at most one of so many
LEAST_BYTES = 4096  # of such a memory: it holds two blocks, and those of which the parent is not told yet


class AbandonedError(Exception):
    """The parent failed before everything had come."""


@dataclass(slots=True)
class Arrived:
    """What has come so far. `statistics` is None until everything has."""

    end: int = 0
    seen: list[Seen] = field(default_factory=list)
    statistics: dict[str, float] | None = None
    is_abandoned: bool = False
    changed: Condition = field(default_factory=Condition)

    def wait_for_bytes(self, end: int) -> None:
        """Wait for all bytes up to `end`. Raises AbandonedError if they will never come."""
        self.wait(lambda: self.end >= end)

    def wait_for_holding(self, number: int) -> None:
        """Wait for what was seen of a holding. Raises AbandonedError if it will never come."""
        self.wait(lambda: len(self.seen) > number)

    def wait(self, is_there: Callable[[], bool]) -> None:
        """Wait until something is there. Raises AbandonedError if it will never be."""
        with self.changed:
            self.changed.wait_for(lambda: is_there() or self.is_abandoned)
            if self.is_abandoned:
                raise AbandonedError("the process that dumps has given up")


@dataclass(frozen=True, slots=True, eq=False)
class Arriving:
    """A `source.Source`. `free` is told up to where the memory may be filled again, if the rank is larger than it."""

    job: Job
    memory: memoryview
    arrived: Arrived
    free: Callable[[int], None] | None
    holdings: tuple[Holding, ...] = ()
    stage_copies: tuple[Holding, ...] = ()

    @property
    def world(self) -> World:
        return self.job.world

    @property
    def generation(self) -> Generation:
        return self.job.generation

    @property
    def facts(self) -> ManifestFacts:
        """The facts that the parent sent, with its statistics, for which this waits."""
        self.arrived.wait(lambda: self.arrived.statistics is not None)
        return replace(self.job.facts, statistics=self.arrived.statistics or {})

    def settle(self) -> None:
        """The bytes are copies: nobody writes to them any more."""

    def read(self, holdings: Sequence[Holding], *, inspect: bool = True, streams: int = 1) -> Stream:
        """Yield the blocks of these holdings as they come, views of the shared memory, and what the parent saw of each.

        Where the memory is smaller than the rank, holdings must be asked for in the order in which they come.

        Args:
            holdings: of the job's plan.
            inspect: False if nobody needs to know what was seen.
            streams: how many streams are read at the same time: any number, as their blocks are the shared memory.

        Returns:
            A generator. Closing it has no effect.
        """
        last: int | None = (
            None  # where the block that was yielded last begins: all before it is written by now
        )
        for holding in holdings:
            spot: Spot = holding.recipe
            at, end = spot.begin, spot.begin + holding.rectangle.num_bytes
            while at < end:
                size, begin = self._size(at, end), at % len(self.memory)
                if self.free is not None:
                    self.free(at if last is None else last)
                self.arrived.wait_for_bytes(at + size)
                last = at
                yield self.memory[begin : begin + size]
                at += size
            self.arrived.wait_for_holding(spot.number)
            yield self.arrived.seen[spot.number] if inspect else Seen()

    def _size(self, at: int, end: int) -> int:
        """Return the size of the block that begins at `at`: it does not run over the end of the memory."""
        size = min(BLOCK_BYTES, end - at, len(self.memory) - at % len(self.memory))
        return size if self.free is None else min(size, max(1, len(self.memory) // SHARE))
