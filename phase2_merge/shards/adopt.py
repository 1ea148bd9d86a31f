"""Makes a fragment of entire tensors a shard: by hard link, else by reflink, else by a copy.

A reflink is a file of its own that shares its blocks with another (XFS, btrfs): no byte moves, nothing is shared but
space. How each shard was adopted is reported, because only a copy costs time.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardmerge.common import durable

from ..disk.reflink import clone
from .plan import Adopted

CANNOT_LINK = {
    errno.EXDEV,
    errno.EPERM,
    errno.EACCES,
    errno.EMLINK,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EINVAL,
}
LINK, REFLINK, COPY = "hard link", "reflink", "copy"
COPY_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Adoption:
    """How many shards were adopted by LINK, by REFLINK and by COPY, and how many bytes were copied for it."""

    by: dict[str, int]
    copied_bytes: int


def adopt(shards: Sequence[Adopted], folder: Path) -> Adoption:
    """Put every adopted shard into `folder`, in place of what lies there under its name.

    Returns how it was done. Raises OSError if a copy fails too.
    """
    counts: Counter[str] = Counter()
    copied_bytes = 0
    for shard in shards:
        target = folder / shard.name
        target.unlink(missing_ok=True)
        how = _adopt(shard.fragment.path, target)
        counts[how] += 1
        copied_bytes += shard.num_bytes if how == COPY else 0
    return Adoption({how: counts[how] for how in (LINK, REFLINK, COPY) if counts[how]}, copied_bytes)


def together(adoptions: Iterable[Adoption]) -> Adoption:
    """Return the sum of what several parts of a merge did."""
    counts: Counter[str] = Counter()
    copied_bytes = 0
    for adoption in adoptions:
        counts.update(adoption.by)
        copied_bytes += adoption.copied_bytes
    return Adoption(dict(counts), copied_bytes)


def _adopt(source: Path, target: Path) -> str:
    """Give a fragment its name as a shard. Returns LINK, REFLINK or COPY. Raises OSError."""
    try:
        os.link(source.resolve() if source.is_symlink() else source, target)
    except OSError as error:
        if error.errno not in CANNOT_LINK:
            raise
        return _clone_or_copy(source, target)
    return LINK


def _clone_or_copy(source: Path, target: Path) -> str:
    with durable.appearing(target) as temporary, open(temporary, "xb") as new, open(source, "rb") as old:
        how = REFLINK if clone(new.fileno(), old.fileno()) else COPY
        if how == COPY:
            shutil.copyfileobj(old, new, COPY_BYTES)
            new.flush()
        os.fsync(new.fileno())
    return how
