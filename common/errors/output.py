"""Errors about an output and those who write it: it exists, is locked, lacks parts, lost a worker."""

from __future__ import annotations

from dataclasses import dataclass, field

from .exit_codes import SHOWN, ConflictError, IncompleteError, OutputError, ShardmergeError
from .wording import counted

COPY_OUTPUT = "Copy the output again, with its folder .shardmerge, or merge again."


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
    may_have_ended: bool = False

    def message(self) -> str:
        do = "Wait for it to end"
        if self.may_have_ended:
            do = (
                "Whether it still runs cannot be seen from here. Wait for it to end, or give --break-lock if it is "
                "known to have ended"
            )
        return f"{self.path} is being written by {self.holder}. {do}; nothing was changed."


@dataclass(eq=False)
class NoRoomError(OutputError):
    """What is to be written does not fit. `copied` are bytes of fragments, by the reason why they are not linked."""

    path: str
    needed_bytes: int
    free_bytes: int
    copied: dict[str, int] = field(default_factory=dict)

    def message(self) -> str:
        copies = "".join(
            f" ({count:,} of them because files are copied: {why})" for why, count in self.copied.items()
        )
        return (
            f"{self.needed_bytes:,} bytes are to be written{copies}, and {self.free_bytes:,} are free in {self.path}. "
            f"Free {self.needed_bytes - self.free_bytes:,} more there, or give an OUT on a larger file system; "
            "nothing was written."
        )


@dataclass(eq=False)
class LockLostError(OutputError):
    path: str

    def message(self) -> str:
        return (
            f"The lock of {self.path} was taken away while this command held it, by --break-lock or by hand. It "
            "published nothing more and removed nothing more. See who else writes there, and run again."
        )


@dataclass(eq=False)
class MissingPartsError(IncompleteError):
    """Shards were not written by any part, or are not what a part wrote: then `reasons` say so."""

    parts: tuple[str, ...]
    absent_shards: int
    num_shards: int
    reasons: tuple[str, ...] = ()

    def message(self) -> str:
        which = f"Parts {', '.join(self.parts)} are" if self.parts else "No part is complete: all are"
        of = f"{self.absent_shards:,} of {counted(self.num_shards, 'shard')}"
        what = f"{of} were not written, or are not as they were written"
        why = "".join(f"; {reason}" for reason in self.reasons[:SHOWN])
        return (
            f"{what}{why}. {which} to be run, with --part and otherwise this command. What is written stays."
        )


@dataclass(eq=False)
class MissingRecordError(IncompleteError):
    path: str
    without: str
    do: str = COPY_OUTPUT

    def message(self) -> str:
        return f"{self.path} is missing, which every merge publishes: {self.without}. {self.do}"


@dataclass(eq=False)
class WorkerDiedError(ShardmergeError):
    shards: tuple[str, ...]

    def message(self) -> str:
        return (
            f"A worker process was killed while it wrote {', '.join(self.shards[:SHOWN])} (out of memory?). Nothing "
            "was published. Run again, with fewer --workers if memory is short."
        )


@dataclass(eq=False)
class WriterDiedError(ShardmergeError):
    """`status`: its exit code, or minus the signal that killed it."""

    rank: int
    path: str
    status: int

    def message(self) -> str:
        how = f"ended with exit code {self.status}, and said why on stderr"
        if self.status < 0:
            how = f"was killed by signal {-self.status} (out of memory?)"
        return (
            f"The process that wrote rank {self.rank} to {self.path} in the background {how}. The rank is not "
            "there. Dump again; the next dump starts another process."
        )


@dataclass(eq=False)
class ShardsChangedError(ConflictError):
    """Shards in an output are not what was planned."""

    path: str
    reasons: tuple[str, ...]
    published: bool

    def message(self) -> str:
        more = len(self.reasons) - SHOWN
        listed = "; ".join(self.reasons[:SHOWN]) + (f"; and {more:,} more" if more > 0 else "")
        do = (
            "Move it away and merge again"
            if self.published
            else "Run the same command again: it writes them anew"
        )
        return f"{self.path} does not hold exactly its shards: {listed}. {do}; nothing was published."
