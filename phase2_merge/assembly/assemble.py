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

from shardmerge.common import durable, safetensors_header
from shardmerge.common.dtypes import BITS
from shardmerge.common.errors import BadInputError, CorruptFileError
from shardmerge.common.rectangle import Shape, place

from ..disk.checksums import wrong_bytes
from ..disk.uncached import Bytes
from ..output.receipts import Receipt
from .bands import Output, writing

STAGING_BYTES = 48 << 20
OPEN_FILES = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """A rectangle's bytes: `path` from byte `begin`, to be placed at `offset` of the tensor. No rank: the reference."""

    path: str
    rank: int | None
    begin: int
    offset: Shape
    shape: Shape
    xxh3_128: str


@dataclass(frozen=True, slots=True)
class TensorTask:
    """A tensor and the pieces that tile it."""

    name: str
    dtype: str
    shape: Shape
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class ShardTask:
    """A shard: its tensors in the order of their bytes. `check`: compare every piece with its checksum."""

    name: str
    tensors: tuple[TensorTask, ...]
    check: bool
    plan_digest: str = ""


def assemble(task: ShardTask, folder: Path, staging_bytes: int = STAGING_BYTES) -> tuple[Receipt, int]:
    """Write `folder/<shard>` under a temporary name, fsync, rename.

    Its receipt, and how many of its bytes share blocks with fragments.
    Raises CorruptFileError if a piece is short or does not have its checksum, OSError.
    """
    head, header = safetensors_header.build((t.name, t.dtype, t.shape) for t in task.tensors)
    third = max(1, staging_bytes // 3)
    with (
        durable.appearing(folder / task.name) as temporary,
        open(temporary, "wb", buffering=0) as file,
        Sources() as sources,
        writing(file.fileno(), head, third) as output,
    ):
        stage = Staging(output, sources, np.empty(third, np.uint8), task.check)
        tensors = {tensor.name: stage.move(tensor) for tensor in task.tensors}
    digests = {name: checksum.hexdigest() for name, checksum in tensors.items()}
    digest = xxhash.xxh3_128_hexdigest(head)
    receipt = Receipt(task.name, task.plan_digest, task.check, header.file_bytes, digest, digests)
    return receipt, output.end.cloned_bytes


@dataclass(slots=True)
class Sources:
    """Open fragments, the least recently used closed first."""

    files: OrderedDict[str, int] = field(default_factory=OrderedDict)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            for file in self.files.values():
                stack.callback(os.close, file)
        self.files.clear()

    def read(self, piece: Piece, at: int, into: memoryview) -> int:
        """Fill `into` from byte `at` of a piece; the file, open for now. Raises CorruptFileError if it ends before."""
        file = self._file(piece.path)
        position = piece.begin + at
        while into:
            count = os.preadv(file, [into], position)
            if not count:
                raise CorruptFileError(piece.path, f"it ends at byte {position:,}", piece.rank)
            into, position = into[count:], position + count
        return file

    def _file(self, path: str) -> int:
        if path not in self.files:
            if len(self.files) >= OPEN_FILES:
                os.close(self.files.popitem(last=False)[1])
            self.files[path] = os.open(path, os.O_RDONLY)
        self.files.move_to_end(path)
        return self.files[path]


@dataclass(slots=True)
class Moving:
    """A piece on its way, its last dimension counted in bytes."""

    piece: Piece
    offset: Shape
    shape: Shape
    done_bytes: int = 0
    checksum: Any = field(default_factory=xxhash.xxh3_128)


@dataclass(slots=True, eq=False)
class Staging:
    """What tensors pass through: a band of `output`, filled as it will be written, and `piece`, as it was read."""

    output: Output
    sources: Sources
    piece: Bytes
    check: bool

    def move(self, tensor: TensorTask) -> Any:
        """Put a tensor at the end of the output; its checksum, complete when the output is."""
        shape = _in_bytes(tensor, tensor.shape, 1)
        moving = [_moving(tensor, piece) for piece in tensor.pieces if prod(piece.shape)]
        checksum = xxhash.xxh3_128()
        for low, size in bands(shape, self.output.band_bytes):
            out = self.output.room(prod(size)).reshape(size)
            for one in moving:
                self._place(one, low, out)
            self.output.add(out.reshape(-1).data, checksum)
        if self.check:
            _compare(tensor, moving)
        return checksum

    def _place(self, one: Moving, low: Shape, out: Bytes) -> None:
        """Put what a piece has in the band where it belongs. Bands ascend, so a piece is read front to back."""
        begin = tuple(max(a, b) for a, b in zip(low, one.offset, strict=True))
        spans = zip(low, out.shape, one.offset, one.shape, strict=True)
        size = tuple(min(a + n, b + m) - at for at, (a, n, b, m) in zip(begin, spans, strict=True))
        if min(size) <= 0:
            return
        target = out[tuple(slice(at - a, at - a + n) for at, a, n in zip(begin, low, size, strict=True))]
        straight = target.flags.c_contiguous
        staged = target if straight else self.piece[: prod(size)].reshape(size)
        data = staged.reshape(-1).data
        file = self.sources.read(one.piece, one.done_bytes, data)
        if straight:
            self.output.stands_in(file, one.piece.begin + one.done_bytes, target)
        one.done_bytes += len(data)
        if self.check:
            one.checksum.update(data)
        if not straight:
            target[...] = staged


def bands(shape: Shape, max_bytes: int) -> Iterator[tuple[Shape, Shape]]:
    """(offset, shape) of runs of a tensor's bytes, ascending, each at most `max_bytes`; together they are all of it.

    A band is a range of one dimension, entire in later ones, one index in earlier ones.
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


def _moving(tensor: TensorTask, piece: Piece) -> Moving:
    return Moving(piece, _in_bytes(tensor, piece.offset, 0), _in_bytes(tensor, piece.shape, 1))


def _in_bytes(tensor: TensorTask, sizes: Shape, scalar: int) -> Shape:
    """The last dimension in bytes; a scalar gets one dimension. Raises BadInputError for a cut inside a byte."""
    *outer, last = sizes or (scalar,)
    bits = last * BITS[tensor.dtype]
    if bits % 8:
        raise BadInputError(
            f"{tensor.name}: {tensor.dtype} {list(sizes)} lies inside a byte", "Cut at whole bytes."
        )
    return (*outer, bits // 8)


def _compare(tensor: TensorTask, moving: list[Moving]) -> None:
    for one in moving:
        if one.checksum.hexdigest() != one.piece.xxh3_128:
            at = place(one.piece.offset, one.piece.shape)
            raise CorruptFileError(
                one.piece.path,
                wrong_bytes(f"{tensor.name} {at}", one.checksum.hexdigest(), one.piece.xxh3_128),
                one.piece.rank,
            )
