"""The ledger: all rectangles of all ranks as one Arrow table, a row per rectangle, rows in the order of ranks.

It takes manifests as they are and judges only their form; whether ranks agree and tensors are whole is decided by
others, over numpy views of these columns. The only module that imports pyarrow, and it knows no Megatron.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from shardmerge.common import canonical_json
from shardmerge.common import manifest as manifests
from shardmerge.common.dtypes import BITS
from shardmerge.common.errors import CorruptFileError, CorruptManifestError, DuplicateRankError
from shardmerge.common.manifest import FILE_NAME, Columns, Manifest, decode, rank_name

from . import manifest_json
from .graft import REFERENCE, GraftedFile
from .rank_directories import RankDirectories
from .read_many import read_many
from .rows import IntArray, Rows

DTYPES = tuple(sorted(BITS))
# what reading a damaged Parquet file raises
DAMAGED = (pa.ArrowException, OSError, KeyError, ValueError, TypeError, AttributeError, IndexError)


@dataclass(frozen=True, slots=True)
class Head:
    """A manifest without its rectangles: where it lies, what it says of its rank, and its digest."""

    directory: Path
    manifest: Manifest
    digest: str


@dataclass(frozen=True, slots=True, eq=False)
class Ledger:
    """`table` is what ledger.parquet holds; `rows` are numpy views of it; `names` are all tensors' names.

    What is grafted comes first, as rows of rank REFERENCE.
    """

    heads: tuple[Head, ...]
    grafted: tuple[GraftedFile, ...]
    table: pa.Table
    rows: Rows
    names: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Digest of all manifests in the order of ranks: the same dump gives the same, wherever it lies."""
        grafted = (f"{one.rectangle.name} {one.xxh3_128}" for file in self.grafted for one in file.placed)
        parts = [*(head.digest for head in self.heads), *grafted]
        return xxhash.xxh3_128_hexdigest("".join(parts).encode())

    def name_ids(self, names: Sequence[str]) -> IntArray:
        """The ledger's number for each of these names, -1 for a tensor that is in no manifest."""
        number = {name: at for at, name in enumerate(self.names)}
        return np.array([number.get(name, -1) for name in names], np.int64)

    def path(self, rank: int, file: int) -> Path:
        """Where a fragment lies."""
        if rank == REFERENCE:
            return self.grafted[file].path
        head = self.by_rank(rank)
        return head.directory / head.manifest.files[file].name

    def by_rank(self, rank: int) -> Head:
        """The head of a rank that has a manifest."""
        at = int(np.searchsorted(self.rows.present, rank))
        return self.heads[at]


def read(found: RankDirectories, grafted: tuple[GraftedFile, ...] = ()) -> Ledger:
    """Read every manifest. Raises CorruptManifestError, DuplicateRankError, OSError."""
    every = read_many(lambda rank: _contents(rank, found.complete[rank]), found.complete)
    parts = [_decoded(rank, *contents) for rank, contents in every]
    heads = tuple(head for head, _ in parts)
    return _assemble(heads, grafted, [*_of_grafted(grafted), *(columns for _, columns in parts)])


def write(ledger: Ledger, path: Path) -> None:
    """Write ledger.parquet: the same ledger always gives the same bytes."""
    generation = {"digest": ledger.digest, **_generation(ledger.heads[0].manifest)}
    table = ledger.table.replace_schema_metadata({"shardmerge": canonical_json.encode(generation)})
    with open(path, "xb") as file:
        pq.write_table(table, file, compression="zstd", use_dictionary=["name"], store_schema=True)
        file.flush()
        os.fsync(file.fileno())


def whole_checksums(path: Path) -> dict[str, str]:
    """xxh3_128 of every tensor that was written entire, by name, from a ledger.parquet. Raises CorruptFileError."""
    import pyarrow.compute as pc  # slow to import, and a first merge needs none of it

    try:
        table = pq.read_table(path)
        tests = [pc.greater_equal(table["file"], 0)]
        for dim in range(sum(re.fullmatch(r"g\d", name) is not None for name in table.column_names)):
            tests += [pc.equal(table[f"o{dim}"], 0), pc.equal(table[f"s{dim}"], table[f"g{dim}"])]
        whole = table.select(["name", "xxh3_128"]).filter(functools.reduce(pc.and_, tests))
        names = whole["name"].cast(pa.string()).to_pylist()
        return {name: value.hex() for name, value in zip(names, whole["xxh3_128"].to_pylist(), strict=True)}
    except DAMAGED as error:
        raise_machines(error)
        raise CorruptFileError(str(path), str(error)) from None


def raise_machines(error: Exception) -> None:
    """Raise what the machine refuses; Arrow's own OSErrors have no number, and are about what a file holds."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def _generation(one: Manifest) -> dict[str, Any]:
    return {
        "run_id": one.run_id,
        "step": one.step,
        "attempt": one.attempt,
        "world_size": one.world_size,
        "architecture": one.architecture,
        "facts": one.facts,
    }


def _contents(rank: int, directories: tuple[Path, ...]) -> tuple[Path, bytes]:
    """Where a rank's manifest lies, and its bytes. Raises DuplicateRankError, OSError."""
    every = [(directory / FILE_NAME).read_bytes() for directory in directories]
    if len(set(every)) > 1:
        raise DuplicateRankError(rank, tuple(map(str, directories)))
    return directories[0], every[0]


def _decoded(rank: int, directory: Path, data: bytes) -> tuple[Head, dict[str, Any]]:
    """One rank's head and columns; the lists that JSON gave are gone when this returns."""
    path = directory / FILE_NAME
    found = decode(data, path, manifest_json.decode)
    if found.rank != rank:
        raise CorruptManifestError(str(path), f"it is of rank {found.rank}, but lies in {rank_name(rank)}")
    try:
        columns = _columns(found.rank, found.names, found.dtypes, found.columns, found.health)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise CorruptManifestError(str(path), str(error)) from None
    empty: dict[str, Any] = {name: [] for name in found.columns.__slots__}
    head = replace(found, names=[], columns=type(found.columns)(**empty))
    return Head(directory, head, xxhash.xxh3_128_hexdigest(data)), columns


def _columns(
    rank: int, names: list[str], dtypes: list[str], c: Columns, health: dict[str, Any]
) -> dict[str, Any]:
    rows = len(c)
    found: dict[str, Any] = {
        "name": pa.DictionaryArray.from_arrays(pa.array(c.name, pa.int32()), pa.array(names, pa.string())),
        "rank": np.full(rows, rank, np.int32),
        "dtype": np.array([_dtype(dtype) for dtype in dtypes], np.int8)[np.array(c.dtype, np.int64)],
        "xxh3_128": _checksums(c.xxh3_128),
    }
    for name, kind in (
        ("file", np.int32),
        ("ndim", np.int8),
        ("begin", np.int64),
        ("end", np.int64),
        ("owner", np.int32),
    ):
        found[name] = np.array(getattr(c, name), kind)
    for letter, dims, absent in (
        ("g", c.global_shape, 1),
        ("s", c.local_shape, 1),
        ("o", c.global_offset, 0),
    ):
        for dim, values in enumerate(dims):
            found[f"{letter}{dim}"] = column = np.array(values, np.int64)
            lacking = found["ndim"] <= dim
            if lacking.any() and (column[lacking] != absent).any():
                raise ValueError(f"column {letter}{dim} gives rectangles a dimension that they lack")
    return found | _health(health, rows)


def _dtype(name: str) -> int:
    if name not in DTYPES:
        raise ValueError(f"dtype {name} is not one of safetensors")
    return DTYPES.index(name)


def _checksums(texts: list[str]) -> Any:
    """[rows, 2] words."""
    raw = bytes.fromhex("".join(texts))
    if set(map(len, texts)) - {32} or len(raw) != 16 * len(texts):
        raise ValueError("a checksum is not 32 hexadecimal digits")
    return np.frombuffer(raw, np.uint64).reshape(-1, 2)


def _health(health: dict[str, Any], rows: int) -> dict[str, Any]:
    found = {
        "nan_count": np.zeros(rows, np.int64),
        "inf_count": np.zeros(rows, np.int64),
        "all_zero": np.zeros(rows, bool),
    }
    for row, nan_count, inf_count in health.get("nonfinite", []):
        found["nan_count"][_row(row, rows)] = nan_count
        found["inf_count"][row] = inf_count
    for row in health.get("all_zero", []):
        found["all_zero"][_row(row, rows)] = True
    return found


def _row(row: Any, rows: int) -> int:
    if type(row) is not int or not 0 <= row < rows:
        raise ValueError(f"health speaks of row {row!r} of {rows}")
    return row


def _of_grafted(grafted: tuple[GraftedFile, ...]) -> list[dict[str, Any]]:
    placed = [one for file in grafted for one in file.placed]
    if not placed:
        return []
    names, dtypes, columns = manifests.columns(placed)
    return [_columns(REFERENCE, names, dtypes, columns, {})]


def _assemble(
    heads: tuple[Head, ...], grafted: tuple[GraftedFile, ...], parts: list[dict[str, Any]]
) -> Ledger:
    """Join the ranks' columns; frees them on the way, so that the peak is one column above the table."""
    name = pa.concat_arrays(
        pa.chunked_array([part.pop("name") for part in parts]).unify_dictionaries().chunks
    )
    counts = [len(part["rank"]) for part in parts]
    joined = {column: _joined(parts, column, counts) for column in _column_names(parts)}
    arrays = {"name": name} | {column: _arrow(values) for column, values in joined.items()}
    dims = sum(column.startswith("g") for column in joined)
    rows = Rows(
        present=np.array([head.manifest.rank for head in heads], np.int64),
        name=name.indices.to_numpy().astype(np.int64),
        global_shape=tuple(joined[f"g{dim}"] for dim in range(dims)),
        local_shape=tuple(joined[f"s{dim}"] for dim in range(dims)),
        global_offset=tuple(joined[f"o{dim}"] for dim in range(dims)),
        **{column: values for column, values in joined.items() if not column[1:].isdigit()},
    )
    return Ledger(heads, grafted, pa.table(arrays), rows, tuple(name.dictionary.to_pylist()))


def _column_names(parts: list[dict[str, Any]]) -> list[str]:
    """All columns, those of dimensions in order; a rank whose tensors have fewer dimensions lacks some."""
    return max(map(list, parts), key=len)


def _joined(parts: list[dict[str, Any]], column: str, counts: list[int]) -> Any:
    """One column of all ranks. What a rectangle lacks of a dimension is global 1, shape 1, offset 0."""
    absent = 0 if column.startswith("o") else 1
    chunks = []
    for part, count in zip(parts, counts, strict=True):
        found = part.pop(column, None)
        chunks.append(np.full(count, absent, np.int64) if found is None else found)
    return np.concatenate(chunks)


def _arrow(values: Any) -> Any:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), len(values), [None, pa.py_buffer(values.tobytes())]
    )
