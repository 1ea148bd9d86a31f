"""Whether files can be written to a folder, also to one that is not there yet, and how much fits; refuses the rest.

Looks, and writes nothing: what a file system refuses all the same is an error of whoever writes.
"""

from __future__ import annotations

import os
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
