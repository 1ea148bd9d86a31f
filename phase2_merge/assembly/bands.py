"""The file that a shard becomes, written once in ascending order, by a thread that also hashes.

Two bands of memory take turns: one is filled while the thread works on the other. Small tensors share a band, so that a
thousand scales are one write. Whole pages are written, and what a band has beyond them begins the next one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from shardmerge.common.durable import PAGE

from ..disk.uncached import Bytes, Growing, aligned

CLONE_BYTES = 1 << 20  # of one run: less is written sooner than cloned, and would leave a file of many pieces


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes `begin` to `end` of a band that an open file holds as well, from its byte `at`."""

    begin: int
    end: int
    file: int
    at: int


@dataclass(slots=True, eq=False)
class Band:
    """Memory that is filled from its front.

    `parts` are runs of its bytes with the checksum that each goes into; `runs` are bytes that other files hold as well.
    """

    data: Bytes
    used: int = 0
    parts: list[tuple[Any, memoryview]] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    written: Future[None] | None = None

    def wait(self) -> None:
        """Return when the band was written and is empty again. Raises what the thread raised."""
        if self.written is not None:
            self.written.result()
        self.close()
        self.used, self.parts, self.written = 0, [], None

    def close(self) -> None:
        """Close the files that its runs are in."""
        while self.runs:
            os.close(self.runs.pop().file)


@dataclass(slots=True, eq=False)
class BandedFile:
    """A file that grows at its end, and the two bands of memory on their way to it."""

    end: Growing
    thread: ThreadPoolExecutor
    bands: tuple[Band, Band]
    turn: int = 0

    @property
    def band_bytes(self) -> int:
        """How many bytes fit into a band behind what the other one left over."""
        return len(self.bands[0].data) - PAGE

    def room(self, num_bytes: int) -> Bytes:
        """Return memory for the next bytes of the file, at most `band_bytes`. It is filled before the next call."""
        if self.bands[self.turn].used + num_bytes > len(self.bands[self.turn].data):
            self.flush()
        band = self.bands[self.turn]
        band.used += num_bytes
        return band.data[band.used - num_bytes : band.used]

    def add(self, data: memoryview, checksum: Any) -> None:
        """Append bytes that were filled into what `room` returned. `checksum` is updated with them."""
        self.bands[self.turn].parts.append((checksum, data))

    def reflink_from(self, file: int, at: int, data: Bytes) -> None:
        """Declare that these bytes also exist in an open file at offset `at`, so they can be reflinked, not written.

        Args:
            file: Open for reading. It may be closed at once.
            at: Where in it the bytes begin.
            data: Part of what `room` gave, filled with the same bytes: they are written where blocks cannot be shared.
        """
        if not self.end.clones or data.nbytes < CLONE_BYTES:
            return
        band = self.bands[self.turn]
        begin = data.ctypes.data - band.data.ctypes.data
        if begin % PAGE == at % PAGE == 0:
            band.runs.append(Run(begin, begin + data.nbytes, os.dup(file), at))

    def flush(self) -> None:
        """Hand what is filled to the thread, and go on in the other band once that was written."""
        band, other = self.bands[self.turn], self.bands[1 - self.turn]
        pages = band.used // PAGE * PAGE
        band.written = self.thread.submit(self._write, band, pages)
        other.wait()
        other.used = band.used - pages
        other.data[: other.used] = band.data[pages : band.used]
        self.turn = 1 - self.turn

    def drain(self) -> None:
        """Return when every byte was handed to the file and every checksum is complete. Raises OSError."""
        self.flush()
        self.bands[1 - self.turn].wait()
        last = self.bands[self.turn]
        self.end.write(last.data[: last.used].data)

    def _write(self, band: Band, pages: int) -> None:
        """Hash all that was added, and write or reflink the first `pages` bytes. Runs in the thread."""
        for checksum, data in band.parts:
            checksum.update(data)
        done = 0
        for run in band.runs:
            end = min(run.end, pages) // PAGE * PAGE
            self.end.write(band.data[done : run.begin].data)
            done = end if self.end.clone(run.file, run.at, end - run.begin) else run.begin
        self.end.write(band.data[done:pages].data)


@contextmanager
def writing(file: int, head: bytes, band_bytes: int) -> Iterator[BandedFile]:
    """Write a shard: `head`, which is whole pages, then what the block adds. All of it is durable when the block ends.

    Args:
        file: Open for writing, and empty.
        head: The safetensors header, padded.
        band_bytes: Memory of each of the two bands.

    Raises:
        OSError: Writing or fsync fails.
    """
    end = Growing(file)
    end.write(memoryview(head))
    size = band_bytes + PAGE
    bands = Band(aligned(size)), Band(aligned(size))
    try:
        with ThreadPoolExecutor(1) as thread:
            shard = BandedFile(end, thread, bands)
            yield shard
            shard.drain()
    finally:
        for band in bands:
            band.close()
    os.fsync(file)
