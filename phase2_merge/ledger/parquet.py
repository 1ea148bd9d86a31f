"""ledger.parquet: the ledger as one Arrow table in every output. Written here, and read for its checksums.

Only this module and `published` know Arrow, which is slow to import: what only proves a dump must not import them.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shardmerge.common import canonical_json
from shardmerge.common.errors import CorruptFileError
from shardmerge.common.manifest import Manifest

from .columns import COLUMNS, Column
from .table import Ledger

# What reading a damaged Parquet file may raise.
DAMAGED = (pa.ArrowException, OSError, KeyError, ValueError, TypeError, AttributeError, IndexError)


def write(ledger: Ledger, path: Path) -> None:
    """Write ledger.parquet. The same ledger always gives the same bytes."""
    generation = {"digest": ledger.digest, **_generation(ledger.heads[0].manifest)}
    table = _table(ledger).replace_schema_metadata({"shardmerge": canonical_json.encode(generation)})
    with open(path, "xb") as file:
        pq.write_table(table, file, compression="zstd", use_dictionary=["name"], store_schema=True)
        file.flush()
        os.fsync(file.fileno())


def whole_checksums(path: Path) -> dict[str, str]:
    """Return xxh3_128 by name of every tensor that was written entire. Raises CorruptFileError, OSError."""
    import pyarrow.compute as pc  # slow to import, and a first merge needs none of it

    try:
        table = pq.read_table(path)
        tests = [pc.greater_equal(table["file"], 0)]
        for g, s, o in zip(*(dimensions(table.column_names, letter) for letter in "gso"), strict=True):
            tests += [pc.equal(table[o], 0), pc.equal(table[s], table[g])]
        whole = table.select(["name", "xxh3_128"]).filter(functools.reduce(pc.and_, tests))
        names = whole["name"].cast(pa.string()).to_pylist()
        return {name: value.hex() for name, value in zip(names, whole["xxh3_128"].to_pylist(), strict=True)}
    except DAMAGED as error:
        reraise_system_errors(error)
        raise CorruptFileError(str(path), str(error)) from None


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
        return pa.array(values.view("S16")[:, 0], pa.binary(16))
    return pa.array(values)


def _generation(manifest: Manifest) -> dict[str, Any]:
    """Return what every rank's manifest says of the whole dump."""
    return {
        "run_id": manifest.run_id,
        "step": manifest.step,
        "attempt": manifest.attempt,
        "world_size": manifest.world_size,
        "architecture": manifest.architecture,
        "facts": manifest.facts.as_json(),
    }
