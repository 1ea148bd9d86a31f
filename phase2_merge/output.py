"""The file that a shard becomes, written once in ascending order: a thread hashes and writes what was gathered before.

Two bands of memory take turns. Small tensors share a band, so that a thousand scales are one write. The kernel is told
to start writing back early: the fsync at the end then waits for little.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardmerge.common import durable

Bytes = NDArray[np.uint8]


@dataclass(slots=True, eq=False)
class Band:
    """Memory that is filled from its front. `parts`: whose checksum each run of its bytes belongs to."""

    data: Bytes
    used: int = 0
    parts: list[tuple[Any, memoryview]] = field(default_factory=list)
    written: Future[None] | None = None

    def wait(self) -> None:
        """Until it has been written and is empty again. Raises what the thread raised."""
        if self.written is not None:
            self.written.result()
        self.used, self.parts, self.written = 0, [], None


@dataclass(slots=True, eq=False)
class Output:
    """The end of a file and the two bands on their way to it."""

    end: durable.Appending
    thread: ThreadPoolExecutor
    bands: tuple[Band, Band]
    turn: int = 0

    @property
    def band_bytes(self) -> int:
        return len(self.bands[0].data)

    def room(self, num_bytes: int) -> Bytes:
        """Memory for the next bytes of the file, at most `band_bytes`. Whoever asks fills it before asking again."""
        if self.bands[self.turn].used + num_bytes > self.band_bytes:
            self.flush()
        band = self.bands[self.turn]
        band.used += num_bytes
        return band.data[band.used - num_bytes : band.used]

    def add(self, data: memoryview, checksum: Any) -> None:
        """Bytes that were just filled, and the checksum that they go into."""
        self.bands[self.turn].parts.append((checksum, data))

    def flush(self) -> None:
        """Hand what is filled to the thread; go on in the other band, once that was written."""
        band = self.bands[self.turn]
        band.written = self.thread.submit(self._write, band)
        self.turn = 1 - self.turn
        self.bands[self.turn].wait()

    def drain(self) -> None:
        """Until every byte was handed to the file and every checksum is complete. Raises OSError."""
        self.flush()
        self.flush()

    def _write(self, band: Band) -> None:
        for checksum, data in band.parts:
            checksum.update(data)
        self.end.write(band.data[: band.used].data)


@contextmanager
def writing(file: int, head: bytes, band_bytes: int) -> Iterator[Output]:
    """An output that begins with `head`; everything is durable when the block ends."""
    end = durable.Appending(file)
    end.write(memoryview(head))
    bands = (Band(np.empty(band_bytes, np.uint8)), Band(np.empty(band_bytes, np.uint8)))
    with ThreadPoolExecutor(1) as thread:
        output = Output(end, thread, bands)
        yield output
        output.drain()
    os.fsync(file)
