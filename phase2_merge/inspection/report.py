"""The report of `inspect` on a dump or an output, for people and for machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from shardmerge.common.command.byte_count import show
from shardmerge.common.errors import SHOWN
from shardmerge.common.errors.printable import one_line
from shardmerge.common.errors.wording import counted

from ..ledger.names import ranges, ranges_without
from .coverage import FULL, LayerCover, drawn

LEGEND = (
    "Layers: all other tensors of the layer, then experts from 0 (# whole, - in part, . nothing, 2 twice)"
)


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which ranks have a manifest, who is writing others, which failed and why. An output has none.

    `damaged` says what is wrong with manifests that cannot be read.
    """

    world_size: int = 0
    done: tuple[int, ...] = ()
    writers: dict[int, str] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    damaged: dict[int, str] = field(default_factory=dict)

    @property
    def running(self) -> tuple[int, ...]:
        return tuple(sorted(self.writers))

    def lines(self) -> list[str]:
        """Return how many ranks are done, running, failed and not begun, and who is running."""
        who = [f"Rank {rank} is being written by {self.writers[rank]}." for rank in self.running[:SHOWN]]
        more = len(self.running) - SHOWN
        return [self.text(), *who, *([f"... and {more:,} more are being written."] if more > 0 else [])]

    def text(self) -> str:
        parts = [f"{len(self.done):,} of {self.world_size or '?'} done"]
        states = (("running", self.running), ("failed", self.failed), ("damaged", self.damaged))
        for word, who in states:
            parts += [f"{len(who):,} {word} ({ranges(who)})"] if who else []
        if self.num_not_begun:
            parts.append(f"{self.num_not_begun:,} not begun ({self.not_begun})")
        return f"Ranks: {', '.join(parts)}."

    @property
    def num_not_begun(self) -> int:
        return max(0, self.world_size - len(self._known()))

    @property
    def not_begun(self) -> str:
        """Return the ranks of which there is no trace, as ranges."""
        return ranges_without(self._known(), self.world_size)

    def never_began(self) -> list[str]:
        """Return a sentence on ranks of which there is no trace, or nothing."""
        many = self.num_not_begun
        return [f"{counted(many, 'rank')} never began: {self.not_begun}"] if many else []

    def without_size(self) -> list[str]:
        """Return a line on each kind of rank that has no size."""
        kinds = (("being written", self.writers), ("failed", self.failed), ("damaged", self.damaged))
        return [*self.never_began(), *(f"{word}: {ranges(sorted(who))}" for word, who in kinds if who)]

    def _known(self) -> set[int]:
        seen = (*self.done, *self.running, *self.failed, *self.damaged)
        return {rank for rank in seen if rank < self.world_size}


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was seen of a dump or an output.

    `sizes` are bytes by rank or by shard, `head` is run, step and the like, `topology` sizes by axis. `stalls` are the
    seconds for which each rank's training stood still, of ranks that were dumped beside it. `exit_code` is that of a
    damaged file if a manifest could not be read, and 1 if anything else was seen to be wrong and the caller asked.
    """

    path: str
    kind: str
    head: dict[str, Any]
    topology: dict[str, int]
    ranks: Ranks
    num_tensors: int
    num_rectangles: int
    bytes_by_dtype: dict[str, int]
    sizes: dict[str, int]
    drops: dict[str, int]
    layers: tuple[LayerCover, ...]
    problems: tuple[str, ...]
    stalls: dict[str, float] = field(default_factory=dict)
    exit_code: int = 0

    @property
    def total_bytes(self) -> int:
        return sum(self.sizes.values())

    def verdict(self) -> tuple[bool, str]:
        """Return whether nothing was seen to be wrong, and that as a sentence for people. It is not a proof."""
        lacking = sum(state != FULL for layer in self.layers for state in (layer.rest, *layer.experts))
        wrong = []
        if self.kind == "dump" and len(self.ranks.done) != self.ranks.world_size:
            wrong.append(f"{len(self.ranks.done):,} of {self.ranks.world_size or '?'} ranks are there")
        if lacking:
            wrong.append(f"{counted(lacking, 'part')} of the map not whole")
        if self.problems:
            wrong.append(counted(len(self.problems), "problem"))
        if wrong:
            return False, f"Not complete: {', '.join(wrong)}."
        many = self.ranks.world_size
        ranks = f"{f'all {many:,} ranks are' if many > 1 else 'the only rank is'} there, " if many else ""
        proof = "check" if self.kind == "dump" else "verify"
        seen = f"{ranks}every layer and expert is whole".capitalize()
        return (
            True,
            f"{seen}, as far as names and shapes show. No tensor was read: shardmerge {proof} does that.",
        )

    def facts(self) -> dict[str, Any]:
        complete, verdict = self.verdict()
        facts = asdict(self) | {"total_bytes": self.total_bytes, "complete": complete, "verdict": verdict}
        del facts["exit_code"]
        facts["ranks"]["running"] = self.ranks.running
        for name in ("writers", "failed", "damaged"):
            facts["ranks"][name] = {str(rank): text for rank, text in facts["ranks"][name].items()}
        return facts

    def scope(self) -> tuple[list[str], list[str]]:
        """Return what was looked at, and what not."""
        if self.kind == "dump":
            return ["all manifests", "names, shapes and sizes of all fragments"], [
                "the bytes of tensors (check)"
            ]
        return ["headers of all files", "names and shapes of tensors"], ["the bytes of tensors (verify)"]

    def text(self) -> str:
        lines = self.lines()
        if self.layers:
            lines += [LEGEND, *drawn(self.layers)]
        more = len(self.problems) - SHOWN
        lines += [f"Problem: {one_line(text)}" for text in self.problems[:SHOWN]]
        lines += [f"... and {more} more (--report FILE holds all)"] if more > 0 else []
        return "\n".join([*lines, self.verdict()[1]])

    def lines(self) -> list[str]:
        """Return all lines but those of the map and of the problems."""
        head = ", ".join(f"{key} {value}" for key, value in self.head.items() if value is not None)
        tensors = f"{counted(self.num_tensors, 'tensor')} in {counted(self.num_rectangles, 'rectangle')}"
        size = f"{show(self.total_bytes)}, {tensors}"
        lines = [f"{self.kind.capitalize()} {self.path}: {head or 'no manifest yet'}."]
        if self.kind == "dump":
            lines += self.ranks.lines()
        if self.topology:
            lines += [f"Topology: {_listed(self.topology)}."]
        lines += [f"{size}: {', '.join(f'{k} {show(v)}' for k, v in sorted(self.bytes_by_dtype.items()))}."]
        if self.stalls:
            rank = max(self.stalls, key=lambda name: self.stalls[name])
            lines += [f"Training stood still for at most {self.stalls[rank]:.2f} s ({rank})."]
        lines += [f"Dropped: {count:,} x {reason}." for reason, count in sorted(self.drops.items())]
        return [one_line(line) for line in lines]


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items())
