"""A shard that grows past the page cache, by writing or by sharing the blocks of files that hold its bytes already."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardmerge.common.durable import PAGE, Uncached

from .reflink import clone_range

Bytes = NDArray[np.uint8]


def aligned(num_bytes: int) -> Bytes:
    """Return memory that begins on a page."""
    memory = np.empty(num_bytes + PAGE, np.uint8)
    begin = -memory.ctypes.data % PAGE
    return memory[begin : begin + num_bytes]


@dataclass(slots=True)
class Growing(Uncached):
    """An open file that grows at its end, which lies on a page until the last write.

    `clones`: the file system has not refused yet to share blocks; `cloned_bytes` are those that it shared.
    """

    clones: bool = True
    cloned_bytes: int = 0

    def clone(self, file: int, at: int, num_bytes: int) -> bool:
        """Append bytes of another file by sharing its blocks.

        Args:
            file: Open for reading.
            at: Where in it the bytes begin, on a page.
            num_bytes: How many, in whole pages.

        Returns:
            False, and nothing changed, where blocks cannot be shared; it is then not tried again.

        Raises:
            OSError: Anything else.
        """
        self.clones = self.clones and clone_range(self.file, self.written, file, at, num_bytes)
        if self.clones:
            os.lseek(self.file, num_bytes, os.SEEK_CUR)
            self.wrote(num_bytes)
            self.cloned_bytes += num_bytes
        return self.clones
