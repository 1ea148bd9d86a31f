"""Errors about files that are damaged or do not fit the files beside them, and about checkpoints on disk."""

from __future__ import annotations

from dataclasses import dataclass

from .exit_codes import ConflictError, IncompleteError, UnsupportedError
from .wording import counted

SHOWN_FILES = 6
LIVE = "Load it into a model as training does, and dump that: shardmerge dump --model-provider."
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

    def not_of_a_dump(self, do: str) -> CorruptFileError:
        """Return the same of a file that no dump has: `do` in place of dumping again, unless it says better already."""
        return CorruptFileError(self.path, self.reason, self.rank, do if self.do == AGAIN else self.do)


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


@dataclass(eq=False)
class UnknownInPickleError(UnsupportedError):
    path: str
    what: str

    def message(self) -> str:
        return (
            f"{self.path} {self.what}, which no checkpoint of a known version of megatron-core needs. Pickles are "
            f"never executed, so it is refused. If you trust the checkpoint: {LIVE}"
        )


@dataclass(eq=False)
class UnsupportedCheckpointError(UnsupportedError):
    path: str
    reason: str
    do: str = LIVE

    def message(self) -> str:
        return f"{self.path} cannot be read: {self.reason}. {self.do}"


@dataclass(eq=False)
class UnfinishedCheckpointError(IncompleteError):
    path: str
    reason: str

    def message(self) -> str:
        return (
            f"{self.path} is not complete: {self.reason}. Wait until it is saved, copy it again, or take the "
            "iteration before."
        )


@dataclass(eq=False)
class MissingChunksError(IncompleteError):
    parameter: str
    reason: str

    def message(self) -> str:
        return f"{self.parameter} lacks chunks in the checkpoint: {self.reason}. Copy the checkpoint again."


@dataclass(eq=False)
class BadChunkError(ConflictError):
    parameter: str
    path: str
    reason: str

    def message(self) -> str:
        return (
            f"A chunk of {self.parameter} in {self.path} is damaged: {self.reason}. Copy the checkpoint again, or take "
            "another iteration."
        )


@dataclass(eq=False)
class ChangedCheckpointError(ConflictError):
    path: str
    reason: str

    def message(self) -> str:
        return (
            f"{self.path} changed while it was read: {self.reason}. What was written of it is not complete; dump a "
            "checkpoint that nobody writes, into a new directory."
        )


@dataclass(eq=False)
class MissingSharesError(IncompleteError):
    dump: str
    shares: tuple[int, ...]
    num_shares: int
    files: tuple[str, ...]

    def message(self) -> str:
        more = len(self.files) - SHOWN_FILES
        files = ", ".join(self.files[:SHOWN_FILES]) + (f" and {more} more" if more > 0 else "")
        shares = ", ".join(map(str, self.shares[:SHOWN_FILES]))
        verb = "is" if len(self.shares) == 1 else "are"
        return (
            f"{len(self.shares)} of {counted(self.num_shares, 'share')} {verb} not in {self.dump} (rank directories "
            f"{shares}"
            f"{', ...' if len(self.shares) > SHOWN_FILES else ''}), which need the files {files}. Give the same "
            "command again, with any number of processes: what is complete is kept."
        )
