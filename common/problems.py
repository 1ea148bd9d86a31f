"""Several refusals at once: everything that is wrong, collected before anything was written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .errors import SHOWN, ShardmergeError


@dataclass(eq=False)
class ProblemsFoundError(ShardmergeError):
    """Everything that is wrong, collected before anything was written."""

    problems: tuple[ShardmergeError, ...]

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        """The highest of 5 > 4 > 3, as documented for several problems."""
        return max(problem.exit_code for problem in self.problems)

    def message(self) -> str:
        shown = "\n".join(f"  {problem.message()}" for problem in self.problems[:SHOWN])
        more = len(self.problems) - SHOWN
        rest = f"\n  ... and {more} more (--report FILE holds all)" if more > 0 else ""
        count = len(self.problems)
        return f"{count} problem{'s' if count > 1 else ''} found:\n{shown}{rest}"

    def facts(self) -> dict[str, Any]:
        """All problems, each with its own facts."""
        return {
            "error": type(self).__name__,
            "exit_code": self.exit_code,
            "problems": [problem.facts() for problem in self.problems],
        }


def raise_problems(problems: Iterable[ShardmergeError]) -> None:
    """Raise nothing, the only problem itself, or all of them together."""
    found = tuple(problems)
    if len(found) == 1:
        raise found[0]
    if found:
        raise ProblemsFoundError(found)
