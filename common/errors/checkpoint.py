"""Errors about a torch_dist checkpoint on disk: of another format, unfinished, damaged, changed, or not understood."""

from __future__ import annotations

from dataclasses import dataclass

from .exit_codes import ConflictError, IncompleteError, UnsupportedError

SHOWN_FILES = 6
LIVE = "Load it into a model as training does, and dump that: shardmerge dump --model-provider."


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
        return (
            f"{len(self.shares)} of {self.num_shares} shares are not in {self.dump} (rank directories {shares}"
            f"{', ...' if len(self.shares) > SHOWN_FILES else ''}), which need the files {files}. Give the same "
            "command again, with any number of processes: what is complete is kept."
        )
