"""Is a Parquet file one whose pages cannot grow? Looked at before Arrow sees it, and no number in it is believed.

Arrow allocates what the header of a page announces, a compressed page of a few bytes may become gigabytes, and some
damaged ends of files make Arrow abort the whole process when a column is read. So no page may be compressed,
each must lie in the file with as many values as its bytes can hold, and all pages of a column together must have the
rows of the table. What repeats a value, the runs of dictionary indices, is then bounded by the rows, and these by a
column that has 16 bytes for each. Must not know what a column means.
Source: apache/parquet-format, parquet.thrift and Encodings.md.
"""

from __future__ import annotations

from shardmerge.common.manifest import require

from .thrift import I32, I64, LIST, STRUCT, Fields, struct

MAGIC = b"PAR1"
TAIL_BYTES = 8  # the length of the footer, and MAGIC
MAX_FOOTER_BYTES = 1 << 20  # a ledger's has some twenty kilobytes
CHECKSUM_BYTES = 16

# fields by number and type, as parquet.thrift has them; one of another type is passed over, there and here
NUM_ROWS, ROW_GROUPS = (3, I64), (4, LIST)  # FileMetaData
COLUMNS, GROUP_ROWS = (1, LIST), (3, I64)  # RowGroup
META_DATA = (3, STRUCT)  # ColumnChunk
KIND, PATH, CODEC, NUM_VALUES = (1, I32), (3, LIST), (4, I32), (5, I64)  # ColumnMetaData
COMPRESSED_SIZE, DATA_OFFSET, DICTIONARY_OFFSET = (7, I64), (9, I64), (11, I64)
PAGE_KIND, PAGE_SIZE, PAGE_COMPRESSED_SIZE = (1, I32), (2, I32), (3, I32)  # PageHeader
DATA_HEADER, DICTIONARY_HEADER, DATA_HEADER_V2 = (5, STRUCT), (7, STRUCT), (8, STRUCT)
COUNT, ENCODING, ENCODING_V2 = (1, I32), (2, I32), (4, I32)

DATA, DICTIONARY, DATA_V2 = 0, 2, 3  # PageType
UNCOMPRESSED = 0  # CompressionCodec
PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY = 0, 2, 3, 8  # Encoding
BOOLEAN, INT32, INT64, BYTE_ARRAY, FIXED_LEN_BYTE_ARRAY = 0, 1, 2, 6, 7  # Type
# the fewest bytes of a value in a dictionary; a text has four of length
LEAST_BYTES = {BOOLEAN: 1, INT32: 4, INT64: 8, BYTE_ARRAY: 4, FIXED_LEN_BYTE_ARRAY: CHECKSUM_BYTES}


def check(data: memoryview) -> None:
    """Look at the end of a file, and at every page.

    `data` is all of the file. Raises ValueError if it is not Parquet, or if a page is compressed, lies outside the
    file, or announces what it cannot hold.
    """
    footer = _footer(data)
    rows = footer.get(NUM_ROWS, -1)
    require(0 <= rows * CHECKSUM_BYTES <= len(data), f"it cannot hold {rows:,} checksums")
    groups = footer.get(ROW_GROUPS, [])
    require(
        rows == sum(group.get(GROUP_ROWS, -1) for group in _structs(groups)),
        "its groups do not have its rows",
    )
    for group in groups:
        for chunk in _structs(group.get(COLUMNS, [])):
            _check_chunk(data, chunk.get(META_DATA, {}), group[GROUP_ROWS])


def _footer(data: memoryview) -> Fields:
    """Return the FileMetaData. Raises ValueError."""
    whole = len(data) >= len(MAGIC) + TAIL_BYTES and data[:4] == MAGIC and data[-4:] == MAGIC
    require(whole, "it does not begin and end as Parquet does")
    size = int.from_bytes(data[-TAIL_BYTES:-4], "little")
    require(
        size <= min(len(data) - len(MAGIC) - TAIL_BYTES, MAX_FOOTER_BYTES), "its end has an impossible length"
    )
    return struct(data[-TAIL_BYTES - size : -TAIL_BYTES], 0)[0]


def _structs(listed: list[object]) -> list[Fields]:
    """Return the members of a list. Raises ValueError unless all are structs."""
    found = [one for one in listed if isinstance(one, dict)]
    require(len(found) == len(listed), "a list at its end holds something else than Parquet has there")
    return found


def _check_chunk(data: memoryview, chunk: Fields, rows: int) -> None:
    """Raise ValueError unless the pages of a column, one behind the other, have its rows."""
    name = ".".join(
        str(part, "utf-8", "replace") for part in chunk.get(PATH, []) if isinstance(part, memoryview)
    )
    require(
        chunk.get(CODEC) == UNCOMPRESSED, f"column {name} is compressed: merge again with this shardmerge"
    )
    kind = chunk.get(KIND, -1)
    require(kind in LEAST_BYTES, f"column {name} has another type")
    at, dictionary = chunk.get(DATA_OFFSET, -1), chunk.get(DICTIONARY_OFFSET)
    require(dictionary is None or 0 < dictionary < at, f"column {name} has its dictionary behind its data")
    at = at if dictionary is None else dictionary
    end = at + chunk.get(COMPRESSED_SIZE, -1)
    require(0 <= at <= end <= len(data), f"column {name} lies outside of the file")
    values = 0
    while at < end:
        header, at = struct(data[:end], at)
        size = header.get(PAGE_COMPRESSED_SIZE, -1)
        fits = header.get(PAGE_SIZE) == size and 0 <= size <= end - at
        require(fits, f"a page of column {name} has an impossible size")
        values += _values(header, size, LEAST_BYTES[kind])
        at += size
    require(values == rows == chunk.get(NUM_VALUES), f"column {name} does not have the rows of the table")


def _values(header: Fields, size: int, least_bytes: int) -> int:
    """Return how many rows a page has. Raises ValueError if it cannot be read without allocating more than it has."""
    kind = header.get(PAGE_KIND)
    if kind == DICTIONARY:
        page = header.get(DICTIONARY_HEADER, {})
        require(page.get(ENCODING) in (PLAIN, PLAIN_DICTIONARY), "a dictionary has an unknown encoding")
        fits = 0 <= page.get(COUNT, -1) <= size // least_bytes
        require(fits, "a dictionary announces more values than it has bytes for")
        return 0
    require(kind in (DATA, DATA_V2), "a page is neither data nor a dictionary")
    page = header.get(DATA_HEADER if kind == DATA else DATA_HEADER_V2, {})
    encoding = page.get(ENCODING if kind == DATA else ENCODING_V2)
    known = encoding in (PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY)
    require(known, "a page has an encoding that no merge writes")
    count = page.get(COUNT, -1)
    require(count >= 0, "a page has a negative number of values")
    return int(count)
