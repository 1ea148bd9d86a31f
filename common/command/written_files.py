"""Writes a file that the user named, such as a report: a regular file as a whole, and into whatever else is there.

A device, a FIFO and what the output is redirected to are written to, never replaced, and a symbolic link is followed.
Must not know what the file holds.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from .. import durable

STREAMS = (1, 2)  # the output and the errors of this process, which /dev/stdout and the like stand for


def write(path: Path, data: bytes) -> None:
    """Write a file that the user named. Raises OSError, which names it, and no temporary file beside it."""
    try:
        _write(path, data)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def _write(path: Path, data: bytes) -> None:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        there = None
    if there is not None and (stream := _stream(there)) is not None:
        sys.stdout.flush()
        durable.write_all(stream, memoryview(data))
    elif there is not None and not stat.S_ISREG(there.st_mode):
        with open(path, "wb", buffering=0) as file:
            durable.write_all(file.fileno(), memoryview(data))
    else:
        durable.write_file(Path(os.path.realpath(path)), data)


def _stream(there: os.stat_result) -> int | None:
    """Return which stream of this process a file is, None for any other file."""
    for stream in STREAMS:
        try:
            if os.path.samestat(there, os.fstat(stream)):
                return stream
        except OSError:  # it is closed
            continue
    return None
