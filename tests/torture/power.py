"""File systems of our own, in files, whose power can be cut: ext4 and XFS on loop devices.

The cut is what `xfs_io -x -c shutdown` asks of the kernel: from then on nothing reaches the disk, and what has not
reached it is lost. With `-f` the journal of the file system is written first. Mounting again replays the journal.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
import time
from contextlib import suppress
from pathlib import Path

MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
}
IMAGE_BYTES = 320 << 20  # mkfs.xfs makes nothing smaller than 300 MiB
SHUTDOWN = 0x8004587D  # XFS_IOC_GOINGDOWN and EXT4_IOC_SHUTDOWN: _IOR('X', 125, __u32)
FLUSH_JOURNAL, FLUSH_NOTHING = 1, 2
TRIES = 200


class LoopMount:
    """A file system in a file."""

    def __init__(self, kind: str, folder: Path) -> None:
        """Make and mount it below `folder`. Raises OSError, CalledProcessError."""
        self.kind, self.image, self.place = kind, folder / f"{kind}.image", folder / kind
        self.place.mkdir(parents=True)
        with open(self.image, "wb") as file:
            file.truncate(IMAGE_BYTES)
        _run(*MAKE[kind], str(self.image))
        self.mounted = False  # asked of the kernel, a file system without power is not one
        self.restore()

    def settle(self) -> None:
        """Make all that is there durable."""
        folder = os.open(self.place, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(folder):
                raise OSError(ctypes.get_errno(), "syncfs", str(self.place))
        finally:
            os.close(folder)

    def cut(self, *, flushed: bool) -> None:
        """Cut the power; if `flushed`, after the journal of the file system was written."""
        folder = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, SHUTDOWN, struct.pack("=I", FLUSH_JOURNAL if flushed else FLUSH_NOTHING))
        finally:
            os.close(folder)

    def restore(self) -> None:
        """Mount the file system again, or for the first time."""
        if self.mounted:
            _unmount(self.place)
        _run("mount", "-o", "loop", str(self.image), str(self.place))
        self.mounted = True

    def remove(self) -> None:
        """Unmount it, and forget what was on it."""
        if self.mounted:
            _unmount(self.place)
        with suppress(FileNotFoundError):
            self.image.unlink()


def why_not(kind: str) -> str:
    """Why no such file system can be made and mounted here; empty if it can."""
    if os.geteuid():
        return "only root may mount"
    if shutil.which(MAKE[kind][0]) is None:
        return f"{MAKE[kind][0]} was not found"
    return "" if Path("/dev/loop-control").exists() else "there are no loop devices"


def _unmount(place: Path) -> None:
    """Unmount; what was killed may take a moment to let go."""
    for tries_left in reversed(range(TRIES)):
        try:
            return _run("umount", str(place))
        except subprocess.CalledProcessError:
            if not tries_left:
                raise
            time.sleep(0.01)
    return None


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
