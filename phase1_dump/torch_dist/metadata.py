"""Reads `.metadata`: which tensors a checkpoint holds, in which chunks, and where in which file each chunk lies.

What a million chunks become are columns of numbers, filled while the pickle is read: as objects they would take two
gigabytes. Whether chunks make a tensor whole is decided in `chunks`.
"""

from __future__ import annotations

import gc
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import RawIOBase
from typing import Any

from shardmerge.common.errors import CorruptFileError
from shardmerge.common.rectangle import Shape

from . import opcodes
from .names import CHECKPOINT, OF_METADATA, Ignored
from .pickles import Containers, Name, Unpickler, extend_list, update_dict

UNKNOWN_DTYPE = "unknown"


class Numbers:
    """Values that occur often, each kept once and known by its number."""

    def __init__(self) -> None:
        self.of: dict[Any, int] = {}

    def number(self, value: Any) -> int:
        """Return the number of a value, a new one if it was not seen before."""
        return self.of.setdefault(value, len(self.of))

    def values(self) -> list[Any]:
        """Return all values by their numbers."""
        return list(self.of)


@dataclass(slots=True)
class Columns:
    """What was read so far. Shapes, keys and paths are numbers that `shapes`, `keys` and `paths` know.

    chunk_offset, chunk_size: a row for each chunk that a tensor says it has.
    key, offset, path, begin, length: a row for each entry of a file; `offset` is -1 for one that is no tensor.
    """

    shapes: Numbers = field(default_factory=Numbers)
    keys: Numbers = field(default_factory=Numbers)
    paths: Numbers = field(default_factory=Numbers)
    chunk_offset: array[int] = field(default_factory=lambda: array("i"))
    chunk_size: array[int] = field(default_factory=lambda: array("i"))
    key: array[int] = field(default_factory=lambda: array("i"))
    offset: array[int] = field(default_factory=lambda: array("i"))
    path: array[int] = field(default_factory=lambda: array("i"))
    begin: array[int] = field(default_factory=lambda: array("q"))
    length: array[int] = field(default_factory=lambda: array("q"))


@dataclass(frozen=True, slots=True)
class TensorRow:
    """A tensor as `.metadata` describes it. `chunks` are rows of `Columns.chunk_offset`."""

    dtype: str
    shape: Shape
    chunks: Sequence[int]


@dataclass(frozen=True, slots=True)
class Described:
    """Everything that `.metadata` says and we use.

    Attributes:
        tensors: By key.
        objects: Keys of what is not a tensor.
        columns: Chunks of tensors, and entries of files.
        saved_as: The path that the checkpoint was saved to, None if that is not told.
    """

    tensors: dict[str, TensorRow]
    objects: tuple[str, ...]
    columns: Columns
    saved_as: str | None = None


def read_metadata(open_again: Callable[[], RawIOBase], num_bytes: int, path: str) -> Described:
    """Read `.metadata`.

    Args:
        open_again: Opens the file. It is called twice, since the pickle is looked through before it is read.
        num_bytes: Size of the file.
        path: For messages.

    Returns:
        What it says.

    Raises:
        UnknownInPickleError: it names what no known version writes.
        CorruptFileError: it is damaged.
    """
    columns = Columns()
    with open_again() as file:
        asked = opcodes.asked_for(file.read, num_bytes)
    with open_again() as file, _without_garbage_collection():
        value = Unpickler(
            file.read,
            _names(columns),
            path,
            containers=Containers(_extend, _update(columns)),
            asked_for=asked,
        ).load()
        if type(value) is not _Fields:
            raise CorruptFileError(path, "it does not list tensors")
        return _described(value, columns, path)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Millions of objects are made and none refers to itself: looking for those that do takes most of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


# ---- stand-ins ----------------------------------------------------------------------------------------------------


class _Fields:
    """What stands for a dataclass of torch: its fields, as they were given. A subclass checks them."""

    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}

    def build(self, state: Any) -> None:
        """Take the fields."""
        if type(state) is not dict:
            raise ValueError("a state that has no fields")
        self.fields = state


class _Chunk:
    """Stands for ChunkStorageMetadata: a row of the columns."""

    __slots__ = ("columns", "row")

    def __init__(self, columns: Columns) -> None:
        self.columns, self.row = columns, -1

    def build(self, state: Any) -> None:
        shapes, offset, size = self.columns.shapes, state["offsets"], state["sizes"]
        if type(offset) is not tuple or type(size) is not tuple or len(offset) != len(size):
            raise ValueError("a chunk without a place")
        self.row = len(self.columns.chunk_offset)
        self.columns.chunk_offset.append(shapes.number(offset))
        self.columns.chunk_size.append(shapes.number(size))


class _Properties:
    """Stands for TensorProperties: of its state only the dtype is used."""

    __slots__ = ("dtype",)

    def __init__(self) -> None:
        self.dtype = UNKNOWN_DTYPE

    def build(self, state: Any) -> None:
        dtype = state[0] if type(state) is tuple and state else None
        kind, _, name = dtype.partition(" ") if type(dtype) is str else ("", "", "")
        if kind != "dtype":
            raise ValueError("properties of a tensor without a dtype")
        self.dtype = name


class _Index:
    """Stands for MetadataIndex: the key of an entry, and the offset of a chunk."""

    __slots__ = ("key", "offset")

    def __init__(self) -> None:
        self.key, self.offset = "", None

    def build(self, state: Any) -> None:
        self.key, self.offset = state["fqn"], state.get("offset")
        if type(self.key) is not str or type(self.offset) not in (tuple, type(None)):
            raise ValueError("an entry without a key")


class _Place:
    """Stands for _StorageInfo: where an entry lies."""

    __slots__ = ("begin", "length", "path")

    def __init__(self) -> None:
        self.path, self.begin, self.length = "", 0, 0

    def build(self, state: Any) -> None:
        self.path, self.begin, self.length = state["relative_path"], state["offset"], state["length"]
        if type(self.path) is not str or type(self.begin) is not int or type(self.length) is not int:
            raise ValueError("an entry without a place")
        if min(self.begin, self.length) < 0 or max(self.begin, self.length) >= 1 << 62:
            raise ValueError("an entry whose place cannot be")
        if state.get("transform_descriptors"):
            raise ValueError("an entry that is compressed")


class _Saved:
    """Stands for StorageMeta: the path that was saved to, if it is a text."""

    __slots__ = ("path",)

    def __init__(self) -> None:
        self.path: str | None = None

    def build(self, state: Any) -> None:
        path = state.get("checkpoint_id")
        self.path = path if type(path) is str else None


class _Tensor(_Fields):
    """Stands for TensorStorageMetadata."""

    __slots__ = ()

    def row(self) -> TensorRow:
        """Return what it says. Raises ValueError if that makes no sense."""
        properties, shape, chunks = (self.fields[name] for name in ("properties", "size", "chunks"))
        if type(properties) is not _Properties or type(shape) is not tuple or type(chunks) is not list:
            raise ValueError("a tensor that is not described")
        rows = [chunk.row if type(chunk) is _Chunk else chunk for chunk in chunks]
        if not all(type(row) is int and row >= 0 for row in rows):
            raise ValueError("a tensor whose chunks are not described")
        in_order = range(rows[0], rows[0] + len(rows)) if rows else range(0)
        return TensorRow(properties.dtype, shape, in_order if rows == list(in_order) else tuple(rows))


def _names(columns: Columns) -> dict[tuple[str, str], Any]:
    """Return the stand-ins, of which chunks write into these columns."""
    metadata, filesystem = CHECKPOINT + "metadata", CHECKPOINT + "filesystem"
    made = {
        (metadata, "Metadata"): _Fields,
        (metadata, "TensorStorageMetadata"): _Tensor,
        (metadata, "TensorProperties"): _Properties,
        (metadata, "MetadataIndex"): _Index,
        (metadata, "ChunkStorageMetadata"): lambda: _Chunk(columns),
        (metadata, "StorageMeta"): _Saved,
        (filesystem, "_StorageInfo"): _Place,
        ("megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata"): _Fields,
    }
    return {**OF_METADATA, **{name: Name(_without_arguments(kind)) for name, kind in made.items()}}


def _without_arguments(kind: Callable[[], Any]) -> Callable[[tuple[Any, ...]], Any]:
    def make(arguments: tuple[Any, ...]) -> Any:
        if arguments:
            raise ValueError("an object that is made with arguments")
        return kind()

    return make


# ---- containers ---------------------------------------------------------------------------------------------------


def _extend(target: list[Any], items: Sequence[Any]) -> None:
    """Put items into a list; chunks become rows, and what is ignored is left out."""
    extend_list(
        target,
        [item.row if type(item) is _Chunk else item for item in items if type(item) is not Ignored],
    )


def _update(columns: Columns) -> Callable[[dict[Any, Any], Sequence[Any]], None]:
    def update(target: dict[Any, Any], items: Sequence[Any]) -> None:
        """Put keys and values into a dict; places of entries become rows of the columns, tensors become short."""
        if items and type(items[0]) is _Index:
            for index, place in zip(items[::2], items[1::2], strict=True):
                _add_entry(columns, index, place)
            return
        short = [item.row() if type(item) is _Tensor else item for item in items]
        update_dict(target, short)

    return update


def _add_entry(columns: Columns, index: Any, place: Any) -> None:
    if type(index) is not _Index or type(place) is not _Place:
        raise ValueError("an entry without a place")
    columns.key.append(columns.keys.number(index.key))
    columns.offset.append(-1 if index.offset is None else columns.shapes.number(index.offset))
    columns.path.append(columns.paths.number(place.path))
    columns.begin.append(place.begin)
    columns.length.append(place.length)


def _described(value: _Fields, columns: Columns, path: str) -> Described:
    """Return what the pickle says. Raises CorruptFileError if it lists no tensors."""
    held = value.fields.get("state_dict_metadata")
    if type(held) is not dict or not all(type(key) is str for key in held):
        raise CorruptFileError(path, "it does not list tensors")
    tensors = {key: row for key, row in held.items() if type(row) is TensorRow}
    saved = value.fields.get("storage_meta")
    saved_as = saved.path if type(saved) is _Saved else None
    return Described(tensors, tuple(key for key in held if key not in tensors), columns, saved_as)
