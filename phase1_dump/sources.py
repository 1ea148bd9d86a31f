"""What a part is read from: a live tensor, or one that is computed from it piece by piece when it is asked for.

Nothing derived is ever whole in memory unless somebody asks for the whole of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from shardmerge.common.quantization import Format

CHUNK_ELEMENTS = 1 << 21  # of the live weight: bounds what packing needs beside it

Box = tuple[slice, ...]


class Readable(Protocol):
    """A torch.Tensor, or something that answers like one when a box of it is read."""

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def is_cuda(self) -> bool: ...
    @property
    def shape(self) -> Any: ...
    def detach(self) -> Any: ...


@dataclass(frozen=True, slots=True, eq=False)
class Derived:
    """A tensor [N / divisors[0], K / divisors[1]] of a live weight [N, K].

    `compute(rows, columns)` gives the elements that these rows and columns of the weight become; it is asked for whole
    blocks only, a few million elements of the weight at a time.
    """

    shape: tuple[int, int]  # of the weight
    divisors: tuple[int, int]
    block_rows: int
    dtype: torch.dtype
    device: torch.device
    compute: Callable[[slice, slice], torch.Tensor]

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def detach(self) -> Derived:
        return self

    def __getitem__(self, box: Box) -> torch.Tensor:
        """The elements of a box of slices with start and stop."""
        rows, columns = (
            slice(one.start * by, min(one.stop * by, size))
            for one, by, size in zip(box, self.divisors, self.shape, strict=True)
        )
        low = rows.start // self.block_rows * self.block_rows
        high = min(-(-rows.stop // self.block_rows) * self.block_rows, self.shape[0])
        found = [self.compute(slice(a, b), columns) for a, b in self._chunks(low, high, columns)]
        whole = found[0] if len(found) == 1 else torch.cat(found)
        first = (rows.start - low) // self.divisors[0]
        return whole[first : first + box[0].stop - box[0].start]

    def _chunks(self, low: int, high: int, columns: slice) -> list[tuple[int, int]]:
        width = max(1, columns.stop - columns.start)
        step = max(1, CHUNK_ELEMENTS // width // self.block_rows) * self.block_rows
        return [(at, min(at + step, high)) for at in range(low, high, step)]


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """The packed form of a live weight: tensors of its whole local box by suffix, and scalars by suffix."""

    row: Format
    parts: Mapping[str, Readable]
    scalars: Mapping[str, float]


@dataclass(slots=True, eq=False)
class Scales:
    """Block scales of the weight that was packed last: they are written next, and need not be computed twice."""

    owner: object = None
    found: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    def keep(self, owner: object, rows: slice, scale: torch.Tensor) -> None:
        """Remember scales of some rows; those of another weight go."""
        if self.owner is not owner:
            self.owner, self.found = owner, {}
        self.found[rows.start, rows.stop] = scale

    def take(self, owner: object, rows: slice) -> torch.Tensor | None:
        """The scales of these rows, which are then forgotten, or None."""
        return self.found.pop((rows.start, rows.stop), None) if self.owner is owner else None


@dataclass(slots=True, eq=False)
class Cache:
    """The last tensor that was computed whole: parts of one parameter are written close to each other."""

    owner: object = None
    value: torch.Tensor | None = field(default=None)

    def get(self, owner: object, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        if self.owner is not owner or self.value is None:
            self.value = None  # first: two of them would not fit the bound
            self.value, self.owner = compute(), owner
        return self.value
