"""ledger.parquet: the ledger as one Arrow table in every output. Written here, and read for its checksums.

It is written without compression, in encodings that cannot grow when they are read: a name stands once, integers that
repeat are indices of a dictionary. Twice the size of a compressed one, it is written in half of the time, and whoever
reads an output of somebody else needs no more memory than a few times its size.

Only this module and `published` know Arrow, which is slow to import: what only proves a dump must not import them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shardmerge.common import canonical_json, durable, plausible_sizes, regular_files
from shardmerge.common.errors import CorruptFileError
from shardmerge.common.errors.output import COPY_OUTPUT
from shardmerge.common.manifest import MAX_DIMS, require

from .columns import COLUMNS, Column
from .parquet_format import pages
from .parquet_format.pages import CHECKSUM_BYTES
from .table import Ledger

PLAIN = ("xxh3_128", "all_zero")  # columns without a dictionary
MAX_DICTIONARY_BYTES = 1 << 30  # else Arrow writes every name in every row
MAX_ROWS = 1 << 26  # of a group; each has a dictionary of its own
MAX_LISTED = 10_000  # entries of any list that the end of the file announces
TWICE = "a name stands in it twice"
# What reading a damaged Parquet file may raise.
DAMAGED = (pa.ArrowException, OSError, KeyError, ValueError, TypeError, AttributeError, IndexError)


def write(ledger: Ledger, path: Path) -> None:
    """Write ledger.parquet. The same ledger always gives the same bytes."""
    generation = {"digest": ledger.digest, **_generation(ledger)}
    table = _table(ledger).replace_schema_metadata({"shardmerge": canonical_json.encode(generation)})
    indexed = [field.name for field in table.schema if field.name not in PLAIN]
    with durable.naming(path), open(path, "xb") as file:
        pq.write_table(
            table,
            file,
            compression="none",
            use_dictionary=indexed,
            dictionary_pagesize_limit=MAX_DICTIONARY_BYTES,
            row_group_size=MAX_ROWS,
            store_schema=True,
        )
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, root: Path | None, columns: Sequence[str] = ()) -> pa.Table:
    """Read a ledger.parquet that anybody may have written.

    Args:
        path: The file.
        root: The output that was given, which the file lies in; None for the folder that it lies in itself.
        columns: Which columns are wanted; none for all. Dimensions come by their letter.

    Returns:
        A table without a null. `name` is a dictionary of one chunk, whose indices are all in it, and whose texts can be
        printed; that each is there once is for the caller to see.

    Raises:
        CorruptFileError: It is not a regular file or too large.
        OSError: It cannot be read.
        One of DAMAGED: Anything else is wrong with it.
    """
    limit = plausible_sizes.LEDGER.limit(path, root) if root else plausible_sizes.LEDGER.ceiling_bytes
    data = regular_files.read(path, root or path.parent, limit)
    pages.check(memoryview(data))  # before Arrow sees it
    file = pq.ParquetFile(
        pa.BufferReader(data), read_dictionary=["name"], thrift_container_size_limit=MAX_LISTED
    )
    _check_schema(file.schema_arrow)
    wanted = [
        name for name in file.schema_arrow.names if not columns or name in columns or name[:-1] in columns
    ]
    # in this thread: one that Arrow starts aborts a command that ends meanwhile (exit code 134, seen 7 times in 100)
    table = file.read(wanted, use_threads=False).unify_dictionaries().combine_chunks()
    require(not any(column.null_count for column in table.columns), "a value is missing")
    table.validate(full=True)
    texts = coded_names(table).dictionary.buffers()[2]  # no text is made of any: there may be millions
    require(texts is None or str(texts, "utf-8").isprintable(), "the name of a tensor cannot be printed")
    return table


def coded_names(table: pa.Table) -> pa.DictionaryArray:
    """Return the column of names, as indices of a list of all of them."""
    chunks = table["name"].chunks
    if not chunks:
        return pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), pa.array([], pa.string()))
    require(len(chunks) == 1, "its names are in several lists")
    return chunks[0]


def generation_of(ledger: pa.Table) -> dict[str, Any]:
    """Return what a ledger says of the whole dump. Raises one of DAMAGED."""
    found: dict[str, Any] = canonical_json.decode(ledger.schema.metadata[b"shardmerge"])
    return found


def require_digest(ledger: pa.Table, planned: str | None) -> None:
    """Raise ValueError for a ledger of another dump than the one that was planned. `planned` is None if nobody says."""
    own = generation_of(ledger).get("digest")
    of_plan = own is None or planned in (None, own)
    require(
        of_plan, f"it is of another dump than the plan beside it: its digest is {own}, planned was {planned}"
    )


def whole_checksums(path: Path, root: Path | None = None, planned: str | None = None) -> dict[str, str]:
    """Return xxh3_128 by name of every tensor that was written entire.

    Args:
        path: A ledger.parquet.
        root: The output that was given.
        planned: The digest that the plan beside it gives, None if there is none.

    Returns:
        Hexadecimal digits.

    Raises:
        CorruptFileError: It is damaged, or not the ledger of the plan.
        OSError: It cannot be read.
    """
    try:
        table = read(path, root, ("name", "file", "xxh3_128", "g", "s", "o"))
        require_digest(table, planned)
        numbers = {
            name: table[name].to_numpy() for name in table.column_names if name not in ("name", "xxh3_128")
        }
        whole = numbers["file"] >= 0
        for g, s, o in zip(*(dimensions(table.column_names, letter) for letter in "gso"), strict=True):
            whole &= (numbers[o] == 0) & (numbers[s] == numbers[g])
        coded, rows = coded_names(table), np.flatnonzero(whole)
        names = coded.dictionary.to_pylist()
        require(len(set(names)) == len(names), TWICE)
        checksums = table["xxh3_128"].take(rows).to_pylist()
        return {
            names[at]: value.hex()
            for at, value in zip(coded.indices.to_numpy()[rows], checksums, strict=True)
        }
    except DAMAGED as error:
        reraise_system_errors(error)
        raise CorruptFileError(str(path), str(error), do=COPY_OUTPUT) from None


def _check_schema(schema: pa.Schema) -> None:
    """Raise ValueError unless the columns are those that `write` writes, in their order."""
    dims = len(dimensions(schema.names, "g"))
    require(1 <= dims <= MAX_DIMS, f"its geometry does not have 1 to {MAX_DIMS} dimensions")
    wanted = [field for column in COLUMNS for field in _fields(column, dims)]
    for name, kind in wanted:
        require(
            name in schema.names and schema.field(name).type == kind, f"it has no column {name} of {kind}"
        )
    require(schema.names == [name for name, _ in wanted], "its columns are not those of a ledger")


def _fields(column: Column, dims: int) -> list[tuple[str, pa.DataType]]:
    """Return the names and types that a column has in the file."""
    if column.letter:
        return [(f"{column.letter}{dim}", pa.int64()) for dim in range(dims)]
    if column.name == "name":
        return [(column.name, pa.dictionary(pa.int32(), pa.string()))]
    if column.name == "xxh3_128":
        return [(column.name, pa.binary(CHECKSUM_BYTES))]
    return [(column.name, pa.from_numpy_dtype(column.kind))]


def reraise_system_errors(error: Exception) -> None:
    """Re-raise system errors, which have an errno.

    An OSError without one is Arrow's way of reporting a damaged file.
    """
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def dimensions(names: Iterable[str], letter: str) -> list[str]:
    """Return the columns of a ledger.parquet that hold the dimensions of the column with this letter."""
    return [name for name in names if re.fullmatch(rf"{letter}\d", name)]


def _table(ledger: Ledger) -> pa.Table:
    arrays: dict[str, pa.Array] = {}
    for column in COLUMNS:
        values = getattr(ledger.rows, column.name)
        if column.letter:
            arrays |= {f"{column.letter}{dim}": pa.array(sizes) for dim, sizes in enumerate(values)}
        else:
            arrays[column.name] = _array(ledger, column, values)
    return pa.table(arrays)


def _array(ledger: Ledger, column: Column, values: Any) -> pa.Array:
    """Return a column without dimensions. Each name is stored once, and a checksum as its 16 bytes."""
    if column.name == "name":
        return pa.DictionaryArray.from_arrays(
            pa.array(values.astype("int32")), pa.array(ledger.names, pa.string())
        )
    if column.name == "xxh3_128":
        return pa.array(values.view("S16")[:, 0], pa.binary(CHECKSUM_BYTES))
    return pa.array(values)


def _generation(ledger: Ledger) -> dict[str, Any]:
    """Return what the manifests of all ranks say of the whole dump."""
    manifest = ledger.heads[0].manifest
    return {
        "run_id": manifest.run_id,
        "step": manifest.step,
        "attempt": manifest.attempt,
        "world_size": manifest.world_size,
        "architecture": manifest.architecture,
        "facts": ledger.facts().as_json(),
    }
