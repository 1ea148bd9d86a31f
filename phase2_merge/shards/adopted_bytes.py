"""Adopted shards as they lie in the output: read, compared with the manifests, and made durable.

A fragment is linked first and verified then, under its new name: whatever happens to the name that it had in the dump,
the bytes that were verified are those that are published. The stamp that a shard had before and after it was read tells
later whether somebody wrote into it since. Must not know how assembled shards are written.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from shardmerge.common import durable
from shardmerge.common.command.progress import Progress
from shardmerge.common.errors import CorruptFileError, ShardmergeError, raise_problems

from ..disk.hashing import READERS, Advance
from ..disk.stamp import Stamp, stamp
from ..proof.checksums import check_bytes
from .adopt import Adoption, adopt, copies, make_readable
from .plan import Adopted, Plan

READS = 3  # of a shard that changes while it is read: another merge of the same dump may be linking it
CHANGED = "it was changed while it was read"


def put(
    plan: Plan, shards: Sequence[Adopted], folder: Path, *, check: bool, talk: TextIO | None
) -> tuple[Adoption, dict[str, Stamp]]:
    """Adopt shards, verify them where they lie now, and make their bytes durable.

    Args:
        plan: What is published.
        shards: Those of its shards that are adopted here.
        folder: OUT.partial, locked by the caller.
        check: Whether their bytes are compared with the checksums in the manifests.
        talk: Where progress goes.

    Returns:
        How they were adopted, and the stamp of each, by name.

    Raises:
        CorruptFileError: Bytes do not have their checksum; several such as ProblemsFoundError.
        OSError: Copying, reading or syncing fails.
    """
    kept = copies(shards, folder) if check else frozenset[str]()
    adoption = adopt(shards, folder, kept)
    paths = [folder / shard.name for shard in shards]
    make_readable(paths)
    if check:
        return adoption, verified(plan, shards, folder, kept, talk)
    sync(paths)
    return adoption, stamps_of(shards, folder)


def verified(
    plan: Plan, shards: Sequence[Adopted], folder: Path, kept: Collection[str], talk: TextIO | None
) -> dict[str, Stamp]:
    """Make the bytes of adopted shards durable, and compare them with the checksums in the manifests.

    In this order: a process that has a fragment mapped may write into a page that is dirty without changing any time of
    the file. Once the page is on the disk, the next write to it does.

    Args:
        plan: What is published.
        shards: Which of its shards.
        folder: Where they lie.
        kept: Names of copies that an earlier attempt left. One that is wrong is made anew.
        talk: Where progress goes.

    Returns:
        The stamp of each, by name: it did not change while the shard was read.

    Raises:
        CorruptFileError: Bytes do not have their checksum; several such as ProblemsFoundError.
        OSError: Reading or syncing fails.
    """
    progress = Progress("verifying", sum(shard.fragment.file.num_bytes for shard in shards), talk)
    stamps: dict[str, Stamp] = {}
    problems: dict[str, ShardmergeError] = {}
    waiting, not_made_anew = list(shards), {*kept}
    try:
        for _ in range(READS):
            sync([folder / shard.name for shard in waiting])
            before = stamps_of(waiting, folder)
            problems |= _wrong(plan, waiting, folder, progress.advance)
            stamps |= stamps_of(waiting, folder)
            # The copy of an earlier attempt may be half of one: the fragment itself has a chance before it is blamed.
            anew = [shard for shard in waiting if shard.name in problems and shard.name in not_made_anew]
            if anew:
                adopt(anew, folder)
            not_made_anew -= {shard.name for shard in anew}
            # What was read of a file that is another one now says nothing.
            waiting = [
                shard for shard in waiting if shard in anew or before[shard.name] != stamps[shard.name]
            ]
            for shard in waiting:
                problems.pop(shard.name, None)
    finally:
        progress.close()
    changed = [CorruptFileError(str(shard.fragment.path), CHANGED, shard.fragment.rank) for shard in waiting]
    raise_problems([*problems.values(), *changed])
    return stamps


def stamps_of(shards: Sequence[Adopted], folder: Path) -> dict[str, Stamp]:
    """Return the stamps of shards, by name. Raises CorruptFileError, OSError."""
    return {shard.name: stamp(folder / shard.name) for shard in shards}


def sync(paths: Sequence[Path]) -> None:
    """Make the bytes of files durable. Those that a dump wrote are: it costs as little as looking. Raises OSError."""
    with ThreadPoolExecutor(READERS) as threads:
        for _ in threads.map(durable.sync_file, paths):
            pass


def _wrong(
    plan: Plan, shards: Sequence[Adopted], folder: Path, advance: Advance
) -> dict[str, ShardmergeError]:
    """Read shards. Returns what is wrong, by name of the shard. Errors name the fragment in the dump."""
    by_path = {str(folder / shard.name): shard for shard in shards}
    adopted = [replace(shard.fragment, path=folder / shard.name) for shard in shards]
    wrong: dict[str, ShardmergeError] = {}
    for problem in check_bytes(plan.ledger, adopted, advance).problems:
        assert isinstance(problem, CorruptFileError)
        shard = by_path[problem.path]
        wrong[shard.name] = CorruptFileError(str(shard.fragment.path), problem.reason, problem.rank)
    return wrong
