"""Finds who is writing the ranks of a dump. An attempt at a rank has a folder of its own, with a record of its owner.

Only looks; must not know what a rank writes. Phase one decides what it means for the next attempt, `inspect` shows it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..places import MANIFEST, OWNER, RANK_PARTIAL, rank_name
from . import owner
from .owner import Owner, State


@dataclass(frozen=True, slots=True)
class Attempt:
    """A folder in which a rank is being written, or was when its process was killed.

    Attributes:
        rank: The rank.
        folder: Where it is written.
        owner: Who writes; None if the folder holds no record that can be read, which no attempt of ours leaves.
    """

    rank: int
    folder: Path
    owner: Owner | None

    def __str__(self) -> str:
        return str(self.owner or "somebody who left no readable record")

    def state(self) -> State:
        """Return whether its process still runs."""
        return self.owner.state() if self.owner else State.UNKNOWN


def attempts(dump: Path, rank: int | None = None) -> list[Attempt]:
    """Return the attempts at a rank of a dump, or at all of its ranks, ordered by name.

    Raises OSError if the dump cannot be listed.
    """
    return sorted(_attempts(dump, rank), key=lambda attempt: attempt.folder.name)


def _attempts(dump: Path, rank: int | None) -> Iterator[Attempt]:
    for folder in dump.iterdir():
        parts = RANK_PARTIAL.fullmatch(folder.name)
        wanted = parts and rank in (None, int(parts[1]))
        if parts and wanted and is_own_folder(folder):
            held = _owner(folder)
            if held or is_own_folder(folder):  # otherwise it ended while we looked
                yield Attempt(int(parts[1]), folder, held)


def is_own_folder(path: Path) -> bool:
    """Whether there is a folder at `path`, and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def is_complete(dump: Path, rank: int) -> bool:
    """Whether a rank has its manifest."""
    return os.path.isfile(dump / rank_name(rank) / MANIFEST)


def _owner(folder: Path) -> Owner | None:
    try:
        return owner.read(folder / OWNER, folder)
    except OSError:  # whatever is there instead, it names nobody
        return None
