"""What a file system says before anything is written: its kind, its room, and whether a folder takes files at all.

Looks, and writes nothing: what a file system refuses all the same is an error of whoever writes. Source:
proc_pid_mountinfo(5), proc_pid_fdinfo(5).
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from .errors import BadInputError, NoRoomError


def nearest(folder: Path) -> Path:
    """Return a folder, or the nearest above it that exists."""
    absolute = folder.absolute()
    return next(place for place in (absolute, *absolute.parents) if place.is_dir())


def free_bytes(folder: int | Path) -> int:
    """Return what this user may still write to the file system of a folder, given by its path or opened.

    Raises OSError.
    """
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize


def require_writable(path: Path, folder: Path) -> None:
    """Refuse a place where nothing can be written, before anything is done for it.

    Args:
        path: What is to appear there, as it was given.
        folder: The folder that takes files for it; it need not be there yet.

    Raises:
        BadInputError: The folder, or the nearest thing above it that exists, surely takes no files of this user.
    """
    absolute = folder.absolute()
    there = next(place for place in (absolute, *absolute.parents) if os.path.lexists(place))
    if not there.is_dir():
        why = "is not a directory"
    elif os.access(there, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        return
    else:
        why = "is read-only, or this user may not write there"
    raise BadInputError(f"{path} cannot be written: {there} {why}", "Give another place.")


def require(folder: Path, num_bytes: int) -> None:
    """Raise NoRoomError if less is free where a folder lies, or will lie, than will be written. Raises OSError too."""
    there = nearest(folder)
    free = free_bytes(there)
    if num_bytes > free:
        raise NoRoomError(str(there), num_bytes, free)


def mount_number(opened: int) -> int | None:
    """Return the number of the mount that an open file is on. None where the kernel does not tell."""
    try:
        lines = Path(f"/proc/self/fdinfo/{opened}").read_text().splitlines()
    except OSError:  # not Linux, or no /proc
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("mnt_id:")), None)


def kind_of(mount: int | None) -> str:
    """Return what mountinfo calls the file system of a mount, as `ext4`. Empty where the kernel does not tell."""
    return "" if mount is None else _kinds().get(mount, "")


@cache
def _kinds() -> dict[int, str]:
    """Return the kind of file system of each mount that this process sees."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    return {int(line.split()[0]): line.partition(" - ")[2].split()[0] for line in lines}
