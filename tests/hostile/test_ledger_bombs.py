"""A ledger.parquet of a few bytes that would take gigabytes, or that lies about its pages: refused in little memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.dumps.worlds import World
from tests.hostile.running import in_little_memory, run

PLAIN = ["xxh3_128", "all_zero"]


@pytest.fixture
def path(merged: World) -> Path:
    return merged.out / ".shardmerge" / "ledger.parquet"


def refused(out: Path, *command: str) -> str:
    """Why a command, `verify` if none is named, refuses the ledger of an output, in at most a gigabyte of memory."""
    ended = in_little_memory(*(command or ("verify",)), out)
    assert (ended.returncode, "Traceback" in ended.stderr) == (4, False), ended.stderr
    assert "ledger.parquet is damaged" in ended.stderr
    return ended.stderr


def many(table: pa.Table, rows: int) -> pa.Table:
    """The same columns, with one row again and again."""
    return table.take(pa.array(np.zeros(rows, np.int32)))


def write(table: pa.Table, path: Path, **how: Any) -> None:
    indexed = [name for name in table.column_names if name not in PLAIN]
    pq.write_table(table, path, **{"compression": "none", "use_dictionary": indexed, **how})


def test_compressed_pages_are_refused(merged: World, path: Path) -> None:
    write(pq.read_table(path), path, compression="zstd")
    assert "is compressed" in refused(merged.out)
    assert "is compressed" in refused(merged.out, "metadata")


def test_a_page_that_would_become_gigabytes_is_refused(merged: World, path: Path) -> None:
    """A name of 128 MB, in a file of some kilobytes, which some rows have."""
    table = pq.read_table(path)
    names = ["n" * (1 << 27), *table["name"].chunk(0).dictionary.to_pylist()[1:]]
    name = pa.DictionaryArray.from_arrays(table["name"].chunk(0).indices, pa.array(names))
    write(
        table.set_column(0, "name", name), path, compression="zstd", dictionary_pagesize_limit=(1 << 31) - 1
    )
    assert path.stat().st_size < 1 << 20
    refused(merged.out)


def test_more_rows_than_there_are_bytes_for_are_refused(merged: World, path: Path) -> None:
    """Every column is runs of one index, so that a million rows have a few kilobytes."""
    table = many(pq.read_table(path), 1_000_000)
    pq.write_table(
        table, path, compression="none", use_dictionary=[n for n in table.column_names if n != "all_zero"]
    )
    assert path.stat().st_size < 1 << 20
    assert "cannot hold 1,000,000 checksums" in refused(merged.out)
    assert "cannot hold 1,000,000 checksums" in refused(merged.out, "metadata")


def test_a_long_name_in_many_rows_is_held_once(merged: World, path: Path) -> None:
    """A name of a megabyte in a hundred thousand rows: 100 GB if every row had it."""
    table = many(pq.read_table(path), 100_000)
    name = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int32)), ["n" * (1 << 20)])
    write(table.set_column(0, "name", name), path, dictionary_pagesize_limit=1 << 30)
    assert path.stat().st_size < 10 << 20
    ended = in_little_memory("verify", merged.out)
    assert ended.returncode == 4, ended.stderr
    assert "have no recorded checksum" in ended.stderr


def other_type(table: pa.Table) -> pa.Table:
    return table.set_column(1, "rank", table["rank"].cast(pa.int64()))


def nested(table: pa.Table) -> pa.Table:
    return table.append_column("more", pa.array([[[1]]] * len(table)))


def null(table: pa.Table) -> pa.Table:
    return table.set_column(1, "rank", pa.array([None] * len(table), pa.int32()))


def shorter(table: pa.Table) -> pa.Table:
    return table.drop_columns(["xxh3_128"])


def unprintable(table: pa.Table) -> pa.Table:
    return table.set_column(0, "name", pa.array(["\x1b[2J"] * len(table)).dictionary_encode())


def huge(table: pa.Table) -> pa.Table:
    return table.set_column(4, "ndim", pa.array([100] * len(table), pa.int8()))


def codes(table: pa.Table) -> pa.Table:
    return table.set_column(3, "dtype", pa.array([99] * len(table), pa.int8()))


def overflowing(table: pa.Table) -> pa.Table:
    at = table.column_names.index("g0")
    sizes = pa.array([1 << 40] * len(table))
    return table.set_column(at, "g0", sizes).set_column(at + 1, "g1", sizes)


@pytest.mark.parametrize("spoil", [other_type, nested, shorter, unprintable])
def test_columns_that_no_merge_writes_are_refused(
    merged: World, path: Path, spoil: Callable[[pa.Table], pa.Table]
) -> None:
    write(spoil(pq.read_table(path)), path)
    assert "ledger.parquet is damaged" in run("verify", merged.out, codes=(4,)).stderr
    run("metadata", merged.out, codes=(4,))


@pytest.mark.parametrize("spoil", [null, huge, codes, overflowing])
def test_numbers_that_no_tensor_has_are_refused(
    merged: World, path: Path, spoil: Callable[[pa.Table], pa.Table]
) -> None:
    write(spoil(pq.read_table(path)), path)
    assert "ledger.parquet is damaged" in run("metadata", merged.out, codes=(4,)).stderr


def at_page(path: Path, column: str) -> int:
    """Where the first page of a column begins."""
    group = pq.read_metadata(path).row_group(0)
    names = [group.column(number).path_in_schema for number in range(group.num_columns)]
    chunk = group.column(names.index(column))
    offsets = [chunk.data_page_offset, chunk.dictionary_page_offset]
    return int(min(offset for offset in offsets if offset is not None))


def varint(value: int) -> bytes:
    """A number as thrift's compact protocol writes it: zigzag, seven bits in each byte."""
    value <<= 1
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def dictionary_header(size: int, count: int) -> bytes:
    """The header of a page by hand: fields 1 to 3, its kind and its size twice; field 7, count and encoding."""
    integer, struct, stop = b"\x15", b"\x4c", b"\x00"  # "the next field is an integer", "four on is a struct"
    sizes = integer + varint(2) + integer + varint(size) + integer + varint(size)
    return sizes + struct + integer + varint(count) + integer + varint(0) + stop + stop


LIES = {
    "a dictionary of two thousand million entries": (
        dictionary_header(64, (1 << 31) - 1),
        "more values than it has bytes",
    ),
    "a page of two gigabytes": (dictionary_header((1 << 31) - 1, 4), "impossible size"),
    "a number without end": (b"\x15" + b"\xff" * 20, "too long"),
    "structs in structs": (b"\x1c" * 60, "nested too deeply"),
    "a list of gigabytes": (b"\x19\xf5\xff\xff\xff\xff\x0f", "more than follows"),
    "a field twice": (b"\x15\x04\x05\x02\x04", "a field twice"),
}


@pytest.mark.parametrize("column", ["name", "g0", "rank"])
@pytest.mark.parametrize("lie", LIES)
def test_a_page_that_lies_is_refused_before_arrow_believes_it(
    merged: World, path: Path, column: str, lie: str
) -> None:
    header, reason = LIES[lie]
    data, at = bytearray(path.read_bytes()), at_page(path, column)
    data[at : at + len(header)] = header
    path.write_bytes(data)
    assert reason in refused(merged.out)


@pytest.mark.parametrize("seed", range(40))
def test_bytes_changed_anywhere_are_refused_or_read(merged: World, path: Path, seed: int) -> None:
    """In this process: whatever Arrow is given, it neither crashes nor raises what is not of the tree."""
    random = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    for at in random.integers(0, len(data), 4):
        data[at] = random.integers(0, 256)
    path.write_bytes(data)
    run("verify", merged.out, codes=(0, 2, 3, 4))
    run("metadata", merged.out, codes=(0, 2, 3, 4))
