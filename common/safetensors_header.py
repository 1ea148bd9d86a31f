"""Builds the header of a safetensors file before its data is written, and reads one without its data.

A file is eight bytes N (little endian), N bytes of JSON, then the tensors without holes. Stricter than the
library on reading: duplicate and unknown keys, holes, overlaps and trailing bytes are refused.
Source: safetensors README ("Format") and safetensors/src/tensor.rs (`Metadata::validate`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import canonical_json, durable, regular_files
from .dtypes import BITS, byte_size
from .durable import PAGE
from .errors import BadInputError, CorruptFileError, printable

METADATA = {"format": "pt"}
MAX_HEADER_BYTES = 100_000_000
MAX_DIMS = 64  # numpy's limit; more would only make long products


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file; `begin` and `end` count from the first byte after the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """All tensors of a file, in the order of their bytes; data starts at `data_offset` in the file."""

    entries: tuple[Entry, ...]
    data_offset: int
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def file_bytes(self) -> int:
        return self.data_offset + (self.entries[-1].end if self.entries else 0)


def layout_order(num_bytes: int, name: str) -> tuple[int, str]:
    """Return the sort key of a tensor in a file: page multiples first, then less and less aligned ones.

    Without holes between tensors this keeps every tensor aligned to its element, and large ones to pages.
    """
    alignment = (num_bytes & -num_bytes) if num_bytes else PAGE
    return -min(alignment, PAGE), name


def build(tensors: Iterable[tuple[str, str, Sequence[int]]]) -> tuple[bytes, Header]:
    """Return the first bytes of a file with these (name, dtype, shape), in this order, and their header.

    The header is padded with spaces so that data starts on a page. Raises BadInputError if it grows too large.
    """
    entries, position = [], 0
    for name, dtype, shape in tensors:
        size = byte_size(dtype, shape)
        entries.append(Entry(name, dtype, tuple(shape), position, position + size))
        position += size
    body = canonical_json.encode(_as_json(entries)).rstrip(b"\n")
    padded = -(-(8 + len(body)) // PAGE) * PAGE - 8
    if padded > MAX_HEADER_BYTES:
        raise BadInputError(f"header of {padded} bytes", "Use a smaller maximum shard size.")
    return padded.to_bytes(8, "little") + body.ljust(padded), Header(tuple(entries), 8 + padded, METADATA)


def read(path: Path, root: Path | None = None) -> Header:
    """Return the header of a file on disk, in the folder `root` that was given, by default the one that it lies in.

    Raises CorruptFileError naming what is wrong, also if it is not a regular file of that folder; OSError.
    """
    with durable.naming(path), open(regular_files.open_for_reading(path, root or path.parent), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(8)
        if regular_files.POINTER.startswith(first):
            regular_files.refuse_pointer(first + file.read(len(regular_files.POINTER)), path)
        return decode(first + file.read(header_length(first, size, path)), size, path)


def header_length(first: bytes, file_bytes: int, path: Path) -> int:
    """Return how long the header is that follows the first eight bytes of a file.

    Args:
        first: the first bytes of the file, eight or more.
        file_bytes: size of the whole file.
        path: where the file lies, for the message.

    Returns:
        Length of the JSON in bytes, padding included.

    Raises:
        CorruptFileError: the file is too short for such a header, or the header is longer than any may be.
    """
    length = int.from_bytes(first[:8], "little")
    if file_bytes < 8 or length > min(file_bytes - 8, MAX_HEADER_BYTES):
        raise CorruptFileError(str(path), f"its header says {length} bytes, the file has {file_bytes}")
    return length


def decode(prefix: bytes, file_bytes: int, path: Path) -> Header:
    """Parse a header strictly.

    Args:
        prefix: the first bytes of the file: eight bytes of length and the whole header.
        file_bytes: size of the whole file.
        path: where the file lies, for the message.

    Returns:
        The header; its entries are in the order of their bytes.

    Raises:
        CorruptFileError: it is not a header, has a key twice, leaves holes, or does not end where the file ends.
    """
    try:
        body = canonical_json.decode(prefix[8:])
        entries, metadata = _parse(body), _metadata(body)
    except (ValueError, BadInputError) as error:
        raise CorruptFileError(str(path), f"header: {error}") from None
    header = Header(entries, len(prefix), metadata)
    if header.file_bytes != file_bytes:
        raise CorruptFileError(
            str(path), f"its header describes {header.file_bytes} bytes, the file has {file_bytes}"
        )
    return header


def _as_json(entries: list[Entry]) -> dict[str, Any]:
    body: dict[str, Any] = {"__metadata__": METADATA}
    for entry in entries:
        body[entry.name] = {
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": [entry.begin, entry.end],
        }
    if len(body) != len(entries) + 1:
        raise BadInputError("the same tensor twice in one file", "This is a defect of shardmerge: report it.")
    return body


def _parse(body: Any) -> tuple[Entry, ...]:
    if not isinstance(body, dict):
        raise ValueError("not a JSON object")
    if not printable.is_printable(body):
        strange = next(name for name in body if not name.isprintable())
        raise ValueError(f"{printable.one_line(strange)!r:.80} is not the name of a tensor")
    entries = sorted(
        (_entry(k, v) for k, v in body.items() if k != "__metadata__"), key=lambda e: (e.begin, e.end)
    )
    position = 0
    for entry in entries:
        if entry.begin != position:
            raise ValueError(f"{entry.name} starts at {entry.begin}, the bytes before it end at {position}")
        position = entry.end
    return tuple(entries)


def _metadata(body: dict[str, Any]) -> dict[str, str]:
    metadata = body.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ must map strings to strings")
    return metadata


def _entry(name: str, value: Any) -> Entry:
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if (
            len(value) == 3
        ):
            pass
        case _:
            raise ValueError(f"{name}: expected dtype, shape and data_offsets, and nothing else")
    sizes = [*shape, begin, end]
    if (
        dtype not in BITS
        or len(shape) > MAX_DIMS
        or not all(type(n) is int and 0 <= n < 1 << 63 for n in sizes)
    ):
        raise ValueError(f"{name}: bad dtype, shape or offsets")
    if end - begin != byte_size(dtype, shape):
        needed = byte_size(dtype, shape)
        raise ValueError(f"{name}: {dtype} {shape} needs {needed} bytes, its offsets give {end - begin}")
    return Entry(name, dtype, tuple(shape), begin, end)
