"""Is a Parquet file one whose pages cannot grow? Looked at before Arrow reads it, and no number in it is believed.

Arrow allocates what the header of a page announces, and a compressed page of a few bytes may become gigabytes. So no
page may be compressed, each must lie in the file with as many values as its bytes can hold, and all pages of a column
together must have the rows of the table. What repeats a value, the runs of dictionary indices, is then bounded by the
rows, and these by a column that has 16 bytes for each.
Source: apache/parquet-format, parquet.thrift and Encodings.md; apache/thrift, doc/specs/thrift-compact-protocol.md.
"""

from __future__ import annotations

from typing import Any

from shardmerge.common.manifest import require

DATA, DICTIONARY, DATA_V2 = 0, 2, 3  # PageType
DATA_HEADER, DICTIONARY_HEADER, DATA_HEADER_V2 = 5, 7, 8  # fields of PageHeader
PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY = 0, 2, 3, 8  # Encoding
# the fewest bytes of a value in a dictionary; a text has four of length
LEAST_BYTES = {"BYTE_ARRAY": 4, "INT32": 4, "INT64": 8, "FIXED_LEN_BYTE_ARRAY": 16}
STOP, TRUE, FALSE, BINARY, STRUCT = 0, 1, 2, 8, 12  # types of the compact protocol
INTEGERS = (4, 5, 6)
MAX_DEPTH = 4
MAX_VARINT_BYTES = 10

Fields = dict[int, Any]


def check(data: memoryview, metadata: Any) -> None:
    """Look at every page of a file.

    Args:
        data: All bytes of the file.
        metadata: What pyarrow read at its end.

    Raises:
        ValueError: A page is compressed, lies outside the file, or announces what it cannot hold.
    """
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group)
        for number in range(rows.num_columns):
            _check_chunk(data, rows.column(number), rows.num_rows)


def _check_chunk(data: memoryview, chunk: Any, rows: int) -> None:
    """Raise ValueError unless the pages of a column, one behind the other, have its rows."""
    name = chunk.path_in_schema
    require(
        chunk.compression == "UNCOMPRESSED", f"column {name} is compressed: merge again with this shardmerge"
    )
    require(
        chunk.physical_type == "BOOLEAN" or chunk.physical_type in LEAST_BYTES,
        f"column {name} has another type",
    )
    offsets = (chunk.data_page_offset, chunk.dictionary_page_offset)
    at = min(offset for offset in offsets if offset is not None)
    end = at + chunk.total_compressed_size
    require(0 <= at <= end <= len(data), f"column {name} lies outside of the file")
    values = 0
    while at < end:
        header, at = _struct(data[:end], at)
        size = header.get(3, -1)
        require(
            header.get(2) == size and 0 <= size <= end - at, f"a page of column {name} has an impossible size"
        )
        values += _values(header, size, chunk.physical_type)
        at += size
    require(values == rows == chunk.num_values, f"column {name} does not have the rows of the table")


def _values(header: Fields, size: int, kind: str) -> int:
    """Return how many rows a page has. Raises ValueError if it cannot be read without allocating more than it has."""
    if header.get(1) == DICTIONARY:
        page = header.get(DICTIONARY_HEADER, {})
        require(page.get(2) in (PLAIN, PLAIN_DICTIONARY), "a dictionary has an unknown encoding")
        fits = 0 <= page.get(1, -1) <= size // LEAST_BYTES.get(kind, 1)
        require(fits, "a dictionary announces more values than it has bytes for")
        return 0
    require(header.get(1) in (DATA, DATA_V2), "a page is neither data nor a dictionary")
    first = header.get(1) == DATA
    page = header.get(DATA_HEADER if first else DATA_HEADER_V2, {})
    encoding = page.get(2 if first else 4)
    require(
        encoding in (PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY),
        "a page has an encoding that no merge writes",
    )
    require(not page.get(7, False) or first, "a page is compressed")
    count = page.get(1, -1)
    require(type(count) is int and count >= 0, "a page has a negative number of values")
    return int(count)


def _struct(data: memoryview, at: int, depth: int = 0) -> tuple[Fields, int]:
    """Parse a struct of thrift's compact protocol. Returns its fields by number, and where it ends."""
    require(depth < MAX_DEPTH, "the header of a page is nested too deeply")
    fields: Fields = {}
    number = 0
    while True:
        require(at < len(data), "the header of a page ends too early")
        delta, kind = data[at] >> 4, data[at] & 0xF
        at += 1
        if kind == STOP:
            return fields, at
        if delta:
            number += delta
        else:
            number, at = _zigzag(data, at)
        fields[number], at = _value(data, at, kind, depth)


def _value(data: memoryview, at: int, kind: int, depth: int) -> tuple[Any, int]:
    """Parse one value. Texts are passed over, and lists are not in any header of a page."""
    if kind in (TRUE, FALSE):
        return kind == TRUE, at
    if kind in INTEGERS:
        return _zigzag(data, at)
    if kind == BINARY:
        size, at = _varint(data, at)
        return None, at + size
    require(kind == STRUCT, "the header of a page holds something unknown")
    return _struct(data, at, depth + 1)


def _zigzag(data: memoryview, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place in range(MAX_VARINT_BYTES):
        require(at < len(data), "the header of a page ends too early")
        value |= (data[at] & 0x7F) << (7 * place)
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("a number in the header of a page is too long")
