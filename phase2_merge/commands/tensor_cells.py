"""What a dump, an output or any Hugging Face directory holds of every tensor: cells, where their bytes lie, checksums.

A directory that shardmerge did not write has one cell for each tensor and no checksums, so its bytes are read when they
are asked for. Must not know what the tensors are compared with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeAlias

import numpy as np
import xxhash

from shardmerge.common import durable, regular_files
from shardmerge.common import reference as references
from shardmerge.common.dtypes import BITS, DTYPES
from shardmerge.common.errors import BadInputError, CorruptFileError, not_a_directory
from shardmerge.common.places import INDEX, SINGLE

from ..disk.hashing import checksums
from ..ledger import table
from ..ledger.rank_directories import discover, holds_ranks
from ..proof.tensors.tiling import untiled
from . import records

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """A part of a tensor, whose bytes lie in one stretch of a file."""

    offset: Shape
    shape: Shape
    path: Path
    begin: int
    xxh3_128: str | None


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor: `shape` is that of the whole, `root` the directory that was given."""

    root: Path
    dtype: str
    shape: Shape
    cells: tuple[Cell, ...]

    def cuts(self) -> frozenset[tuple[Shape, Shape]]:
        """Return where the cells lie."""
        return frozenset((cell.offset, cell.shape) for cell in self.cells)

    def checksums(self) -> frozenset[tuple[Shape, str | None]]:
        """Return the checksum of each cell, where there is one."""
        return frozenset((cell.offset, cell.xxh3_128) for cell in self.cells)

    def is_whole(self) -> bool:
        """Whether the cells hold each element once: it may be a dump whose ranks are not all there, or overlap."""
        whole = self.shape or (1,)  # a scalar
        boxes = [(cell.offset or (0,), cell.shape or (1,)) for cell in self.cells]
        offsets, shapes = (
            [np.array(sizes) for sizes in zip(*column, strict=True)] for column in zip(*boxes, strict=True)
        )
        number = np.zeros(len(boxes), np.int64)
        return not untiled(number, offsets, shapes, [np.array([size]) for size in whole]).size

    def num_bytes(self) -> int:
        return prod(self.shape) * BITS[self.dtype] // 8

    def digest(self) -> tuple[str, int]:
        """Return xxh3_128 of the bytes of the whole tensor, and how many bytes were read for it.

        Raises CorruptFileError for a file that ends too early, OSError.
        """
        if len(self.cells) == 1 and (known := self.cells[0].xxh3_128) is not None:
            return known, 0
        if len(self.cells) == 1:  # it may be larger than memory
            (cell,) = self.cells
            span = (cell.begin, cell.begin + self.num_bytes())
            return next(checksums(cell.path, [span], lambda _: None)), self.num_bytes()
        whole = np.zeros(self._in_bytes(self.shape, 1), np.uint8)
        for cell in self.cells:
            begin, size = self._in_bytes(cell.offset, 0), self._in_bytes(cell.shape, 1)
            box = tuple(slice(first, first + length) for first, length in zip(begin, size, strict=True))
            whole[box] = np.frombuffer(self._read(cell), np.uint8).reshape(size)
        return xxhash.xxh3_128_hexdigest(whole.data), self.num_bytes()

    def _read(self, cell: Cell) -> bytes:
        count = prod(cell.shape) * BITS[self.dtype] // 8
        with (
            durable.naming(cell.path),
            open(regular_files.open_for_reading(cell.path, self.root), "rb", buffering=0) as file,
        ):
            data = regular_files.read_at(file.fileno(), count, cell.begin)
        if len(data) < count:
            raise CorruptFileError(str(cell.path), f"it ends {count - len(data):,} bytes too early")
        return data

    def _in_bytes(self, dims: Shape, scalar: int) -> Shape:
        """Return sizes or offsets with the last dimension in bytes. `scalar` stands for that of a tensor of none."""
        *rest, last = dims or (scalar,)
        return (*rest, last * BITS[self.dtype] // 8)


def read(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a dump or of a Hugging Face directory, by name.

    Raises BadInputError for anything else, MissingRecordError for an output of ours that lost its index, and what
    reading manifests and headers raises.
    """
    if not path.is_dir():
        raise not_a_directory(path, "Give a dump or a Hugging Face directory.")
    if holds_ranks(path):
        return _of_dump(path)
    files = references.weight_files(path)
    if not files:
        records.refuse_lost_index(path)
        raise BadInputError(
            f"{path} holds no rank of a dump, and neither {INDEX} nor {SINGLE}",
            "Give a dump or a Hugging Face directory with weights.",
        )
    return _of_directory(path, files)


def _of_dump(path: Path) -> dict[str, Tensor]:
    ledger = table.read(discover([path]))
    rows = ledger.rows
    cells: dict[str, list[Cell]] = {}
    about: dict[str, tuple[str, Shape]] = {}
    for row in rows.written.nonzero()[0].tolist():
        name = ledger.names[rows.name[row]]
        offset, shape = rows.box(row)
        file = ledger.path(int(rows.rank[row]), int(rows.file[row]))
        cells.setdefault(name, []).append(Cell(offset, shape, file, int(rows.begin[row]), rows.checksum(row)))
        about[name] = (DTYPES[rows.dtype[row]], rows.global_of(row))
    return {name: Tensor(path, *about[name], tuple(found)) for name, found in cells.items()}


def _of_directory(path: Path, files: tuple[Path, ...]) -> dict[str, Tensor]:
    shards = {file.name: references.read_header(file, path) for file in files}
    known = records.checksums(path, shards) if records.are_there(path) else {}
    tensors: dict[str, Tensor] = {}
    for file, header in shards.items():
        for entry in header.entries:
            cell = Cell(
                (0,) * len(entry.shape),
                entry.shape,
                path / file,
                header.data_offset + entry.begin,
                known.get(file, {}).get(entry.name),
            )
            tensors[entry.name] = Tensor(path, entry.dtype, entry.shape, (cell,))
    return tensors
