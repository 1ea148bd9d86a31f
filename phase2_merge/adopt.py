"""Makes a fragment of entire tensors a shard: by hard link, or by a copy where the file system refuses one."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from .plan import Adopted

REFUSED = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
LINK, COPY = "hard link", "copy"


def adopt(shards: Sequence[Adopted], folder: Path) -> dict[str, int]:
    """Put every adopted shard into `folder`; how many by which means. Raises OSError if a copy fails too."""
    found = {LINK: 0, COPY: 0}
    for shard in shards:
        found[_link_or_copy(shard.fragment.path.resolve(), folder / shard.name)] += 1
    return {how: count for how, count in found.items() if count}


def _link_or_copy(source: Path, target: Path) -> str:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        _copy(source, target)
        return COPY
    return LINK


def _copy(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.copyfile(source, temporary)
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    temporary.rename(target)
