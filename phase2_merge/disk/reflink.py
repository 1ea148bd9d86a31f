"""Files that share blocks with others, on file systems that can do so (XFS, btrfs): no byte moves.

Source: ioctl_ficlonerange(2); the numbers are those of linux/fs.h.
"""

from __future__ import annotations

import errno
import fcntl
import struct

FICLONE = 0x40049409
FICLONERANGE = 0x4020940D
# EAGAIN: ZFS, while what is to be shared is not on the disk yet (OpenZFS, zfs_bclone_wait_dirty)
CANNOT_CLONE = {
    errno.EXDEV, errno.EPERM, errno.EACCES, errno.EAGAIN, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY,
}  # fmt: skip


def clone(new: int, old: int) -> bool:
    """Make an open file share all of another's blocks. Returns False where that cannot be. Raises OSError."""
    return _is_cloned(new, FICLONE, old)


def clone_range(new: int, to: int, old: int, at: int, num_bytes: int) -> bool:
    """Let an open file share a range of another's blocks.

    Args:
        new: Open for writing.
        to: Where in it the range goes, in bytes, at the begin of a block.
        old: Open for reading.
        at: Where in it the range begins, in bytes, at the begin of a block.
        num_bytes: Whole blocks, or up to the end of `old`.

    Returns:
        False, and nothing changed, where blocks cannot be shared.

    Raises:
        OSError: Anything else.
    """
    return _is_cloned(new, FICLONERANGE, struct.pack("=qQQQ", old, at, num_bytes, to))


def _is_cloned(new: int, request: int, argument: int | bytes) -> bool:
    """Ask the kernel to share blocks. Returns False where they cannot be shared. Raises OSError for anything else."""
    try:
        fcntl.ioctl(new, request, argument)
    except OSError as error:
        if error.errno not in CANNOT_CLONE:
            raise
        return False
    return True
