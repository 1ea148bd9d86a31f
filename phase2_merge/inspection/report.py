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
from .coverage import LayerCover, drawn

LEGEND = (
    "Layers: all other tensors of the layer, then experts from 0 (# whole, - in part, . nothing, 2 twice)"
)


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which ranks have a manifest, who is writing others, which failed and why. An output has none."""

    world_size: int = 0
    done: tuple[int, ...] = ()
    writers: dict[int, str] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    @property
    def running(self) -> tuple[int, ...]:
        return tuple(sorted(self.writers))

    def lines(self) -> list[str]:
        """Return how many ranks are done, running, failed and not begun, and who is running."""
        who = [f"Rank {rank} is being written by {self.writers[rank]}." for rank in self.running[:SHOWN]]
        more = len(self.running) - SHOWN
        return [self.text(), *who, *([f"... and {more:,} more are being written."] if more > 0 else [])]

    def text(self) -> str:
        known = {rank for rank in (*self.done, *self.running, *self.failed) if rank < self.world_size}
        parts = [f"{len(self.done):,} of {self.world_size or '?'} done"]
        for word, who in (("running", self.running), ("failed", self.failed)):
            parts += [f"{len(who):,} {word} ({ranges(who)})"] if who else []
        if not_begun := max(0, self.world_size - len(known)):
            parts.append(f"{not_begun:,} not begun ({ranges_without(known, self.world_size)})")
        return f"Ranks: {', '.join(parts)}."


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was seen of a dump or an output.

    `sizes` are bytes by rank or by shard, `head` is run, step and the like, `topology` sizes by axis. `stalls` are the
    seconds for which each rank's training stood still, of ranks that were dumped beside it.
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

    @property
    def total_bytes(self) -> int:
        return sum(self.sizes.values())

    def facts(self) -> dict[str, Any]:
        facts = asdict(self) | {"total_bytes": self.total_bytes}
        facts["ranks"]["running"] = self.ranks.running
        for name in ("writers", "failed"):
            facts["ranks"][name] = {str(rank): text for rank, text in facts["ranks"][name].items()}
        return facts

    def text(self) -> str:
        lines = self.lines()
        if self.layers:
            lines += [LEGEND, *drawn(self.layers)]
        more = len(self.problems) - SHOWN
        lines += [f"Problem: {one_line(text)}" for text in self.problems[:SHOWN]]
        return "\n".join(lines + ([f"... and {more} more (--report FILE holds all)"] if more > 0 else []))

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
