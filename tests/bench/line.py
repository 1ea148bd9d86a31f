"""A line of the bench's table: what was measured beside which peer, the ratio, and the bound it keeps or breaks."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
COPY_BOUND = 1.1
HEAD = ("what", "cache", "ours", "peer", "ratio", "bound", "memory")


@dataclass(frozen=True, slots=True)
class Bound:
    """At most `limit`, or at least it, in the words of `told`."""

    limit: float
    told: str
    at_least: bool = False

    def kept(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


def at_least(times: float, copy: float) -> Bound:
    """So many times as fast as a peer, or, where the disk is in the way, at most a tenth slower than a bare copy.

    `copy` is how many times as fast as the peer that copy was in the same rounds.
    """
    told = f"at least {times:g}, or a copy's {copy:.1f} / {COPY_BOUND:g}"
    return Bound(min(times, copy / COPY_BOUND), told, at_least=True)


@dataclass(frozen=True, slots=True)
class Line:
    """`value` is what the bound is about, `ratio` how it is told. Without a bound a line only informs."""

    what: str
    cache: str = ""
    ours: str = ""
    peer: str = ""
    ratio: str = ""
    value: float = 0
    bound: Bound | None = None
    memory: str = ""

    @property
    def kept(self) -> bool:
        return self.bound is None or self.bound.kept(self.value)

    def row(self) -> str:
        """Of a Markdown table."""
        ratio = self.ratio if self.kept else f"{self.ratio} BROKEN"
        told = self.bound.told if self.bound else ""
        return row((self.what, self.cache, self.ours, self.peer, ratio, told, self.memory))


def row(cells: tuple[str, ...]) -> str:
    """Cells of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def of_time(value: float) -> str:
    """Seconds as a share of a peer's."""
    return f"{value:.2f} x its time"


def times_as_fast(value: float) -> str:
    """A peer's seconds over ours."""
    return f"{value:,.1f} times as fast"


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1e3:.1f} ms"


def mib(num_bytes: int) -> str:
    return f"{num_bytes / MIB:.0f} MiB"
