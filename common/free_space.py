"""How much may still be written to a folder, also to one that is not there yet; refuses what surely does not fit."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import NoRoomError


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


def require(folder: Path, num_bytes: int) -> None:
    """Raise NoRoomError if less is free where a folder lies, or will lie, than will be written. Raises OSError too."""
    there = nearest(folder)
    free = free_bytes(there)
    if num_bytes > free:
        raise NoRoomError(str(there), num_bytes, free)
