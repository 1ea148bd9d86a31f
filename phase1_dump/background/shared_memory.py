"""Memory that a process and its child share: a file without a name, which lies on no disk and in no folder.

It is filled with pages when it is made, so that too little memory is found out then. Must not know CUDA.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from shardmerge.common.errors import HostMemoryError
from shardmerge.common.processes.memory import available_bytes

MADV_POPULATE_WRITE = 23  # of madvise(2), since Linux 5.14
STEP_BYTES = 256 << 20  # filled before the machine is asked again what is left
THREADS = 8  # that fill a step; one alone fills 2 GB a second
RESERVE_BYTES = 512 << 20  # stays available


@dataclass(slots=True)
class SharedMemory:
    """`num_bytes` that every process sees which has the file descriptor."""

    file: int
    num_bytes: int
    map: mmap.mmap

    @classmethod
    def made(cls, num_bytes: int) -> SharedMemory:
        """Return new memory, with all of its pages. Raises HostMemoryError if there are too few, and takes none."""
        _require(num_bytes, num_bytes)
        file = os.memfd_create("shardmerge", os.MFD_CLOEXEC)
        try:
            os.ftruncate(file, num_bytes)
            memory = cls(file, num_bytes, mmap.mmap(file, num_bytes))
        except BaseException:
            os.close(file)
            raise
        try:
            memory._populate()
        except BaseException:
            memory.discard()
            raise
        return memory

    @classmethod
    def received(cls, file: int) -> SharedMemory:
        """Return the memory of a file descriptor that another process sent."""
        num_bytes = os.fstat(file).st_size
        return cls(file, num_bytes, mmap.mmap(file, num_bytes))

    def close(self) -> None:
        """Let go of it. The pages are free when no process maps it any more; here, when nobody uses a view of it."""
        os.close(self.file)

    def discard(self) -> None:
        """Give it back at once, though an error that is kept may know it. There must be no view of it."""
        self.close()
        self.map.close()

    def _populate(self) -> None:
        with ThreadPoolExecutor(THREADS) as threads:
            for begin in range(0, self.num_bytes, STEP_BYTES):
                end = min(begin + STEP_BYTES, self.num_bytes)
                _require(end - begin, self.num_bytes)
                part = -(-(end - begin) // THREADS // mmap.PAGESIZE) * mmap.PAGESIZE
                list(threads.map(lambda at, end=end, part=part: _fill(self.map, at, min(at + part, end)),
                                 range(begin, end, part)))  # fmt: skip


def _fill(memory: mmap.mmap, begin: int, end: int) -> None:
    """Give this part of the map its pages. ctypes lets other threads run meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory, begin))
    if libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(end - begin), MADV_POPULATE_WRITE) == 0:
        return
    if ctypes.get_errno() != errno.EINVAL:
        raise HostMemoryError(len(memory), available_bytes())
    for at in range(begin, end, mmap.PAGESIZE):  # an older kernel
        memory[at] = 0


def _require(num_bytes: int, whole: int) -> None:
    available = available_bytes()
    if num_bytes > available - RESERVE_BYTES:
        raise HostMemoryError(whole, available)
