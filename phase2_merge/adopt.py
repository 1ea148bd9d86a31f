"""Makes a fragment of entire tensors a shard: by hard link, else by reflink, else by a copy.

A reflink is a file of its own that shares its blocks with another (XFS, btrfs): no byte moves, nothing is shared but
space. Which means was used is told, because only the last one costs time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from .plan import Adopted

REFUSED = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
LINK, REFLINK, COPY = "hard link", "reflink", "copy"
COPY_BYTES = 4 << 20
FICLONE = 0x40049409  # linux/fs.h


def adopt(shards: Sequence[Adopted], folder: Path) -> dict[str, int]:
    """Put every adopted shard into `folder`; how many by which means. Raises OSError if a copy fails too."""
    found = {LINK: 0, REFLINK: 0, COPY: 0}
    for shard in shards:
        found[_adopt(shard.fragment.path.resolve(), folder / shard.name)] += 1
    return {how: count for how, count in found.items() if count}


def _adopt(source: Path, target: Path) -> str:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        return _clone_or_copy(source, target)
    return LINK


def _clone_or_copy(source: Path, target: Path) -> str:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as new, open(source, "rb") as old:
            how = REFLINK if _cloned(new.fileno(), old.fileno()) else COPY
            if how == COPY:
                shutil.copyfileobj(old, new, COPY_BYTES)
                new.flush()
            os.fsync(new.fileno())
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return how


def _cloned(new: int, old: int) -> bool:
    try:
        fcntl.ioctl(new, FICLONE, old)
    except OSError as error:
        if error.errno not in REFUSED | {errno.ENOTTY}:
            raise
        return False
    return True
