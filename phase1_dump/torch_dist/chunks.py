"""The chunks of a checkpoint's tensors: where each lies, and the proof that they make every tensor whole.

A table of columns, since there may be a million chunks. Opens no file of chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shardmerge.common.errors import BadChunkError, MissingChunksError, ShardmergeError
from shardmerge.common.errors.several import raise_problems
from shardmerge.common.rectangle import Shape

from .metadata import Columns, Described

Integers: TypeAlias = npt.NDArray[np.int64]
MAX_DIMS = 8


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor, and the archive that holds it."""

    offset: Shape
    size: Shape
    path: str
    begin: int
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class ChunkTable:
    """Tensors in the order of their keys, and their chunks, those of a tensor together.

    Attributes:
        keys: Of the tensors, as they stand on disk.
        dtypes: Safetensors names, by tensor.
        shapes: By tensor.
        first: Row of the first chunk of each tensor, and the number of all.
        boxes: [different ones, MAX_DIMS], offsets and sizes of chunks. Dimensions that a tensor lacks are 0.
        offset: Which of `boxes` says where a chunk begins in its tensor.
        size: Which of them says how large it is.
        path: Which of `paths` holds it.
        begin: Where its archive begins there.
        length: How many bytes the archive has.
        paths: Names of files.
    """

    keys: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[Shape, ...]
    first: Integers
    boxes: Integers
    offset: Integers
    size: Integers
    path: Integers
    begin: Integers
    length: Integers
    paths: tuple[str, ...]

    def chunk(self, row: int, ndim: int) -> Chunk:
        """Return the chunk of a row, of a tensor of so many dimensions."""
        offset, size = (self.boxes[box[row], :ndim].tolist() for box in (self.offset, self.size))
        path = self.paths[int(self.path[row])]
        return Chunk(tuple(offset), tuple(size), path, int(self.begin[row]), int(self.length[row]))

    def touching(self, tensor: int, offset: Shape, shape: Shape) -> Iterator[Chunk]:
        """Yield the chunks of a tensor that share elements with a box.

        Args:
            tensor: The tensor.
            offset: Where the box begins.
            shape: Its size.
        """
        rows = np.arange(self.first[tensor], self.first[tensor + 1])
        for dimension, (begin, size) in enumerate(zip(offset, shape, strict=True)):
            low = self.boxes[self.offset[rows], dimension]
            high = low + self.boxes[self.size[rows], dimension]
            rows = rows[(high > begin) & (low < begin + size)]
        for row in rows.tolist():
            yield self.chunk(row, len(offset))

    def files_of(self, tensors: Sequence[int]) -> tuple[str, ...]:
        """Return the names of the files that hold chunks of these tensors, sorted."""
        used = {int(path) for one in tensors for path in self.path[self.first[one] : self.first[one + 1]]}
        return tuple(sorted(self.paths[path] for path in used))


def table_of(described: Described, is_wanted: Callable[[str], bool]) -> ChunkTable:
    """Return the table of the tensors that are wanted, proven to be whole.

    Args:
        described: What `.metadata` says.
        is_wanted: Whether a tensor of this key is.

    Returns:
        The table.

    Raises:
        MissingChunksError: chunks do not cover a tensor, or have no place in a file.
        BadChunkError: chunks overlap, leave their tensor, or stand twice.
        ProblemsFoundError: several of these.
    """
    keys = tuple(sorted(key for key in described.tensors if is_wanted(key)))
    tensors = [described.tensors[key] for key in keys]
    first = np.cumsum([0, *(len(tensor.chunks) for tensor in tensors)], dtype=np.int64)
    rows = np.array([row for tensor in tensors for row in tensor.chunks], np.int64)
    columns = described.columns
    boxes = _padded(columns.shapes.values())
    offset_id = np.asarray(columns.chunk_offset, np.int64)[rows]
    size_id = np.asarray(columns.chunk_size, np.int64)[rows]
    entry, problems = _entries(columns, keys, first, offset_id)
    paths = tuple(columns.paths.values())
    table = ChunkTable(
        keys,
        tuple(tensor.dtype for tensor in tensors),
        tuple(tensor.shape for tensor in tensors),
        first,
        boxes,
        offset_id,
        size_id,
        np.asarray(columns.path, np.int64)[entry],
        np.asarray(columns.begin, np.int64)[entry],
        np.asarray(columns.length, np.int64)[entry],
        paths,
    )
    raise_problems([*problems, *_gaps(table)])
    return table


def _padded(shapes: Sequence[Shape]) -> Integers:
    """Return shapes as rows of MAX_DIMS numbers. Rows of zeros stand for none at all."""
    rows = np.zeros((max(1, len(shapes)), MAX_DIMS), np.int64)
    for row, shape in enumerate(shapes):
        rows[row, : len(shape)] = shape
    return rows


def _entries(
    columns: Columns, keys: Sequence[str], first: Integers, offset_id: Integers
) -> tuple[Integers, list[ShardmergeError]]:
    """Return which entry of the files each chunk is, 0 for one that has none; and what is wrong."""
    known = columns.keys.of
    key_id = np.repeat([known.get(key, -1) for key in keys], np.diff(first)).astype(np.int64)
    entry_key, entry_offset = np.asarray(columns.key, np.int64), np.asarray(columns.offset, np.int64)
    places = (entry_key << 32) + entry_offset
    order = np.argsort(places, kind="stable")
    chunk_places = (key_id << 32) + offset_id
    at = np.searchsorted(places[order], chunk_places)
    found = order[np.minimum(at, len(order) - 1)] if len(order) else np.zeros(len(chunk_places), np.int64)
    is_there = (key_id >= 0) & (
        places[found] == chunk_places if len(order) else np.zeros(len(found), np.bool_)
    )
    tensor_of = np.repeat(np.arange(len(keys)), np.diff(first))
    problems: list[ShardmergeError] = [
        MissingChunksError(keys[tensor], ".metadata gives one of its chunks no place in a file")
        for tensor in np.unique(tensor_of[~is_there]).tolist()
    ]
    sorted_places = places[order]
    twice = sorted_places[1:][sorted_places[1:] == sorted_places[:-1]]
    names, paths = columns.keys.values(), columns.paths.values()
    for place in np.unique(twice[np.isin(twice, chunk_places)]).tolist():
        path = paths[columns.path[int(order[np.searchsorted(sorted_places, place)])]]
        problems.append(BadChunkError(names[place >> 32], path, "it stands there twice"))
    return np.where(is_there, found, 0), problems


def _gaps(table: ChunkTable) -> Iterator[ShardmergeError]:
    """Yield a problem for each tensor that its chunks do not cover, each element once."""
    for tensor, (key, shape) in enumerate(zip(table.keys, table.shapes, strict=True)):
        rows = slice(int(table.first[tensor]), int(table.first[tensor + 1]))
        ndim = len(shape)
        offset, size = table.boxes[table.offset[rows], :ndim], table.boxes[table.size[rows], :ndim]
        if len(offset) == 1 and not offset.any() and tuple(size[0].tolist()) == shape:
            continue
        if not prod(shape):
            continue
        beyond = np.flatnonzero(((offset + size > np.array(shape)) | (size == 0)).any(axis=1))
        if len(beyond):
            chunk = table.chunk(rows.start + int(beyond[0]), ndim)
            reason = f"{list(chunk.size)} at {list(chunk.offset)} leaves its shape {list(shape)}"
            yield BadChunkError(key, chunk.path, reason)
        elif (place := _first_fault(offset, size, shape)) is not None:
            yield _fault(table, tensor, place)


def _first_fault(offset: Integers, size: Integers, shape: Shape) -> Shape | None:
    """Return the first place that is covered by no box or by several, None if each is covered once.

    Each box gives its corners a sign, which turns with every step along a dimension, and the whole gives its own the
    opposite. The sums are all zero exactly if the boxes tile the whole.
    """
    ndim = len(shape)
    low = np.concatenate([offset, np.zeros((1, ndim), np.int64)])
    high = np.concatenate([offset + size, np.array([shape], np.int64).reshape(1, ndim)])
    sign = np.ones(len(low), np.int64)
    sign[-1] = -1
    corners, signs = [], []
    for choice in np.ndindex(*(2,) * ndim):
        corners.append(np.where(np.array(choice, np.bool_), high, low))
        signs.append(sign * (-1) ** sum(choice))
    places, inverse = np.unique(np.concatenate(corners), axis=0, return_inverse=True)
    sums = np.bincount(inverse.reshape(-1), np.concatenate(signs), len(places))
    wrong = np.flatnonzero(sums)
    return tuple(places[wrong[0]].tolist()) if len(wrong) else None


def _fault(table: ChunkTable, tensor: int, place: Shape) -> ShardmergeError:
    """Return the problem at a place, which is covered by no chunk or by several."""
    key, covering = table.keys[tensor], list(table.touching(tensor, place, (1,) * len(place)))
    if len(covering) > 1:
        paths = ", ".join(sorted({chunk.path for chunk in covering}))
        return BadChunkError(key, paths, f"{len(covering)} chunks hold its element {list(place)}")
    return MissingChunksError(key, f"none holds its element {list(place)} of {list(table.shapes[tensor])}")
