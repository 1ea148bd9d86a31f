"""Makes a fragment of entire tensors a shard: by hard link, else by reflink, else by a copy.

A reflink is a file of its own that shares its blocks with another (XFS, btrfs): no byte moves, nothing is shared but
space. Which means was used is told, because only the last one costs time.
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

REFUSED = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
LINK, REFLINK, COPY = "hard link", "reflink", "copy"
COPY_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Adoption:
    """How many shards were adopted by which means, and how many bytes had to be copied for it."""

    by: dict[str, int]
    copied_bytes: int


def adopt(shards: Sequence[Adopted], folder: Path) -> Adoption:
    """Put every adopted shard into `folder`. Raises OSError if a copy fails too."""
    found, copied_bytes = {LINK: 0, REFLINK: 0, COPY: 0}, 0
    for shard in shards:
        how = _adopt(shard.fragment.path, folder / shard.name)
        found[how] += 1
        copied_bytes += shard.num_bytes if how == COPY else 0
    return Adoption({how: count for how, count in found.items() if count}, copied_bytes)


def together(parts: Iterable[Adoption]) -> Adoption:
    """What several did."""
    total: Counter[str] = Counter()
    copied_bytes = 0
    for one in parts:
        total.update(one.by)
        copied_bytes += one.copied_bytes
    return Adoption(dict(total), copied_bytes)


def _adopt(source: Path, target: Path) -> str:
    try:
        os.link(source.resolve() if source.is_symlink() else source, target)
    except OSError as error:
        if error.errno not in REFUSED:
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
