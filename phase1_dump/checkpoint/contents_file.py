"""The contents of a checkpoint as a file that other processes read in place of its description.

Numbers lie in it as they do in memory, and are mapped: a process reads those of the chunks that it needs. A file that
is torn, was made otherwise or says what cannot be is none, and is made anew. Must not know who writes it, or when.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from shardmerge.common import canonical_json, durable, regular_files
from shardmerge.common.architectures import Blueprint
from shardmerge.common.architectures.digest import table_digest
from shardmerge.common.errors import CorruptFileError
from shardmerge.common.versions import version_of

from ..torch_dist.chunks import MAX_DIMS, ChunkTable, Integers
from ..torch_dist.folder import Folder
from .contents import Contents

FORMAT = "shardmerge-contents-1"
COLUMNS = ("ends", "first", "shapes", "ndims", "dtype", "boxes", "offset", "size", "path", "begin", "length")
OF_CHUNKS = ("offset", "size", "path", "begin", "length")
WORD = 8  # bytes of a number, and of the length of the head; columns begin at multiples of it
DIGEST_BYTES = 16
READ_BYTES = 1 << 20


def identity_of(folder: Folder, bound: Blueprint, *, drop_mtp: bool, drop_vision: bool) -> str:
    """Return what the contents of a checkpoint depend on, as a digest.

    Args:
        folder: Where it lies; the digest of its description is known.
        bound: The table of the architecture.
        drop_mtp: Quantizers of multi-token prediction are left out.
        drop_vision: What stands beside the language model is left out.

    Returns:
        32 hexadecimal digits.
    """
    table = bound.architecture
    program = version_of("shardmerge")
    said = [FORMAT, program, folder.digest, table.name, table_digest(table), drop_mtp, drop_vision]
    return xxhash.xxh3_128_hexdigest(canonical_json.encode(said))


def write(path: Path, contents: Contents, identity: str) -> None:
    """Write contents without quantizers, atomically.

    Args:
        path: The file.
        contents: Of the checkpoint.
        identity: What they depend on.

    Raises:
        OSError: it cannot be written.
    """
    assert contents.quantizers is None
    columns = _columns(contents)
    table = contents.table
    head = canonical_json.encode(
        {
            "identity": identity,
            "keys": table.keys,
            "dtypes": sorted(set(table.dtypes)),
            "paths": table.paths,
            "saved_as": contents.saved_as,
            "beside": contents.beside,
            "counts": [columns[name].size for name in COLUMNS],
        }
    )
    head += b" " * (-len(head) % WORD)
    parts = [len(head).to_bytes(WORD, "little"), head, *(columns[name].tobytes() for name in COLUMNS)]
    checksum = xxhash.xxh3_128()
    for part in parts:
        checksum.update(part)
    durable.write_file(path, b"".join((*parts, checksum.digest())))


def read(path: Path, root: Path, identity: str) -> Contents | None:
    """Return contents that were written.

    Args:
        path: The file.
        root: The folder that it lies in.
        identity: What they must depend on.

    Returns:
        The contents; None if there is no such file, or one that is torn, of something else, or says what cannot be.

    Raises:
        OSError: it cannot be read.
    """
    try:
        file = regular_files.open_for_reading(path, root)
    except (FileNotFoundError, CorruptFileError):
        return None
    with durable.naming(path), os.fdopen(file, "rb", buffering=0) as opened:
        num_bytes = os.fstat(file).st_size
        if num_bytes < WORD + DIGEST_BYTES or not _has_its_digest(file, num_bytes):
            return None
        mapped = mmap.mmap(opened.fileno(), num_bytes, prot=mmap.PROT_READ)
    try:
        return _contents(mapped, identity)
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError):
        return None


def _columns(contents: Contents) -> dict[str, Integers]:
    """Return all numbers, by the names of COLUMNS."""
    table = contents.table
    known = {name: number for number, name in enumerate(sorted(set(table.dtypes)))}
    shapes = np.zeros((len(table.shapes), MAX_DIMS), np.int64)
    for row, shape in enumerate(table.shapes):
        shapes[row, : len(shape)] = shape
    return {
        "ends": contents.ends,
        "shapes": shapes.reshape(-1),
        "ndims": np.array([len(shape) for shape in table.shapes], np.int64),
        "dtype": np.array([known[name] for name in table.dtypes], np.int64),
        "boxes": table.boxes.reshape(-1),
        **{name: getattr(table, name) for name in ("first", *OF_CHUNKS)},
    }


def _has_its_digest(file: int, num_bytes: int) -> bool:
    checksum, at, end = xxhash.xxh3_128(), 0, num_bytes - DIGEST_BYTES
    while at < end and (data := os.pread(file, min(READ_BYTES, end - at), at)):
        checksum.update(data)
        at += len(data)
    return at == end and os.pread(file, DIGEST_BYTES, end) == checksum.digest()


def _contents(mapped: mmap.mmap, identity: str) -> Contents | None:
    """Return what a file says. Raises ValueError, KeyError, TypeError, ... if that cannot be."""
    at = WORD + int.from_bytes(mapped[:WORD], "little")
    head = canonical_json.decode(mapped[WORD:at].rstrip(b" "))
    if head["identity"] != identity:
        return None
    found: dict[str, Any] = {}
    for name, count in zip(COLUMNS, head["counts"], strict=True):
        found[name] = np.frombuffer(mapped, np.int64, count, at)
        at += count * WORD
    keys, paths, names, saved_as = (head[name] for name in ("keys", "paths", "dtypes", "saved_as"))
    if at != len(mapped) - DIGEST_BYTES or not all(type(text) is str for text in (*keys, *paths, *names)):
        raise ValueError("numbers are missing, or keys are none")
    if type(saved_as) not in (str, type(None)) or type(head["beside"]) is not int or head["beside"] < 0:
        raise ValueError("a path that is not one, or a count")
    _require_in_range(found, len(keys), len(paths), len(names))
    shapes = zip(found["shapes"].reshape(-1, MAX_DIMS).tolist(), found["ndims"].tolist(), strict=True)
    table = ChunkTable(
        tuple(keys),
        tuple(names[number] for number in found["dtype"].tolist()),
        tuple(tuple(shape[:ndim]) for shape, ndim in shapes),
        found["first"],
        found["boxes"].reshape(-1, MAX_DIMS),
        **{name: found[name] for name in OF_CHUNKS},
        paths=tuple(paths),
    )
    return Contents(table, found["ends"], saved_as, beside=head["beside"])


def _require_in_range(found: dict[str, Integers], tensors: int, paths: int, names: int) -> None:
    """Raise ValueError unless every number that refers to something can, and no size is negative."""
    rows, boxes = int(found["first"][-1]), found["boxes"].size // MAX_DIMS
    limits = {"offset": boxes, "size": boxes, "path": paths, "dtype": names, "ndims": MAX_DIMS + 1}
    counts = {"ends": paths, "shapes": tensors * MAX_DIMS, "ndims": tensors, "dtype": tensors}
    counts |= {"first": tensors + 1, **dict.fromkeys(OF_CHUNKS, rows)}
    wrong = [name for name, count in counts.items() if found[name].size != count]
    wrong += [name for name, column in found.items() if column.size and int(column.min()) < 0]
    wrong += [name for name, end in limits.items() if found[name].size and int(found[name].max()) >= end]
    if wrong or found["first"][0] or (np.diff(found["first"]) < 0).any():
        raise ValueError("numbers that refer to nothing")
