"""Writes one shard from the rectangles of its tensors, in a process that knows neither ledger nor Arrow.

The output is written once, in ascending order. A tensor passes in bands: as many of its leading rows as fit the
staging buffer. What a rectangle has in a band is one run of bytes in its fragment, so it is read with one preadv
and placed by numpy; a rectangle that spans whole rows is read straight to its place, and where the file system can
share blocks it is not even written: the shard shares those of the fragment. Bytes are never interpreted.
"""

from __future__ import annotations

import itertools
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
import xxhash

from shardmerge.common import durable, regular_files, safetensors_header
from shardmerge.common.dtypes import BITS
from shardmerge.common.errors import BadInputError, CorruptFileError
from shardmerge.common.rectangle import Shape, place

from ..disk.hashing import wrong_bytes
from ..disk.uncached import Bytes
from ..output.receipts import Receipt
from .bands import BandedFile, writing
from .task import ShardTask, SourcePiece, TensorTask

STAGING_BYTES = 48 << 20
OPEN_FILES = 64


def assemble(task: ShardTask, folder: Path, staging_bytes: int = STAGING_BYTES) -> tuple[Receipt, int]:
    """Write `folder/<shard>`: under a temporary name, made durable, renamed.

    Args:
        task: The shard, and where the bytes of its tensors are.
        folder: Where the shard gets its name.
        staging_bytes: Memory for data on its way, in bytes: two bands of the shard and one piece.

    Returns:
        The shard's receipt, which is not written yet; and how many bytes of the shard share blocks with fragments.

    Raises:
        BadInputError: A piece is cut inside a byte.
        CorruptFileError: A piece is short, or does not have its checksum.
        OSError: Reading or writing fails.
    """
    head, header = safetensors_header.build((t.name, t.dtype, t.shape) for t in task.tensors)
    third = max(1, staging_bytes // 3)
    with (
        durable.appearing(folder / task.name) as temporary,
        open(temporary, "wb", buffering=0) as file,
        SourceFiles() as sources,
        writing(file.fileno(), head, third) as shard,
    ):
        assembler = Assembler(shard, sources, np.empty(third, np.uint8), task.check)
        checksums = {tensor.name: assembler.move(tensor) for tensor in task.tensors}
    digests = {name: checksum.hexdigest() for name, checksum in checksums.items()}
    receipt = Receipt(
        shard=task.name,
        plan_digest=task.plan_digest,
        checked=task.check,
        num_bytes=header.file_bytes,
        header_xxh3_128=xxhash.xxh3_128_hexdigest(head),
        tensors=digests,
    )
    return receipt, shard.end.cloned_bytes


@dataclass(slots=True)
class SourceFiles:
    """The open files that pieces are read from: at most OPEN_FILES, the least recently used is closed first."""

    files: OrderedDict[str, int] = field(default_factory=OrderedDict)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            for file in self.files.values():
                stack.callback(os.close, file)
        self.files.clear()

    def read(self, piece: SourcePiece, skip_bytes: int, into: memoryview) -> int:
        """Read bytes of a piece.

        Args:
            piece: Says where they are.
            skip_bytes: How many bytes of the piece come before them.
            into: Memory that is filled whole.

        Returns:
            The open file, which the next read may close.

        Raises:
            CorruptFileError: The file ends before.
            OSError: Reading fails.
        """
        file = self._file(piece.path)
        position = piece.begin + skip_bytes
        while into:
            with durable.naming(Path(piece.path)):
                count = os.preadv(file, [into], position)
            if not count:
                raise CorruptFileError(piece.path, f"it ends at byte {position:,}", piece.rank)
            into, position = into[count:], position + count
        return file

    def _file(self, path: str) -> int:
        if path not in self.files:
            if len(self.files) >= OPEN_FILES:
                os.close(self.files.popitem(last=False)[1])
            self.files[path] = regular_files.reopen(Path(path))
        self.files.move_to_end(path)
        return self.files[path]


@dataclass(slots=True)
class PieceProgress:
    """A piece and how much of it has been read. In `offset` and `shape` the last dimension counts bytes."""

    piece: SourcePiece
    offset: Shape
    shape: Shape
    done_bytes: int = 0
    checksum: Any = field(default_factory=xxhash.xxh3_128)


@dataclass(slots=True, eq=False)
class Assembler:
    """Moves tensors from `sources` to the end of `shard`.

    A band of the shard is filled as it will be written. What does not fall into a band in one run of bytes passes
    through `buffer` first. `check`: compare every piece with its checksum.
    """

    shard: BandedFile
    sources: SourceFiles
    buffer: Bytes
    check: bool

    def move(self, tensor: TensorTask) -> Any:
        """Append a tensor. Returns its running checksum, which is complete when the shard is."""
        shape = _in_bytes(tensor, tensor.shape, 1)
        pieces = [_begun(tensor, piece) for piece in tensor.pieces if prod(piece.shape)]
        checksum = xxhash.xxh3_128()
        for offset, size in bands(shape, self.shard.band_bytes):
            band = self.shard.room(prod(size)).reshape(size)
            for progress in pieces:
                self._place(progress, offset, band)
            self.shard.add(band.reshape(-1).data, checksum)
        if self.check:
            _compare(tensor, pieces)
        return checksum

    def _place(self, progress: PieceProgress, offset: Shape, band: Bytes) -> None:
        """Put what a piece has in the band at `offset` where it belongs there.

        Bands ascend, so a piece is read front to back.
        """
        begin = tuple(max(a, b) for a, b in zip(offset, progress.offset, strict=True))
        spans = zip(offset, band.shape, progress.offset, progress.shape, strict=True)
        size = tuple(min(a + n, b + m) - at for at, (a, n, b, m) in zip(begin, spans, strict=True))
        if min(size) <= 0:
            return
        target = band[tuple(slice(at - a, at - a + n) for at, a, n in zip(begin, offset, size, strict=True))]
        straight = target.flags.c_contiguous
        staged = target if straight else self.buffer[: prod(size)].reshape(size)
        data = staged.reshape(-1).data
        file = self.sources.read(progress.piece, progress.done_bytes, data)
        if straight:
            self.shard.reflink_from(file, progress.piece.begin + progress.done_bytes, target)
        progress.done_bytes += len(data)
        if self.check:
            progress.checksum.update(data)
        if not straight:
            target[...] = staged


def bands(shape: Shape, max_bytes: int) -> Iterator[tuple[Shape, Shape]]:
    """Cut a tensor's bytes into runs of at most `max_bytes`. Yields (offset, shape) of each, ascending.

    A band is a range of one dimension, entire in later ones, one index in earlier ones. Together they are all of it.
    """
    if not prod(shape):
        return
    dim = next(d for d in range(len(shape)) if prod(shape[d + 1 :]) <= max_bytes)
    step = max_bytes // prod(shape[dim + 1 :])
    inner = shape[dim + 1 :]
    for outer in itertools.product(*map(range, shape[:dim])):
        for at in range(0, shape[dim], step):
            size = min(step, shape[dim] - at)
            yield (*outer, at, *(0 for _ in inner)), (*(1 for _ in outer), size, *inner)


def _begun(tensor: TensorTask, piece: SourcePiece) -> PieceProgress:
    """Return a piece of which nothing has been read."""
    return PieceProgress(piece, _in_bytes(tensor, piece.offset, 0), _in_bytes(tensor, piece.shape, 1))


def _in_bytes(tensor: TensorTask, sizes: Shape, scalar: int) -> Shape:
    """Count the last dimension in bytes; a scalar gets one dimension. Raises BadInputError for a cut inside a byte."""
    *outer, last = sizes or (scalar,)
    bits = last * BITS[tensor.dtype]
    if bits % 8:
        raise BadInputError(
            f"{tensor.name}: {tensor.dtype} {list(sizes)} lies inside a byte", "Cut at whole bytes."
        )
    return (*outer, bits // 8)


def _compare(tensor: TensorTask, pieces: list[PieceProgress]) -> None:
    """Raise CorruptFileError for the first piece that does not have its checksum."""
    for progress in pieces:
        piece, got = progress.piece, progress.checksum.hexdigest()
        if got != piece.xxh3_128:
            what = f"{tensor.name} {place(piece.offset, piece.shape)}"
            raise CorruptFileError(piece.path, wrong_bytes(what, got, piece.xxh3_128), piece.rank)
