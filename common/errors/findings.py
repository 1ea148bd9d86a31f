"""What a check found: the one shape of result that every check has, in the proof and in every command.

Decides what an allowed problem becomes. Must not know what any problem or warning means.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from .tree import ShardmergeError


@dataclass(frozen=True, slots=True)
class Findings:
    """Problems stop a command. Warnings are told and stop nothing. Both are in the order found."""

    problems: tuple[ShardmergeError, ...] = ()
    warnings: tuple[str, ...] = ()

    def allowing(self, words: Collection[str]) -> Findings:
        """Returns the same findings with problems as warnings whose class names one of these words.

        They come last: they may be many, and only ten warnings are shown.
        """
        left = tuple(problem for problem in self.problems if problem.allow not in words)
        allowed = (problem for problem in self.problems if problem.allow in words)
        told = (f"{problem.message()} (allowed)" for problem in allowed)
        return Findings(left, (*self.warnings, *told))

    @classmethod
    def together(cls, several: Iterable[Findings]) -> Findings:
        """Returns what all of them found, one after the other."""
        problems: list[ShardmergeError] = []
        warnings: list[str] = []
        for each in several:
            problems += each.problems
            warnings += each.warnings
        return cls(tuple(problems), tuple(warnings))
