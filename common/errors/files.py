"""Errors about files that are damaged or do not fit the files beside them."""

from __future__ import annotations

from dataclasses import dataclass

from .exit_codes import ConflictError, IncompleteError

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
class AbsentTensorError(IncompleteError):
    """A directory lacks a tensor that its own config.json requires."""

    path: str
    tensor: str
    shape: tuple[int, ...]
    required_by: str

    def message(self) -> str:
        return (
            f"{self.tensor} {list(self.shape)} is in no file of {self.path}, but {self.required_by} requires it. "
            "Copy or download all files of the checkpoint again, or the config.json that belongs to them."
        )


@dataclass(eq=False)
class OtherShapeError(ConflictError):
    """A tensor is not as the config.json beside it describes it."""

    path: str
    tensor: str
    what: str
    got: str
    expected: str

    def message(self) -> str:
        return (
            f"{self.tensor} in {self.path}: {self.what} is {self.got}, expected {self.expected}. Take the config.json "
            "that belongs to these files."
        )


@dataclass(eq=False)
class StrangeNumbersError(ConflictError):
    """A scan of all numbers found some that no weight should be."""

    path: str
    tensor: str
    nan_count: int
    inf_count: int

    def message(self) -> str:
        return (
            f"{self.tensor} in {self.path} holds {self.nan_count:,} NaN and {self.inf_count:,} infinite elements. "
            "Readers compute with them: take another checkpoint of this model."
        )


@dataclass(eq=False)
class CorruptIndexError(ConflictError):
    path: str
    reason: str

    def message(self) -> str:
        return (
            f"{self.path} does not fit the files beside it: {self.reason}. Take back the one that was published with "
            "them."
        )
