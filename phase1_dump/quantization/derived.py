"""What a part is read from: a live tensor, or one that is computed from it piece by piece on demand.

A derived tensor is never whole in memory unless somebody asks for the whole of it. Formats are not known here.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock, local
from typing import Any, Protocol

import torch

CHUNK_ELEMENTS = 1 << 20  # of the live weight: what is packed at once stays in a core's cache

SCALES_KEPT = 512  # some for each of several streams

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

    `compute(rows, columns)` gives the elements that these rows and columns of the weight become. It is called for whole
    blocks only, `CHUNK_ELEMENTS` of the weight at a time.
    """

    shape: tuple[int, int]  # of the weight
    divisors: tuple[int, int]
    block_rows: int
    dtype: torch.dtype
    device: torch.device
    compute: Callable[[slice, slice], torch.Tensor]
    by_any_thread: bool = False  # whether several chunks may be computed at once

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def detach(self) -> Derived:
        return self

    def __getitem__(self, box: Box) -> torch.Tensor:
        """Return the elements of a box of slices with start and stop."""
        rows, columns = (
            slice(one.start * by, min(one.stop * by, size))
            for one, by, size in zip(box, self.divisors, self.shape, strict=True)
        )
        low = rows.start // self.block_rows * self.block_rows
        high = min(-(-rows.stop // self.block_rows) * self.block_rows, self.shape[0])
        chunks = [self.compute(slice(a, b), columns) for a, b in self._chunks(low, high, columns)]
        whole = chunks[0] if len(chunks) == 1 else torch.cat(chunks)
        first = (rows.start - low) // self.divisors[0]
        return whole[first : first + box[0].stop - box[0].start]

    def rows_at_once(self, num_columns: int) -> int:
        """Return how many rows of so many columns are computed in one go."""
        return max(1, self._step(num_columns * self.divisors[1]) // self.divisors[0])

    def _chunks(self, low: int, high: int, columns: slice) -> list[tuple[int, int]]:
        step = self._step(columns.stop - columns.start)
        return [(at, min(at + step, high)) for at in range(low, high, step)]

    def _step(self, width: int) -> int:
        """Return the number of rows of the weight in a chunk: whole blocks."""
        return max(1, CHUNK_ELEMENTS // max(1, width) // self.block_rows) * self.block_rows


@dataclass(slots=True, eq=False)
class Scales:
    """Shares block scales, which are needed twice: to pack a weight, and as a tensor of their own.

    The first caller computes them, the second gets the same. Few are stored: scales are written next to their weight.
    """

    lock: Lock = field(default_factory=Lock)
    found: dict[tuple[int, int, int], Future[torch.Tensor]] = field(default_factory=dict)

    def get(self, owner: object, rows: slice, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the scales of some rows of a weight.

        Args:
            owner: whose rows these are, the same object in both calls.
            rows: rows of the weight, with start and stop.
            compute: makes the scales if nobody has yet.

        Returns:
            What `compute` returned, here or in the other call. Raises what it raised.
        """
        key = (id(owner), rows.start, rows.stop)
        with self.lock:
            known = self.found.pop(key, None)
            if known is None:
                own = self.found[key] = Future[torch.Tensor]()
                while len(self.found) > SCALES_KEPT:
                    del self.found[next(iter(self.found))]
        if known is not None:
            return known.result()
        try:
            own.set_result(compute())
        except BaseException as error:
            own.set_exception(error)
            raise
        return own.result()


class Cache(local):
    """Stores for each thread the last tensor that was computed whole: parts of one are written close together."""

    owner: object = None
    value: torch.Tensor | None = None

    def get(self, owner: object, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the tensor of `owner`, computed unless it was the last one."""
        if self.owner is not owner or self.value is None:
            self.value = None  # first: two of them would not fit the bound
            self.value, self.owner = compute(), owner
        return self.value
