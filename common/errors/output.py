"""Errors about an output and those who write it: it exists, is locked, lacks parts, lost a worker."""

from __future__ import annotations

from dataclasses import dataclass

from .exit_codes import SHOWN, IncompleteError, OutputError, ShardmergeError


@dataclass(eq=False)
class OutputExistsError(OutputError):
    path: str
    why: str = "it exists"

    def message(self) -> str:
        return f"{self.path} cannot be the output: {self.why}. Give another path, or move it away; nothing was changed."


@dataclass(eq=False)
class OutputLockedError(OutputError):
    path: str
    holder: str

    def message(self) -> str:
        return f"{self.path} is being written by {self.holder}. Wait for it to end; nothing was changed."


@dataclass(eq=False)
class MissingPartsError(IncompleteError):
    parts: tuple[str, ...]
    absent_shards: int
    num_shards: int

    def message(self) -> str:
        which = f"Parts {', '.join(self.parts)} are" if self.parts else "No part is complete: all are"
        what = f"{self.absent_shards:,} of {self.num_shards:,} shards were not written. {which} to be run"
        return f"{what}, with --part and otherwise this command. What is written stays."


@dataclass(eq=False)
class MissingRecordError(IncompleteError):
    path: str
    without: str

    def message(self) -> str:
        return (
            f"{self.path} is missing, which every merge publishes: {self.without}. Copy the output again, with its "
            "folder .shardmerge, or merge again."
        )


@dataclass(eq=False)
class WorkerDiedError(ShardmergeError):
    shards: tuple[str, ...]

    def message(self) -> str:
        return (
            f"A worker process was killed while it wrote {', '.join(self.shards[:SHOWN])} (out of memory?). Nothing "
            "was published. Run again, with fewer --workers if memory is short."
        )
