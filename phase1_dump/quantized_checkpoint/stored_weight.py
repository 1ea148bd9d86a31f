"""A weight on disk that answers like a matrix of torch when boxes of it are read: what modelopt's functions pack."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

import torch

from ..checkpoint.chunk_files import ChunkFiles, StoredPart
from ..quantization.element_types import TORCH

SIGNED = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers of the size of a number
ROWS_BYTES = 8 << 20


@dataclass(frozen=True, slots=True, eq=False)
class StoredWeight:
    """A parameter of a checkpoint as `quantization.derived.Readable`. Threads take turns at the files."""

    part: StoredPart
    files: ChunkFiles
    lock: Lock

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return TORCH[self.files.dtype(self.part)]

    @property
    def is_cuda(self) -> bool:
        return False

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.part.shape)

    def detach(self) -> StoredWeight:
        return self

    def __getitem__(self, box: slice | tuple[slice, ...]) -> torch.Tensor:
        """Return the elements of a box. Dimensions that it does not mention are whole."""
        slices = box if isinstance(box, tuple) else (box,)
        ranges = [
            range(*(slices[dim] if dim < len(slices) else slice(None)).indices(size))
            for dim, size in enumerate(self.part.shape)
        ]
        extent = tuple(map(len, ranges))
        with self.lock:
            bits = self.files.read(self.part, tuple(one.start for one in ranges), extent)
        signed = torch.from_numpy(bits.view(f"<i{bits.itemsize}").copy())
        return signed.view(self.dtype)

    def largest(self) -> torch.Tensor:
        """Return the largest magnitude of its elements, as float32: what calibration finds as the range of a weight."""
        rows, columns = self.part.shape
        step = max(1, ROWS_BYTES // max(1, columns * self.dtype.itemsize))
        found = [self[at : min(at + step, rows)].abs().max().float() for at in range(0, rows, step)]
        return torch.stack(found).max()
