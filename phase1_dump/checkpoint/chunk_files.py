"""Reads boxes of stored tensors from the files of a checkpoint, each byte once where possible, and checks their CRC-32.

What is read is bits. Must not know Hugging Face tensors.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias, cast

import numpy as np

from shardmerge.common import durable, regular_files
from shardmerge.common.errors import BadChunkError
from shardmerge.common.rectangle import Shape, intersect

from ..torch_dist.archives import StoredTensor, read_tensor
from ..torch_dist.chunks import Chunk, ChunkTable
from ..torch_dist.crc32 import Runs
from ..torch_dist.folder import FileState, Folder
from .numbers import KINDS, Bits

OPEN_FILES = 64
LOADED_BYTES = 128 << 20  # of chunks that are not read in their order
PIECE_BYTES = 8 << 20
AHEAD_BYTES = 32 << 20  # that the kernel is asked to read before they are needed
Archive: TypeAlias = tuple[str, int]  # file, and where it begins


@dataclass(frozen=True, slots=True, eq=False)
class StoredPart:
    """A parameter in a stored tensor: the source's handle.

    Attributes:
        tensor: Which of the table.
        leading: Its place in the first dimensions, which are those of layers and experts.
        first_row: Where it begins in the dimension after them.
        shape: Its own shape.
        plain_norm: The key of the weight of a norm to which readers add nothing, "" of everything else.
        added: What is added to every number: 1 to a norm that is stored minus one and that readers take as it is.
    """

    tensor: int
    leading: Shape
    first_row: int
    shape: Shape
    plain_norm: str = ""
    added: int = 0

    def box(self, start: Shape, extent: Shape) -> tuple[Shape, Shape]:
        """Return where a box of the parameter lies in the stored tensor: (offset, shape)."""
        rows = ((self.first_row + start[0], *start[1:]), extent) if start else ((), ())
        return (*self.leading, *rows[0]), ((1,) * len(self.leading) + rows[1])


@dataclass(slots=True)
class _Opened:
    """An archive whose numbers are being read, and the checksums of what was."""

    key: str
    tensor: StoredTensor
    runs: Runs = field(default_factory=Runs)


class ChunkFiles:
    """The files of a checkpoint. Closed by `close`."""

    def __init__(self, folder: Folder, table: ChunkTable, states: Mapping[str, FileState]) -> None:
        """Open nothing yet. `states` are those of all files when the checkpoint was planned."""
        self._checkpoint, self._folder, self._table, self._states = folder, folder.path, table, states
        self._files: OrderedDict[str, int] = OrderedDict()
        self._archives: dict[Archive, _Opened] = {}
        self._loaded: OrderedDict[Archive, Bits] = OrderedDict()
        self._chunks: dict[StoredPart, tuple[Chunk, ...]] = {}
        self.unchecked: set[str] = set()  # keys of tensors with chunks that have no CRC-32

    def close(self) -> None:
        """Close all files."""
        while self._files:
            os.close(self._files.popitem()[1])

    def require_unchanged(self) -> None:
        """Raise ChangedCheckpointError unless every file of the checkpoint is what it was when it was planned.

        Also those that are not read here: another share may have been read from them, of which this one is to be the
        same step.
        """
        self._checkpoint.require_unchanged(self._states)

    def dtype(self, part: StoredPart) -> str:
        """Return the safetensors name of the kind of a parameter's numbers."""
        return self._table.dtypes[part.tensor]

    def read(self, part: StoredPart, start: Shape, extent: Shape, into: Bits | None = None) -> Bits:
        """Return a box of a parameter, as unsigned integers of shape `extent`.

        Args:
            part: The parameter.
            start: Where the box begins in it.
            extent: Its size.
            into: Memory that may be used for it: so many unsigned integers, flat.

        Returns:
            The box, in `into` if that was given and used.

        Raises:
            BadChunkError: an archive is not what `.metadata` says, or is cut.
            OSError: a file cannot be read.
        """
        offset, shape = part.box(start, extent)
        touching = [
            (chunk, shared)
            for chunk in self._chunks_of(part)
            if (shared := intersect(chunk.offset, chunk.size, offset, shape)) is not None
        ]
        if len(touching) == 1:
            chunk, (low, size) = touching[0]
            return self._piece(part.tensor, chunk, low, size, into).reshape(extent)
        kind = KINDS[self.dtype(part)]
        flat = np.empty(prod(shape), kind.unsigned) if into is None else into[: prod(shape)]
        box = flat.reshape(shape)
        for chunk, (low, size) in touching:
            target = tuple(
                slice(at - begin, at - begin + n) for at, begin, n in zip(low, offset, size, strict=True)
            )
            box[target] = self._piece(part.tensor, chunk, low, size, None)
        return box.reshape(extent)

    def finish(self) -> None:
        """Read what of the archives in use was not read, such as padding, and check their CRC-32.

        Raises:
            BadChunkError: a checksum is another one.
            ChangedCheckpointError: somebody wrote to a file of the checkpoint meanwhile, to whichever.
            OSError: a file cannot be read.
        """
        for (path, _), archive in self._archives.items():
            stored = archive.tensor
            if not stored.crc32:
                self.unchecked.add(archive.key)
                continue
            for begin, end in list(archive.runs.gaps(stored.num_bytes)):
                for at in range(begin, end, PIECE_BYTES):
                    piece = np.empty(min(PIECE_BYTES, end - at), np.uint8)
                    self._fill(path, archive, at, piece)
            if archive.runs.total() != stored.crc32:
                raise BadChunkError(
                    archive.key, path, f"its bytes do not have the CRC-32 {stored.crc32:#010x}"
                )
        self.require_unchanged()
        self._archives.clear()
        self._loaded.clear()
        self._chunks.clear()

    def _chunks_of(self, part: StoredPart) -> tuple[Chunk, ...]:
        if part not in self._chunks:
            box = part.box((0,) * len(part.shape), part.shape)
            self._chunks[part] = tuple(self._table.touching(part.tensor, *box))
        return self._chunks[part]

    def _piece(self, tensor: int, chunk: Chunk, low: Shape, size: Shape, into: Bits | None) -> Bits:
        """Return a box of one chunk, of shape `size`."""
        archive = self._archive(tensor, chunk)
        stored = archive.tensor
        start = tuple(at - begin for at, begin in zip(low, chunk.offset, strict=True))
        first = _first_in_order(start, size, chunk.size) if stored.is_in_order else None
        kind = KINDS[stored.dtype]
        if first is None:
            slices = tuple(slice(at, at + n) for at, n in zip(start, size, strict=True))
            return self._whole(chunk, archive)[slices]
        count = prod(size)
        flat = np.empty(count, kind.unsigned) if into is None or into.size < count else into[:count]
        self._fill(chunk.path, archive, (stored.first + first) * kind.itemsize, flat.view(np.uint8))
        return flat.reshape(size)

    def _whole(self, chunk: Chunk, archive: _Opened) -> Bits:
        """Return all of a chunk, whose numbers lie in memory in whatever order."""
        place, stored = (chunk.path, chunk.begin), archive.tensor
        kind = KINDS[stored.dtype]
        if place not in self._loaded:
            while self._loaded and sum(bits.nbytes for bits in self._loaded.values()) > LOADED_BYTES:
                self._loaded.popitem(last=False)
            numbers = np.empty(stored.num_bytes // kind.itemsize, kind.unsigned)
            self._fill(chunk.path, archive, 0, numbers.view(np.uint8))
            self._loaded[place] = numbers
        self._loaded.move_to_end(place)
        strides = tuple(stride * kind.itemsize for stride in stored.strides)
        return np.lib.stride_tricks.as_strided(
            self._loaded[place][stored.first :], stored.shape, strides, writeable=False
        )

    def _archive(self, tensor: int, chunk: Chunk) -> _Opened:
        place = (chunk.path, chunk.begin)
        if place not in self._archives:
            self._archives[place] = self._opened(tensor, chunk)
        return self._archives[place]

    def _opened(self, tensor: int, chunk: Chunk) -> _Opened:
        """Return an archive whose description is that of `.metadata`. Raises BadChunkError if it is not."""
        key, dtype = self._table.keys[tensor], self._table.dtypes[tensor]
        file, path = self._file(chunk.path), str(self._folder / chunk.path)
        try:
            with durable.naming(self._folder / chunk.path):
                stored = read_tensor(
                    lambda count, at: regular_files.read_at(file, count, at), chunk.begin, chunk.length, path
                )
        except ValueError as error:
            raise BadChunkError(key, chunk.path, str(error)) from None
        if stored.dtype != dtype or stored.shape != chunk.size:
            found = f"{stored.dtype} {list(stored.shape)}"
            raise BadChunkError(
                key, chunk.path, f"it holds {found}, and .metadata says {dtype} {list(chunk.size)}"
            )
        if stored.num_bytes:  # a length of 0 would be all of the file
            os.posix_fadvise(file, stored.begin, min(stored.num_bytes, AHEAD_BYTES), os.POSIX_FADV_WILLNEED)
        return _Opened(key, stored)

    def _fill(self, path: str, archive: _Opened, begin: int, target: Bits) -> None:
        """Fill memory with bytes of an archive from `begin` on."""
        file, view = self._file(path), memoryview(cast(Any, target))
        at, done = archive.tensor.begin + begin, 0
        while done < len(view):
            with durable.naming(self._folder / path):
                count = os.preadv(file, [view[done : done + PIECE_BYTES]], at + done)
            if not count:
                raise BadChunkError(archive.key, path, "the file ends before it does")
            if archive.tensor.crc32:
                archive.runs.add(begin + done, view[done : done + count])
            done += count

    def _file(self, path: str) -> int:
        if path not in self._files:
            while len(self._files) >= OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[path] = regular_files.open_for_reading(self._folder / path, self._folder)
        self._files.move_to_end(path)
        return self._files[path]


def _first_in_order(start: Sequence[int], size: Sequence[int], whole: Sequence[int]) -> int | None:
    """Return the number of the first element of a box whose elements follow each other, None if they do not."""
    position, must_be_full = 0, False
    for at, n, length in zip(start, size, whole, strict=True):
        if must_be_full and n != length:
            return None
        position = position * length + at
        must_be_full = must_be_full or n != 1
    return position
