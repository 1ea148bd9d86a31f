"""Writes one shard from the rectangles of its tensors, in a process that knows neither ledger nor Arrow.

The output is written once, in ascending order. A tensor passes in bands: as many of its leading rows as fit the
staging buffer. What a rectangle has in a band is one run of bytes in its fragment, so it is read with one preadv
and placed by numpy; a rectangle that spans whole rows is read straight to its place, and where the file system can
share blocks it is not even written: the shard shares those of the fragment. Bytes are never interpreted.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
import xxhash

from shardmerge.common import durable, regular_files, safetensors_header
from shardmerge.common.errors import CorruptFileError
from shardmerge.common.rectangle import Shape

from ..disk.uncached import Bytes
from ..output.receipts import Receipt
from .bands import BandedFile, writing
from .pieces import PieceProgress, bands, begun, compare, in_bytes, overlap
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
        durable.naming(folder / task.name),
        durable.appearing(folder / task.name) as temporary,
        open(temporary, "xb", buffering=0) as file,
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
        shape = in_bytes(tensor, tensor.shape, 1)
        pieces = [begun(tensor, piece) for piece in tensor.pieces if prod(piece.shape)]
        checksum = xxhash.xxh3_128()
        for offset, size in bands(shape, self.shard.band_bytes):
            band = self.shard.room(prod(size)).reshape(size)
            for progress in pieces:
                self._place(progress, offset, band)
            self.shard.add(band.reshape(-1).data, checksum)
        if self.check:
            compare(tensor, pieces)
        return checksum

    def _place(self, progress: PieceProgress, offset: Shape, band: Bytes) -> None:
        """Put what a piece has in the band at `offset` where it belongs there.

        Bands ascend, so a piece is read front to back.
        """
        where = overlap(progress, offset, band.shape)
        if where is None:
            return
        target = band[where]
        straight = target.flags.c_contiguous
        staged = target if straight else self.buffer[: target.size].reshape(target.shape)
        data = staged.reshape(-1).data
        file = self.sources.read(progress.piece, progress.done_bytes, data)
        if straight:
            self.shard.reflink_from(file, progress.piece.begin + progress.done_bytes, target)
        progress.done_bytes += len(data)
        if self.check:
            progress.checksum.update(data)
        if not straight:
            target[...] = staged
