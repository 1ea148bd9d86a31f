"""The root of the tree of errors and its six branches: an exit code per branch, facts as fields.

A message says what, which tensor or file, what was got and expected, which rank, and what to do next.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

SHOWN = 10


@dataclass(eq=False)
class ShardmergeError(Exception):
    """Root of the tree; never raised itself. `allow` is the word after --allow that turns it into a warning, if any."""

    exit_code: ClassVar[int] = 1
    allow: ClassVar[str | None] = None

    def message(self) -> str:
        """Return one sentence or two: the facts, then what to do."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.message()

    def facts(self) -> dict[str, Any]:
        """Return the error for machines: class name, exit code, message and every field."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"error": type(self).__name__, "exit_code": self.exit_code, "message": self.message(), **own}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, f.name) for f in fields(self))


class UsageError(ShardmergeError):
    """Exit 2: the command or its surroundings are wrong, nothing was looked at."""

    exit_code = 2


class IncompleteError(ShardmergeError):
    """Exit 3: something is missing."""

    exit_code = 3


class ConflictError(ShardmergeError):
    """Exit 4: what is there contradicts itself."""

    exit_code = 4


class UnsupportedError(ShardmergeError):
    """Exit 5: this model or parameter is not supported."""

    exit_code = 5


class OutputError(ShardmergeError):
    """Exit 6: the output exists, is locked, or has no room."""

    exit_code = 6
