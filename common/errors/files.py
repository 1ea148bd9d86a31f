"""Errors about files that are damaged or do not fit the files beside them."""

from __future__ import annotations

from dataclasses import dataclass

from .exit_codes import ConflictError

AGAIN = "Copy it again from where it was dumped, or dump this run again."


@dataclass(eq=False)
class CorruptFileError(ConflictError):
    path: str
    reason: str
    rank: int | None = None
    do: str = AGAIN

    def message(self) -> str:
        owner = "" if self.rank is None else f" (rank {self.rank})"
        return f"{self.path}{owner} is damaged: {self.reason}. {self.do}"


@dataclass(eq=False)
class CorruptIndexError(ConflictError):
    path: str
    reason: str

    def message(self) -> str:
        return (
            f"{self.path} does not fit the files beside it: {self.reason}. Take back the one that was published with "
            "them."
        )
