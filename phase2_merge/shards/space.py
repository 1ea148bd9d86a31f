"""How much room shards need where they are written, and which fragments are copied because they cannot be linked.

Looked up before anything is written, without writing. Headers and what stands beside the shards are left out: they are
less than a thousandth. A quota is not known here, and on a file system that cannot link at all the copies are not.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shardmerge.common.command.byte_count import show
from shardmerge.common.errors import NoRoomError
from shardmerge.common.places import SHARD

from ..disk.mounts import mount_of
from .adopt import is_refused_link, same_file
from .plan import Adopted, Assembled, Plan

FOREIGN = "this kernel links no files of other users"


@dataclass(frozen=True, slots=True)
class Space:
    """The room that shards need.

    Attributes:
        folder: Where it is needed: OUT.partial, or the nearest folder above it that exists.
        needed_bytes: Of all files that are to be written, less what those have already that they replace.
        free_bytes: What this user may still write there.
        copied_bytes: Bytes of fragments that are copied, by the reason why they cannot be linked.
        linked_bytes: Of fragments against whose links nothing is known.
        at_most: Files there may share blocks with the dump, and then need less.
    """

    folder: str
    needed_bytes: int
    free_bytes: int
    copied_bytes: dict[str, int]
    linked_bytes: int
    at_most: bool

    def lines(self) -> list[str]:
        """Return what is needed and free, what is linked, and why bytes are copied that could be linked elsewhere."""
        needed = f"{'At most ' if self.at_most else ''}{show(self.needed_bytes)} will be written"
        linked = f"{show(self.linked_bytes)} will be linked, not copied."
        linked_lines = [linked] if self.linked_bytes else []
        return [
            f"{needed}, {show(self.free_bytes)} are free in {self.folder}.",
            *linked_lines,
            *self.copies(),
        ]

    def copies(self) -> list[str]:
        """Return a sentence for each reason why bytes are copied."""
        return [
            f"{show(count)} will be copied, not linked: {why}." for why, count in self.copied_bytes.items()
        ]


def needed(plan: Plan, shards: Sequence[Adopted | Assembled], folder: Path) -> Space:
    """Return the room that shards need in a folder.

    Args:
        plan: What is published.
        shards: All of its shards, or the share of one part.
        folder: OUT.partial. It need not be there.

    Returns:
        What is needed, and what is free.

    Raises:
        OSError: A folder or a fragment cannot be looked at.
    """
    here = mount_of(folder)
    copied: Counter[str] = Counter()
    roots = {head.dump for head in plan.ledger.heads} | {shard.fragment.root for shard in plan.adopted}
    mounts = {root: mount_of(root) for root in roots}
    in_place = _left_by_others(plan, folder)
    for shard in shards:
        target = folder / shard.name
        if isinstance(shard, Assembled):
            in_place += _own_bytes(target)
        elif not same_file(shard.fragment.path, target):
            why = here.why_not_linked(mounts[shard.fragment.root])
            if why or is_refused_link(shard.fragment.path):
                copied[why or FOREIGN] += shard.num_bytes
                in_place += _own_bytes(target)
    assembled = sum(shard.num_bytes for shard in shards if isinstance(shard, Assembled))
    return Space(
        folder=str(here.folder),
        needed_bytes=max(0, assembled + copied.total() - in_place),
        free_bytes=here.free_bytes,
        copied_bytes=dict(copied),
        linked_bytes=sum(shard.num_bytes for shard in shards) - assembled - copied.total(),
        at_most=any(here.may_share_blocks(mount) for mount in mounts.values()),
    )


def required(plan: Plan, shards: Sequence[Adopted | Assembled], folder: Path) -> Space:
    """Return what `needed` does, of the same arguments, where it is there.

    Args:
        plan: What is published.
        shards: All of its shards, or the share of one part.
        folder: OUT.partial.

    Returns:
        What is needed, and what is free.

    Raises:
        NoRoomError: Shards surely need more than is free.
        OSError: A folder or a fragment cannot be looked at.
    """
    space = needed(plan, shards, folder)
    if space.needed_bytes > space.free_bytes and not space.at_most:
        raise NoRoomError(space.folder, space.needed_bytes, space.free_bytes, space.copied_bytes)
    return space


def _left_by_others(plan: Plan, folder: Path) -> int:
    """Return what a merge of another plan left, which `resume.clear` removes."""
    stay = {shard.name for shard in plan.shards}
    entries = folder.iterdir() if folder.is_dir() else ()
    return sum(_own_bytes(path) for path in entries if SHARD.fullmatch(path.name) and path.name not in stay)


def _own_bytes(path: Path) -> int:
    """Return what a file takes that no other name has; 0 if there is none."""
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return 0
    return there.st_blocks * 512 if there.st_nlink == 1 else 0
