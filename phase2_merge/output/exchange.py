"""How all files of an output change at once: a twin of its folder, made of links, gets the new ones and takes its name.

Whoever looks sees the old folder or the new one. Only where the file system can link, and exchange two names in one
step; elsewhere nothing has changed and the caller goes another way. Must not know what the files are.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from shardmerge.common import durable

RENAME_EXCHANGE, AT_FDCWD = 2, -100  # linux/fs.h, fcntl.h
REFUSED = {
    errno.EACCES, errno.EBUSY, errno.EINVAL, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EROFS,
    errno.EXDEV,
}  # fmt: skip


def replaced(out: Path, files: Mapping[str, bytes], gone: Collection[str]) -> bool:
    """Give `out` these files and remove `gone`, at once. False, and nothing changed, where that is not possible.

    All other files stay what they are, to the inode. Raises OSError.
    """
    out = out.resolve()  # the folder, not a link to it
    forget(out)
    twin = twin_of(out)
    try:
        _link_all(out, twin, {*files, *gone})
        _write_all(twin, files)
        if not _exchanged(twin, out):
            return False
        durable.sync_folder(out.parent)
        return True
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        return False
    finally:
        forget(out)


def twin_of(out: Path) -> Path:
    """Where the twin stands: beside, for names can be exchanged in one file system only."""
    return out.with_name(f".{out.name}.shardmerge-next")


def forget(out: Path) -> None:
    """Remove what is left of a twin: links, or files that were replaced."""
    shutil.rmtree(twin_of(out.resolve()), ignore_errors=True)


def _link_all(folder: Path, twin: Path, but: Collection[str]) -> None:
    """The same tree, every file a link, without the files named."""
    for here, folders, names in os.walk(folder):
        below = Path(here).relative_to(folder)
        (twin / below).mkdir()
        shutil.copystat(here, twin / below)
        links = [name for name in folders if (Path(here) / name).is_symlink()]  # os.walk calls them folders
        for name in names + links:
            if (below / name).as_posix() not in but:
                os.link(Path(here) / name, twin / below / name, follow_symlinks=False)


def _write_all(twin: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        (twin / name).parent.mkdir(parents=True, exist_ok=True)
        durable.write_file(twin / name, data)
    for here, _, _ in os.walk(twin):
        durable.sync_folder(Path(here))


def _exchanged(a: Path, b: Path) -> bool:
    """Exchange two names. Raises OSError; False if the C library has no renameat2."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(b))
    return True
