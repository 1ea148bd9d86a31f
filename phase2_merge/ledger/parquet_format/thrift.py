"""Reads structs of thrift's compact protocol, in which Parquet describes itself: strictly, and without a schema.

A field is known by its number and its type, as generated readers pass over a field of another type than they expect.
Where they take the last of two fields with one number, this one refuses both: nobody writes them. Must not know
Parquet.
Source: apache/thrift, doc/specs/thrift-compact-protocol.md.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from shardmerge.common.manifest import require

# types of fields, by the numbers of the protocol
STOP, TRUE, FALSE, BYTE = 0, 1, 2, 3
I16, I32, I64, DOUBLE = 4, 5, 6, 7
BINARY, LIST, SET, STRUCT = 8, 9, 10, 12
INTEGERS = (I16, I32, I64)
SIZES = {BYTE: 1, DOUBLE: 8}
MAX_DEPTH = 12  # of structs and lists; Parquet has eight
MAX_VARINT_BYTES = 10
LONG = 15  # as the size of a list: the size follows

Fields: TypeAlias = dict[tuple[int, int], Any]  # by number and type; true and false are both TRUE


def struct(data: memoryview, at: int, depth: int = 0) -> tuple[Fields, int]:
    """Parse a struct.

    Args:
        data: What it lies in.
        at: Where it begins.
        depth: Of how many others it is a part.

    Returns:
        Its fields, and where it ends. Texts are parts of `data`.

    Raises:
        ValueError: It is not one, ends too early, is too deep, or has a field twice.
    """
    require(depth < MAX_DEPTH, "a struct is nested too deeply")
    fields: Fields = {}
    numbers: set[int] = set()
    number = 0
    while True:
        first, at = _byte(data, at)
        delta, kind = first >> 4, first & 0xF
        if kind == STOP:
            return fields, at
        if delta:
            number += delta
        else:
            number, at = _zigzag(data, at)
        require(number not in numbers, "a struct has a field twice")
        numbers.add(number)
        if kind in (TRUE, FALSE):
            fields[number, TRUE] = kind == TRUE
        else:
            fields[number, kind], at = _value(data, at, kind, depth)


def _value(data: memoryview, at: int, kind: int, depth: int) -> tuple[Any, int]:
    """Parse one value that is not true or false by its type alone."""
    if kind in INTEGERS:
        return _zigzag(data, at)
    if kind == BINARY:
        size, at = _varint(data, at)
        return _bytes(data, at, size), at + size
    if kind in (LIST, SET):
        return _list(data, at, depth + 1)
    if kind in SIZES:
        return _bytes(data, at, SIZES[kind]), at + SIZES[kind]
    require(kind == STRUCT, "a struct holds something unknown")
    return struct(data, at, depth + 1)


def _list(data: memoryview, at: int, depth: int) -> tuple[list[Any], int]:
    require(depth < MAX_DEPTH, "a struct is nested too deeply")
    first, at = _byte(data, at)
    size, kind = first >> 4, first & 0xF
    if size == LONG:
        size, at = _varint(data, at)
    require(size <= len(data) - at, "a list announces more than follows")  # each takes a byte at the least
    kind = BYTE if kind in (TRUE, FALSE) else kind  # in a list they take a byte
    values = []
    for _ in range(size):
        value, at = _value(data, at, kind, depth)
        values.append(value)
    return values, at


def _bytes(data: memoryview, at: int, size: int) -> memoryview:
    require(size <= len(data) - at, "a struct ends too early")
    return data[at : at + size]


def _byte(data: memoryview, at: int) -> tuple[int, int]:
    require(at < len(data), "a struct ends too early")
    return data[at], at + 1


def _zigzag(data: memoryview, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place in range(MAX_VARINT_BYTES):
        byte, at = _byte(data, at)
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at
    raise ValueError("a number in a struct is too long")
