"""Many errors as one: all that is wrong, collected before anything is written, grouped and counted.

Decides how many of each kind are shown, so that no kind hides another. Must not know what any of them means.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .exit_codes import SHOWN, ShardmergeError
from .printable import one_line
from .wording import counted


@dataclass(eq=False)
class ProblemsFoundError(ShardmergeError):
    """Everything that is wrong, collected before anything was written."""

    problems: tuple[ShardmergeError, ...]

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        """Return the highest of 5 > 4 > 3, as documented for several problems."""
        return max(problem.exit_code for problem in self.problems)

    def groups(self) -> list[tuple[ShardmergeError, ...]]:
        """Return the problems of each class in the order found, classes with the highest exit code first."""
        by_class: dict[type[ShardmergeError], list[ShardmergeError]] = defaultdict(list)
        for problem in self.problems:
            by_class[type(problem)].append(problem)
        return sorted(map(tuple, by_class.values()), key=lambda group: -group[0].exit_code)

    def message(self) -> str:
        groups = self.groups()
        shares = fair_shares([len(group) for group in groups], SHOWN)
        lines = [f"{counted(len(self.problems), 'problem')} found:"]
        for group, share in zip(groups, shares, strict=True):
            more = len(group) - share
            lines.append(f"{len(group):,} x {kind(group[0])}{':' if share else ''}")
            lines += [f"  {one_line(problem.message())}" for problem in group[:share]]
            lines += [f"  ... and {more:,} more"] if share and more else []
        if len(self.problems) > SHOWN:
            lines.append("(--report FILE holds all)")
        return "\n".join(lines)

    def facts(self) -> dict[str, Any]:
        """Return all problems, each with its own facts, and how many there are of each class."""
        return {
            "error": type(self).__name__,
            "exit_code": self.exit_code,
            "counts": {type(group[0]).__name__: len(group) for group in self.groups()},
            "problems": [problem.facts() for problem in self.problems],
        }


def raise_problems(problems: Iterable[ShardmergeError]) -> None:
    """Raise nothing, the only problem itself, or all of them together."""
    collected = tuple(problems)
    if len(collected) == 1:
        raise collected[0]
    if collected:
        raise ProblemsFoundError(collected)


def fair_shares(counts: Sequence[int], total: int) -> list[int]:
    """Return how many of each to show, `total` together: one of each in turn, as long as there are any."""
    shares = [0] * len(counts)
    while total and shares != list(counts):
        for index, count in enumerate(counts):
            if total and shares[index] < count:
                shares[index] += 1
                total -= 1
    return shares


def kind(problem: ShardmergeError) -> str:
    """Return the class of a problem in words: `missing tensor` for a MissingTensorError."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(problem).__name__.removesuffix("Error")).lower()
