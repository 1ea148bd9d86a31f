"""What a check found: the only shape of result that checks have, in the proof and in every command.

Decides what an allowed problem becomes. Must not know what any problem or warning means.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from .exit_codes import ShardmergeError


@dataclass(frozen=True, slots=True)
class Findings:
    """Problems stop a command. Warnings are printed and stop nothing. Both are in the order found."""

    problems: tuple[ShardmergeError, ...] = ()
    warnings: tuple[str, ...] = ()

    def allowing(self, words: Collection[str]) -> Findings:
        """Return the same findings, with problems turned into warnings whose class names one of these words.

        They come last: they may be many, and only ten warnings are shown.
        """
        problems = tuple(problem for problem in self.problems if problem.allow not in words)
        allowed = (problem for problem in self.problems if problem.allow in words)
        warnings = (f"{problem.message()} (allowed)" for problem in allowed)
        return Findings(problems, (*self.warnings, *warnings))

    @classmethod
    def together(cls, several: Iterable[Findings]) -> Findings:
        """Return what all of these found, one after the other."""
        problems: list[ShardmergeError] = []
        warnings: list[str] = []
        for each in several:
            problems += each.problems
            warnings += each.warnings
        return cls(tuple(problems), tuple(warnings))
