"""Host memory that a GPU copies to at full speed: mapped by us, registered with CUDA, and given back whole.

Memory that torch pins itself stays with the process for ever. Without a GPU nothing is registered.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(slots=True)
class PinnedMemory:
    """A map, and the tensor of its bytes. `is_registered`: CUDA knows it, until `release`."""

    map: mmap.mmap
    tensor: torch.Tensor
    is_registered: bool = False
    typed: dict[torch.dtype, torch.Tensor] = field(default_factory=dict)

    def elements(self, dtype: torch.dtype, count: int) -> torch.Tensor:
        """Return the first elements of the memory as a tensor of a dtype."""
        if dtype not in self.typed:
            whole = self.num_bytes // dtype.itemsize * dtype.itemsize
            self.typed[dtype] = self.tensor[:whole].view(dtype)
        found = self.typed[dtype]
        return found if found.numel() == count else found[:count]

    @property
    def num_bytes(self) -> int:
        """How many bytes it has."""
        return self.tensor.numel()

    @classmethod
    def allocated(cls, num_bytes: int) -> PinnedMemory:
        """Return new memory of this process alone. Raises RuntimeError if CUDA refuses to register it.

        Private, because kernels as they are configured give huge pages to no shared memory: with small ones mapping,
        registering and giving back take ten times as long. A process that is forked meanwhile does not get it.
        """
        memory = mmap.mmap(-1, max(1, num_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # advice: without huge pages it only takes longer
            memory.madvise(mmap.MADV_HUGEPAGE)
        memory.madvise(mmap.MADV_DONTFORK)
        return cls.of(memory)

    @classmethod
    def of(cls, memory: mmap.mmap) -> PinnedMemory:
        """Return mapped memory, registered if there is a GPU. Raises RuntimeError if CUDA refuses."""
        pinned = cls(memory, torch.frombuffer(memory, dtype=torch.uint8))
        try:
            if torch.cuda.is_available():
                runtime: Any = torch.cuda.cudart()
                torch.cuda.check_error(
                    int(runtime.cudaHostRegister(pinned.tensor.data_ptr(), pinned.num_bytes, 0))
                )
                pinned.is_registered = True
        except BaseException:
            pinned.release()  # or the error would keep a view of the memory
            raise
        return pinned

    def release(self) -> None:
        """Give the memory back: no view of it may be used any more."""
        if self.is_registered:
            runtime: Any = torch.cuda.cudart()
            torch.cuda.check_error(int(runtime.cudaHostUnregister(self.tensor.data_ptr())))
            self.is_registered = False
        self.typed.clear()
        self.tensor = torch.empty(0, dtype=torch.uint8)
