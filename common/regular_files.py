"""Opens files of a folder that somebody else may have filled: regular files of a plausible size, inside that folder.

A FIFO would wait for ever, a device answers without end, and a symbolic link may lead anywhere. A link is followed only
if it stays inside the folder that was given, or leads from a snapshot of the Hugging Face cache to its blobs. Must not
know what a file holds.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from . import durable
from .errors import CorruptFileError

POINTER = b"version https://git-lfs.github.com/spec/"  # how a file begins that stands for one in Git LFS
SNAPSHOTS, BLOBS = "snapshots", "blobs"  # CACHE/models--NAME/snapshots/COMMIT/FILE -> ../../blobs/SHA
MORE_BYTES = 1 << 20  # read at once of a file that grows meanwhile, or of more than the kernel reads at once
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# what to do, for messages
PUT_BACK = "Put the file there that belongs there."
REPLACE_LINK = "Put the file itself in place of the link."
PULL = "Run `git lfs pull` in its folder, or download it again with `hf download`."


def open_for_reading(path: Path, root: Path) -> int:
    """Open a regular file of the folder `root`.

    Args:
        path: The file, below `root`.
        root: The folder that was given: a dump, a reference, an output.

    Returns:
        An open file, which the caller closes.

    Raises:
        CorruptFileError: It is not a regular file, or is reached by a link that leads out of `root`.
        FileNotFoundError: There is none. OSError: It cannot be opened.
    """
    real = located(path, root)
    _refuse_special(os.lstat(real).st_mode, path)
    return _opened(real, path, os.O_NOFOLLOW)


def reopen(path: Path) -> int:
    """Open a file whose place was looked at before, as `open_for_reading` does. Returns an open file.

    Raises CorruptFileError if it is not a regular file any more, OSError.
    """
    _refuse_special(os.stat(path).st_mode, path)
    return _opened(path, path)


def read(path: Path, root: Path, max_bytes: int) -> bytes:
    """Return what a regular file of the folder `root` holds.

    Args:
        path: The file, below `root`.
        root: The folder that was given.
        max_bytes: The largest size that is plausible.

    Returns:
        All of its bytes.

    Raises:
        CorruptFileError: It is larger, not a regular file, or reached by a link that leads out of `root`.
        FileNotFoundError: There is none. OSError: It cannot be read.
    """
    with durable.naming(path), open(open_for_reading(path, root), "rb", buffering=0) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        data = b"" if num_bytes > max_bytes else file.read(num_bytes + 1)  # Python allocates what it asks for
        while data and len(data) <= max_bytes and (more := file.read(MORE_BYTES)):
            data += more
    if max(num_bytes, len(data)) > max_bytes:
        raise CorruptFileError(
            str(path), f"it has {max(num_bytes, len(data)):,} bytes, and at most {max_bytes:,} are plausible"
        )
    refuse_pointer(data, path)
    return data


def refuse_pointer(begin: bytes, path: Path) -> None:
    """Raise CorruptFileError for a file that begins as a pointer of Git LFS does, which is what it lacks instead of.

    Source: git-lfs, docs/spec.md.
    """
    if begin.startswith(POINTER):
        raise CorruptFileError(
            str(path), "it is a pointer of Git LFS, not the file that it stands for", do=PULL
        )


def read_at(file: int, count: int, offset: int) -> bytes:
    """Return bytes of an open file, fewer only where it ends. The kernel may return less than it is asked for.

    Args:
        file: Open for reading.
        count: How many bytes.
        offset: Where they begin.

    Returns:
        The bytes.

    Raises:
        OSError: Reading fails.
    """
    data = os.pread(file, count, offset)
    while len(data) < count and (more := os.pread(file, count - len(data), offset + len(data))):
        data += more
    return data


def exists(path: Path, root: Path) -> bool:
    """Whether `open_for_reading` would find a regular file. Raises CorruptFileError for anything else that is there."""
    try:
        _refuse_special(os.lstat(located(path, root)).st_mode, path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def located(path: Path, root: Path) -> Path:
    """Return where a file lies, links followed.

    Args:
        path: Below `root`, which may itself be a link.
        root: The folder that was given.

    Returns:
        A path whose last part is not a link. `path` itself if no part of it below `root` is one.

    Raises:
        CorruptFileError: A link leads out of `root`, and not to the blobs of its cache.
        FileNotFoundError: A link leads nowhere.
    """
    if not _has_link(path, root):
        return path
    real = Path(os.path.realpath(path, strict=True))
    base = Path(os.path.realpath(root))
    allowed = [base, base.parents[1] / BLOBS] if base.parent.name == SNAPSHOTS else [base]
    if not any(real.is_relative_to(folder) for folder in allowed):
        raise CorruptFileError(
            str(path),
            f"it is reached by a symbolic link that leads out of {root}, to {real}",
            do=REPLACE_LINK,
        )
    return real


def _has_link(path: Path, root: Path) -> bool:
    """Whether a part of `path` below `root` is a symbolic link. Texts, since there may be ten thousand files."""
    text, end = str(path), 0 if root == Path() else len(str(root))
    while len(text) > end:
        if os.path.islink(text):
            return True
        text = os.path.dirname(text)
    return False


def _opened(real: Path, path: Path, flags: int = 0) -> int:
    """Open `real`, which was found for `path`. Nothing waits, and nothing becomes the terminal of this process."""
    file = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | flags)
    try:
        _refuse_special(os.fstat(file).st_mode, path)  # it may have been replaced in between
    except BaseException:
        os.close(file)
        raise
    return file


def _refuse_special(mode: int, path: Path) -> None:
    """Raise CorruptFileError for anything but a regular file."""
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "something strange")
        raise CorruptFileError(str(path), f"it is {kind}, not a regular file", do=PUT_BACK)
