"""Makes a fragment of entire tensors a shard: by hard link, else by reflink, else by a copy.

A reflink is a file of its own that shares its blocks with another (XFS, btrfs): no byte moves, nothing is shared but
space. How each shard was adopted is reported, because only a copy costs time.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
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
PROTECTED = Path("/proc/sys/fs/protected_hardlinks")


@dataclass(frozen=True, slots=True)
class Adoption:
    """How many shards were adopted by LINK, by REFLINK and by COPY, and how many bytes were copied for it."""

    by: dict[str, int]
    copied_bytes: int


def adopt(shards: Sequence[Adopted], folder: Path, kept: Collection[str] = ()) -> Adoption:
    """Put every adopted shard into `folder`, in place of what lies there under its name. Verifies nothing.

    Args:
        shards: What is adopted.
        folder: OUT.partial, locked by the caller.
        kept: Names of shards that an earlier attempt copied: they stay.

    Returns:
        How it was done.

    Raises:
        OSError: A copy fails too.
    """
    counts: Counter[str] = Counter()
    copied_bytes = 0
    for shard in shards:
        how = COPY if shard.name in kept else _adopt(shard.fragment.path, folder / shard.name)
        counts[how] += 1
        copied_bytes += shard.num_bytes if how == COPY else 0
    return Adoption({how: counts[how] for how in (LINK, REFLINK, COPY) if counts[how]}, copied_bytes)


def copies(shards: Sequence[Adopted], folder: Path) -> frozenset[str]:
    """Return the names of shards of which an earlier attempt left what may be a whole copy, with bytes of its own."""
    return frozenset(shard.name for shard in shards if _may_be_copy(folder / shard.name, shard))


def _may_be_copy(path: Path, shard: Adopted) -> bool:
    """Whether a file of a fragment's size lies there that has no other name."""
    if not path.is_file() or path.is_symlink() or same_file(path, shard.fragment.path):
        return False
    return path.stat().st_nlink == 1 and path.stat().st_size == shard.fragment.file.num_bytes


def is_refused_link(path: Path) -> bool:
    """Whether the kernel will not link a file, because it is of another user.

    Source: proc_sys_fs(5), protected_hardlinks. Without CAP_FOWNER, a link needs the same owner, or the right to read
    and write.
    """
    if not _links_are_protected() or os.geteuid() == 0:
        return False
    return path.stat().st_uid != os.geteuid() and not os.access(path, os.R_OK | os.W_OK)


@cache
def _links_are_protected() -> bool:
    return PROTECTED.is_file() and PROTECTED.read_text().strip() != "0"


def make_readable(paths: Sequence[Path]) -> None:
    """Give shards the mode that new files get, where they are ours: a dump may have been made for one user only."""
    mode = _new_mode()
    for path in paths:
        seen = path.stat()
        if mode is not None and seen.st_uid == os.geteuid() and stat.S_IMODE(seen.st_mode) != mode:
            path.chmod(mode)


def _new_mode() -> int | None:
    """Return the mode of new files, None where the kernel does not tell. Asking with umask(2) would change it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    masks = [int(line.split()[1], 8) for line in lines if line.startswith("Umask:")]
    return 0o666 & ~masks[0] if masks else None


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
    source = source.resolve() if source.is_symlink() else source
    if same_file(source, target):
        return LINK
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in CANNOT_LINK:
            raise
        return _clone_or_copy(source, target)
    return LINK


def same_file(a: Path, b: Path) -> bool:
    """Whether two names are of one file. A link that leads there is not its name."""
    return b.is_file() and not b.is_symlink() and os.path.samefile(a, b)


def _clone_or_copy(source: Path, target: Path) -> str:
    with (
        durable.naming(target),
        durable.appearing(target) as temporary,
        open(temporary, "xb") as new,
        open(source, "rb") as old,
    ):
        how = REFLINK if clone(new.fileno(), old.fileno()) else COPY
        if how == COPY:
            shutil.copyfileobj(old, new, COPY_BYTES)
            new.flush()
        os.fsync(new.fileno())
    return how
