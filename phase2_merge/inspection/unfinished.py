"""Which ranks of a dump are not complete: who writes them, what killed processes left, and why others failed.

Only looks; must not know what complete ranks hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shardmerge.common.places import RANK_FAILED
from shardmerge.common.processes.attempts import Attempt, attempts, is_complete
from shardmerge.common.processes.owner import State

from ..ledger.rank_directories import reason


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What a dump holds besides its complete ranks.

    Attributes:
        writers: Who writes, for each rank that is being written.
        failed: The reason that each failed rank recorded.
        remains: A sentence for each folder that nobody needs any more.
    """

    writers: dict[int, str]
    failed: dict[int, str]
    remains: tuple[str, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        failures = (f"rank {rank} failed: {why}" for rank, why in sorted(self.failed.items()))
        return (*failures, *self.remains)


def unfinished(dump: Path) -> Unfinished:
    """Return what a dump holds besides its complete ranks. Raises OSError if it cannot be listed."""
    all_attempts = attempts(dump)
    writers: dict[int, str] = {}
    for attempt in all_attempts:
        if attempt.state() is not State.ENDED and not is_complete(dump, attempt.rank):
            others = [writers[attempt.rank]] if attempt.rank in writers else []
            writers[attempt.rank] = "; ".join([*others, _described(attempt)])
    failed = {
        int(match[1]): reason(entry)
        for entry in sorted(dump.iterdir())
        if (match := RANK_FAILED.fullmatch(entry.name))
    }
    return Unfinished(writers, failed, tuple(_remains(dump, all_attempts)))


def _described(attempt: Attempt) -> str:
    """Return who attempts, and whether that can be known."""
    return f"{attempt}{'' if attempt.state() is State.RUNS else ', which may have ended: it cannot be seen from here'}"


def _remains(dump: Path, all_attempts: list[Attempt]) -> Iterator[str]:
    """Yield a sentence for each folder of an attempt that has ended, or whose rank is complete all the same."""
    for attempt in all_attempts:
        folder = attempt.folder.name
        if attempt.state() is State.ENDED:
            yield (
                f"the process that wrote rank {attempt.rank} has ended: {attempt}. {folder} is left of it, and the "
                "next dump of this rank removes it"
            )
        elif is_complete(dump, attempt.rank):
            yield f"rank {attempt.rank} is complete, and {folder} beside it belongs to {_described(attempt)}"
