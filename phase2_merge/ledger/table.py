"""The ledger: all rectangles of all ranks as one Arrow table, a row per rectangle, rows in the order of ranks.

Whether ranks agree and tensors are whole is decided by others, over numpy views of these columns. All that a proof
needs of Arrow is here, and nothing of Megatron.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from shardmerge.common import canonical_json
from shardmerge.common.errors import CorruptFileError
from shardmerge.common.manifest import ABSENT, Manifest

from . import read as manifest_rows
from .graft import REFERENCE, GraftedFile
from .rank_directories import RankDirectories
from .read import LETTERS, Batch, Head, grafted_rows
from .rows import IntArray, Rows

# what reading a damaged Parquet file raises
DAMAGED = (pa.ArrowException, OSError, KeyError, ValueError, TypeError, AttributeError, IndexError)


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
        number = dict(zip(self.names, range(len(self.names)), strict=True))
        return np.fromiter(map(number.get, names, repeat(-1)), np.int64, len(names))

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
    parts = [
        (batch.heads, _named(batch)) for batch in chain(grafted_rows(grafted), manifest_rows.batches(found))
    ]
    heads = tuple(head for of, _ in parts for head in of)
    return _assemble(heads, grafted, [columns for _, columns in parts])


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
        "facts": one.facts.as_json(),
    }


def _named(batch: Batch) -> dict[str, Any]:
    """Its columns, with names as Arrow keeps them: each once."""
    known = dict.fromkeys(batch.names)
    number = batch.columns["name"].astype(np.int32)
    if len(known) < len(batch.names):
        at = dict(zip(known, range(len(known)), strict=True))
        number = np.fromiter(map(at.__getitem__, batch.names), np.int32, len(batch.names))[number]
    texts = pa.array(list(known), pa.string())
    return batch.columns | {"name": pa.DictionaryArray.from_arrays(_arrow(number), texts)}


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
    chunks = []
    for part, count in zip(parts, counts, strict=True):
        found = part.pop(column, None)
        chunks.append(np.full(count, ABSENT[LETTERS[column[0]]], np.int64) if found is None else found)
    return np.concatenate(chunks)


def _arrow(values: Any) -> Any:
    """An Arrow array of the same bytes. pa.array imports numpy.ma to look for masks: 9 ms of a start."""
    if values.dtype == bool:
        return pa.Array.from_buffers(
            pa.bool_(), len(values), [None, _buffer(np.packbits(values, bitorder="little"))]
        )
    kind = pa.binary(16) if values.ndim > 1 else pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, _buffer(values)])


def _buffer(values: Any) -> Any:
    return pa.py_buffer(np.ascontiguousarray(values).view(np.uint8))
