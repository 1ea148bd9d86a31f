"""Finds the ranks of a dump: their directories in one or several DUMP folders, and who recorded a failure.

A rank may lie in several folders, for example if node-local disks were copied together. `read` compares the copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shardmerge.common import canonical_json, plausible_sizes, regular_files
from shardmerge.common.errors import (
    BadInputError,
    CorruptFileError,
    ShardmergeError,
    not_a_directory,
    printable,
)
from shardmerge.common.places import MANIFEST, RANK, RANK_FAILED, RANK_PARTIAL

REASON_CHARACTERS = 2_000  # of what a failed rank recorded


@dataclass(frozen=True, slots=True)
class RankDirectories:
    """The directories that hold a manifest, by rank ascending, and the reasons that failed ranks recorded."""

    complete: dict[int, tuple[Path, ...]]
    failures: dict[int, str]


def discover(dumps: Sequence[Path]) -> RankDirectories:
    """Find all ranks.

    Raises BadInputError if a folder is missing or no manifest is found at all, CorruptFileError for a rank or a
    manifest that lies outside of the folder that was given, or is not a regular file. OSError.
    """
    complete: dict[int, list[Path]] = {}
    failures: dict[int, str] = {}
    by_dump = _entries(dumps)
    for entry in (entry for entries in by_dump.values() for entry in entries):
        if (rank := RANK.fullmatch(entry.name)) and _is_complete(entry):
            complete.setdefault(int(rank[1]), []).append(entry)
        elif rank := RANK_FAILED.fullmatch(entry.name):
            failures[int(rank[1])] = reason(entry)
    others = [dump for dump, entries in by_dump.items() if not any(_is_of_rank(one.name) for one in entries)]
    _refuse_ranks(others)
    if not complete:
        raise BadInputError(
            f"no rank-NNNNN/{MANIFEST} in {_listed(dumps)}{_first_failure(failures)}",
            "Give what a dump wrote.",
        )
    if others:
        raise BadInputError(
            f"{others[0]} holds no rank of a dump", "Leave it out, or give what a dump wrote."
        )
    return RankDirectories({rank: tuple(complete[rank]) for rank in sorted(complete)}, failures)


def holds_ranks(folder: Path) -> bool:
    """Whether a folder holds a complete rank. Raises as `discover` does where that cannot be seen."""
    return any(RANK.fullmatch(entry.name) and _is_complete(entry) for entry in sorted(folder.iterdir()))


def _entries(dumps: Sequence[Path]) -> dict[Path, list[Path]]:
    """Return what is in each dump, by the first path that it was given by. Raises BadInputError."""
    for dump in dumps:
        if not dump.is_dir():
            raise not_a_directory(dump, "Give the directories that a dump wrote.")
    unique: dict[Path, Path] = {}
    for dump in dumps:
        unique.setdefault(dump.resolve(), dump)
    return {dump: sorted(resolved.iterdir()) for resolved, dump in unique.items()}


def _refuse_ranks(folders: Sequence[Path]) -> None:
    """Raise BadInputError if the folder of a rank was given in place of its dump."""
    ranks = [path for path in folders if RANK.fullmatch(path.resolve().name) and (path / MANIFEST).exists()]
    if ranks:
        dumps = dict.fromkeys(path.resolve().parent for path in ranks)
        raise BadInputError(f"{ranks[0]} is one rank, not a dump", f"Give {' '.join(map(str, dumps))}.")


def _is_of_rank(name: str) -> bool:
    """Whether a file or folder of this name says that a rank was written, failed, or is being written."""
    return any(pattern.fullmatch(name) for pattern in (RANK, RANK_FAILED, RANK_PARTIAL))


def _is_complete(rank: Path) -> bool:
    """Whether a rank's directory holds a manifest. Raises CorruptFileError for a link that leads out of the dump."""
    try:
        return regular_files.exists(rank / MANIFEST, rank.parent)
    except CorruptFileError as error:
        if not rank.is_symlink():
            raise
        raise CorruptFileError(str(rank), error.reason, do=_instead_of_a_link(rank)) from None


def _instead_of_a_link(rank: Path) -> str:
    """Return what to do about a rank that is a link out of its dump."""
    target = rank.resolve()
    if target.name == rank.name:
        return f"Remove the link, and give {target.parent} as a further DUMP."
    return f"Put the folder itself in place of the link, called {rank.name}."


def reason(path: Path) -> str:
    """Return the reason that a failed rank recorded, or that the record cannot be read: the rank failed anyhow.

    It is one line, whatever was recorded.
    """
    try:
        failure = canonical_json.read_object(path, path.parent, plausible_sizes.FAILURE).get("failure")
    except (ValueError, OSError, ShardmergeError) as error:
        return printable.one_line(f"{path.name} cannot be read ({error})")
    message = failure.get("message") if isinstance(failure, dict) else None
    text = str(message or failure or "no reason given")
    more = " ..." if len(text) > REASON_CHARACTERS else ""
    return printable.one_line(text[:REASON_CHARACTERS]) + more


def _listed(dumps: Sequence[Path]) -> str:
    return ", ".join(map(str, dumps))


def _first_failure(failures: dict[int, str]) -> str:
    return "".join(
        f"; rank {rank} recorded a failure: {reason.rstrip(' .')}"
        for rank, reason in sorted(failures.items())[:1]
    )
