"""On which mount a folder lies, how much is free there, and whether files of another folder can be linked into it.

Only looks: nothing is written to find out. Source: link(2).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from shardmerge.common import file_systems

# file systems on which no two files share blocks, by their names in mountinfo; others may be able to
NEVER_SHARE = {
    "beegfs", "ceph", "exfat", "ext2", "ext3", "ext4", "fuse.gcsfuse", "gpfs", "lustre", "nfs", "squashfs",
    "tmpfs", "vfat",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mount:
    """Where a folder lies.

    Attributes:
        folder: The folder, or the nearest above it that exists.
        device: The number of its file system.
        mount: The number of its mount, of which one file system may have several. None where the kernel does not tell.
        kind: What mountinfo calls its file system, as `ext4`. Empty where the kernel does not tell.
        free_bytes: What this user may still write there.
    """

    folder: Path
    device: int
    mount: int | None
    kind: str
    free_bytes: int

    def why_not_linked(self, source: Mount) -> str:
        """Return why no file of `source` can have a name here too, empty if nothing is known against it."""
        if self.device != source.device:
            return f"{source.folder} and {self.folder} are different file systems"
        if self.mount != source.mount:
            return f"{source.folder} and {self.folder} are different mounts of one file system"
        return ""

    def may_share_blocks(self, source: Mount) -> bool:
        """Whether a file here may share blocks with one of `source`, and so need less room than its size."""
        return self.device == source.device and self.kind not in NEVER_SHARE


def mount_of(folder: Path) -> Mount:
    """Return where a folder lies, or will lie once it is made. Raises OSError."""
    there = file_systems.nearest(folder)
    opened = os.open(there, os.O_RDONLY | os.O_DIRECTORY)
    try:
        number = file_systems.mount_number(opened)
        return Mount(
            folder=there,
            device=os.fstat(opened).st_dev,
            mount=number,
            kind=file_systems.kind_of(number),
            free_bytes=file_systems.free_bytes(opened),
        )
    finally:
        os.close(opened)
