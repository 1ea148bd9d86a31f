"""Parquet files by recipe: JSON that says which columns its real writer writes, and which bytes are changed then.

So a fuzzer changes what a ledger.parquet holds, how it is encoded and what its footer says, where changes of bytes
alone would hardly ever give a file that Arrow opens.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from . import json_mutations
from .file_mutations import Blind

Json = Any
MOST_ROWS = 20_000
TYPES = {
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint64": pa.uint64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "string": pa.string(),
    "large_string": pa.large_string(),
    "binary": pa.binary(),
    "fixed_size_binary[16]": pa.binary(16),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "list": pa.list_(pa.int64()),
    "struct": pa.struct([("a", pa.int64())]),
    "decimal": pa.decimal128(9, 2),
    "timestamp": pa.timestamp("us"),
    "null": pa.null(),
}
BINARY = {"binary", "fixed_size_binary[16]"}  # spelt in hexadecimal
COMPRESSIONS = ("none", "zstd", "snappy", "gzip", "lz4", "brotli")
ENCODINGS = ("PLAIN", "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT", "DELTA_BYTE_ARRAY", "RLE")
UNUSABLE = (
    pa.ArrowException,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    AttributeError,
    OSError,
    RecursionError,
)


def of_table(table: pa.Table, options: dict[str, Json]) -> bytes:
    """Return the recipe of a table, which is written with these options."""
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = "dictionary" if pa.types.is_dictionary(column.type) else str(column.type)
        values = column.to_pylist()
        columns.append([name, kind, [value.hex() for value in values] if kind in BINARY else values])
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    recipe = {
        "columns": columns,
        "metadata": metadata,
        "options": options,
        "repeat": 1,
        "patches": [],
        "cut": 0,
    }
    return json.dumps(recipe).encode() + b"\n"


def written(recipe: bytes) -> bytes | None:
    """Return the file that a recipe describes. None if there can be no such file."""
    try:
        value = json_mutations.parsed(recipe)
        table = _table(value).replace_schema_metadata({str(k): str(v) for k, v in value["metadata"].items()})
        sink = io.BytesIO()
        pq.write_table(table, sink, **_options(value["options"], table))
        return _patched(sink.getvalue(), value["patches"], int(value["cut"]))
    except UNUSABLE:
        return None


def mutation(data: bytes, rng: Random, blind: Blind) -> bytes:
    """Change values of a recipe, and how its file is encoded or damaged."""
    try:
        value = json_mutations.parsed(data)
        if isinstance(value, dict) and rng.random() < 0.5:
            _damage(value, rng)
            return json_mutations.encoded(value, rng)
        return json_mutations.mutated(data, rng)
    except (ValueError, LookupError, TypeError, AttributeError):
        return blind(data)


def _damage(recipe: dict[str, Json], rng: Random) -> None:
    """Change what mutations of values would seldom hit: options, types, bytes near the end, the number of rows."""
    kind = rng.randrange(8)
    if kind < 4:
        at = rng.choice((-rng.randrange(1, 2_000), -rng.randrange(1, 60), rng.randrange(1 << 14)))
        put = rng.choice((bytes([rng.randrange(256)]), b"\xff" * 4, b"\x00" * 4, rng.randbytes(2)))
        recipe["patches"] = [*recipe["patches"][-3:], [at, put.hex()]]
    elif kind == 4:
        recipe["options"] = {
            "compression": rng.choice(COMPRESSIONS),
            "use_dictionary": rng.choice((True, False, ["name"])),
            "row_group_size": rng.choice((1, 3, 1 << 20)),
            "data_page_version": rng.choice(("1.0", "2.0")),
            "encoding": rng.choice(ENCODINGS),
            "write_statistics": rng.random() < 0.5,
            "store_schema": rng.random() < 0.5,
        }
    elif kind == 5:
        rng.choice(recipe["columns"])[1] = rng.choice(list(TYPES))
    elif kind == 6:
        recipe["repeat"] = rng.choice((0, 2, 50, 2_000))
    else:
        recipe["cut"] = rng.choice((0, 1, 4, 8, 100, 1_000))


def _table(recipe: Json) -> pa.Table:
    """Return the columns of a recipe, all as long as the first, with null for what their type cannot hold."""
    repeat = recipe["repeat"] if type(recipe["repeat"]) is int else 1
    arrays, names = [], []
    rows = len(recipe["columns"][0][2])
    times = max(0, min(repeat, MOST_ROWS // max(rows, 1)))
    for name, kind, values in recipe["columns"]:
        given = [*values, *([None] * rows)][:rows]
        arrays.append(_array(given * times, kind))
        names.append(str(name))
    return pa.table(arrays, names=names)


def _array(values: list[Json], kind: str) -> pa.Array:
    try:
        return pa.array([_held(value, kind) for value in values], TYPES[kind])
    except UNUSABLE:
        return pa.concat_arrays([_scalar(value, kind) for value in values])


def _scalar(value: Json, kind: str) -> pa.Array:
    try:
        return pa.array([_held(value, kind)], TYPES[kind])
    except UNUSABLE:
        return pa.array([None], TYPES[kind])


def _held(value: Json, kind: str) -> Json:
    return bytes.fromhex(value) if kind in BINARY and value is not None else value


def _options(given: Json, table: pa.Table) -> dict[str, Json]:
    """Return options of the writer. Those that are not known are left out."""
    known = {
        "compression",
        "use_dictionary",
        "row_group_size",
        "data_page_version",
        "write_statistics",
        "store_schema",
    }
    options = {key: value for key, value in given.items() if key in known}
    options["row_group_size"] = max(1, int(options.get("row_group_size", 1 << 20)), len(table) // 100)
    if given.get("encoding") in ENCODINGS and options.get("use_dictionary") is False:
        integers = [field.name for field in table.schema if pa.types.is_integer(field.type)]
        options["column_encoding"] = dict.fromkeys(integers, given["encoding"])
    return options


def _patched(data: bytes, patches: Json, cut: int) -> bytes:
    changed = bytearray(data)
    for at, put in patches:
        new = bytes.fromhex(put)
        begin = at % len(changed)
        changed[begin : begin + len(new)] = new
    return bytes(changed[: len(changed) - cut] if 0 < cut < len(changed) else changed)


def of_file(path: Path) -> list[bytes]:
    """Return recipes of a ledger.parquet: as it would be written with and without compression."""
    table = pq.read_table(path)
    options = {"use_dictionary": ["name"], "store_schema": True}
    return [of_table(table, options | {"compression": compression}) for compression in ("none", "zstd")]
