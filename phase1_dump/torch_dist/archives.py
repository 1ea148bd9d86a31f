"""Finds the numbers of a chunk in a `.distcp` file: an archive of torch.save at a known place, read by hand.

Such a file is one zip archive after another. Only archives as torch.save writes them are understood: stored, not
compressed, one record `data/0` of bytes beside `data.pkl`, which describes the tensor. Must not know other chunks.
Source: torch.serialization; PKWARE APPNOTE 4.3.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

from isal import isal_zlib

from shardmerge.common import dtypes
from shardmerge.common.rectangle import Shape

from .names import COMMON, size
from .pickles import Name, Unpickler

END = struct.Struct("<4s4H2LH")  # end of the central directory
END_64 = struct.Struct("<4sQ2H2L4Q")  # the same with wide numbers
LOCATOR = struct.Struct("<4sLQL")  # where that lies
ENTRY = struct.Struct("<4s6H3L5H2L")  # of the central directory
LOCAL = struct.Struct("<4s5H3L2H")  # before the bytes of an entry
WIDE, WIDE_16 = 0xFFFFFFFF, 0xFFFF
WIDE_EXTRA = 1  # the field with numbers that are too wide
STORED = 0
TAIL_BYTES = 1 << 12  # holds the directory of every archive that torch writes for one tensor
HEAD_BYTES = 1 << 11
MAX_DIRECTORY_BYTES = 1 << 16
MAX_PICKLE_BYTES = 1 << 16
LITTLE_ENDIAN = b"little"


class Record(NamedTuple):
    """A file in an archive: where its bytes lie in the `.distcp` file, how many there are, their CRC-32 or 0."""

    begin: int
    num_bytes: int
    crc32: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """The tensor in an archive: a view of stored numbers, which may be more than it has elements.

    Attributes:
        dtype: Safetensors name.
        shape: Of the tensor.
        first: Which of the stored numbers is its first element.
        strides: How many numbers lie between neighbours, for each dimension.
        begin: Where the stored numbers begin in the file.
        num_bytes: How many bytes they have.
        crc32: Of those bytes; 0 if whoever wrote them computed none.
    """

    dtype: str
    shape: Shape
    first: int
    strides: Shape
    begin: int
    num_bytes: int
    crc32: int

    @property
    def is_in_order(self) -> bool:
        """Whether its elements follow each other in row order."""
        step = 1
        for length, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if length != 1 and stride != step:
                return False
            step *= length
        return True


def read_tensor(read_at: Callable[[int, int], bytes], begin: int, length: int, path: str) -> StoredTensor:
    """Read what an archive holds, but not the numbers.

    Args:
        read_at: Returns so many bytes of the file at an offset, fewer where it ends: (count, offset).
        begin: Where the archive begins in the file.
        length: How many bytes it has.
        path: For messages.

    Returns:
        The tensor.

    Raises:
        ValueError: It is not an archive with one tensor, as torch.save writes it.
        UnknownInPickleError: Its pickle names what no tensor needs.
        CorruptFileError: Its pickle is damaged.
    """
    records = records_of(read_at, begin, length)
    described = records.get("data.pkl")
    if described is None or described.num_bytes > MAX_PICKLE_BYTES:
        raise ValueError("its archive does not describe a tensor")
    order = records.get("byteorder")
    if order is not None and read_at(order.num_bytes, order.begin) != LITTLE_ENDIAN:
        raise ValueError("its numbers are not little-endian")
    pickle = read_at(described.num_bytes, described.begin)
    if described.crc32 and isal_zlib.crc32(pickle) != described.crc32:
        raise ValueError("its description does not have the CRC-32 that was recorded")
    return stored_tensor(_unpickled(pickle, path), records)


@dataclass(frozen=True, slots=True)
class Tensor:
    """What `data.pkl` says of a tensor."""

    key: str
    dtype: str
    num_elements: int
    first: int
    shape: Shape
    strides: Shape


def stored_tensor(tensor: Tensor, records: Mapping[str, Record]) -> StoredTensor:
    """Return where the numbers of a tensor lie. Raises ValueError if there are none, or it reaches beyond them."""
    numbers = records.get(f"data/{tensor.key}")
    if numbers is None:
        raise ValueError("its archive holds no numbers")
    if tensor.dtype not in dtypes.BITS:
        raise ValueError(f"its numbers are of the kind {tensor.dtype!r:.40}")
    itemsize = dtypes.BITS[tensor.dtype] // 8
    if numbers.num_bytes != tensor.num_elements * itemsize:
        raise ValueError(f"it has {numbers.num_bytes:,} bytes for {tensor.num_elements:,} {tensor.dtype}")
    if len(tensor.shape) != len(tensor.strides):
        raise ValueError("its shape and its strides do not fit")
    last = tensor.first + sum(
        (n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True) if n
    )
    if prod(tensor.shape) and last >= tensor.num_elements:
        raise ValueError("it reaches beyond its numbers")
    return StoredTensor(
        tensor.dtype,
        tensor.shape,
        tensor.first,
        tensor.strides,
        numbers.begin,
        numbers.num_bytes,
        numbers.crc32,
    )


# ---- data.pkl -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _unpickled(pickle: bytes, path: str) -> Tensor:
    """Return what a pickle describes. Those of experts of one shape are the same, byte for byte: one is read."""
    rest = [pickle]
    found = Unpickler(lambda _count: rest.pop() if rest else b"", OF_TENSOR, path, persistent=storage).load()
    if type(found) is not Tensor:
        raise ValueError("its archive holds something else than a tensor")
    return found


def storage(identity: Any) -> tuple[str, str, int]:
    """Return (key, dtype, number of elements) of a persistent id of torch. Raises ValueError if it is not one."""
    kind, numbers, key, _device, num_elements = identity
    word, _, dtype = numbers.partition(" ") if type(numbers) is str else ("", "", "")
    if kind != "storage" or word != "storage" or type(key) is not str or type(num_elements) is not int:
        raise ValueError("a storage that is not one")
    return key, dtype, num_elements


def _rebuilt(arguments: tuple[Any, ...]) -> Tensor:
    """Stand for torch._utils._rebuild_tensor_v2."""
    numbers, first, shape, strides, *_ = arguments
    if type(numbers) is not tuple or [type(one) for one in numbers] != [str, str, int]:
        raise ValueError("a tensor that is not one")
    if type(first) is not int or first < 0:
        raise ValueError("a tensor that is not one")
    return Tensor(numbers[0], numbers[1], numbers[2], first, size((shape,)), size((strides,)))


def _rebuilt_parameter(arguments: tuple[Any, ...]) -> Any:
    """Stand for torch._utils._rebuild_parameter."""
    return arguments[0]


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """Stand for the hooks of a tensor, which are never given."""
    if arguments:
        raise ValueError("a tensor with hooks")
    return {}


OF_TENSOR = {
    **COMMON,
    ("torch._utils", "_rebuild_tensor_v2"): Name(_rebuilt),
    ("torch._utils", "_rebuild_parameter"): Name(_rebuilt_parameter),
    ("collections", "OrderedDict"): Name(_ordered_dict),
}


# ---- the archive --------------------------------------------------------------------------------------------------


def records_of(read_at: Callable[[int, int], bytes], begin: int, length: int) -> dict[str, Record]:
    """Find the files of an archive.

    Args:
        read_at: Returns so many bytes at an offset: (count, offset).
        begin: Where the archive begins.
        length: How many bytes it has.

    Returns:
        The files by their names, without the folder that all are in. Raises ValueError for what is not an archive.
    """
    tail_begin = begin + max(0, length - TAIL_BYTES)
    tail = read_at(begin + length - tail_begin, tail_begin)
    if len(tail) != begin + length - tail_begin:
        raise ValueError("the file ends before it does")
    count, directory_bytes, directory_at = _end(tail, length)
    if directory_bytes > MAX_DIRECTORY_BYTES or directory_at + directory_bytes > length:
        raise ValueError("its archive has no plausible directory")
    at = begin + directory_at
    directory = (
        tail[at - tail_begin : at - tail_begin + directory_bytes]
        if at >= tail_begin
        else read_at(directory_bytes, at)
    )
    head = read_at(min(HEAD_BYTES, length), begin)
    records: dict[str, Record] = {}
    position = 0
    for _ in range(count):
        name, record, position = _entry(directory, position)
        if name in records:
            raise ValueError("its archive holds two files of one name")
        records[name] = _located(record, head, read_at, begin, directory_at)
    return records


def _end(tail: bytes, length: int) -> tuple[int, int, int]:
    """Return (number of entries, bytes, offset) of the directory."""
    if len(tail) < END.size:
        raise ValueError("it is shorter than an archive")
    magic, disk, _, _, count, size_, offset, comment = END.unpack_from(tail, len(tail) - END.size)
    if magic != b"PK\x05\x06" or disk not in (0, WIDE_16) or comment:
        raise ValueError("no archive ends there")
    at = len(tail) - END.size - LOCATOR.size
    if at < 0 or LOCATOR.unpack_from(tail, at)[0] != b"PK\x06\x07":
        return count, size_, offset
    wide_at = LOCATOR.unpack_from(tail, at)[2] - (length - len(tail))
    if not 0 <= wide_at <= len(tail) - END_64.size:
        raise ValueError("its archive does not tell where its directory lies")
    magic, _, _, _, _, _, _, count, size_, offset = END_64.unpack_from(tail, wide_at)
    if magic != b"PK\x06\x06":
        raise ValueError("its archive does not tell where its directory lies")
    return count, size_, offset


def _entry(directory: bytes, at: int) -> tuple[str, Record, int]:
    """Return the name of an entry, its record with the offset of its header, and where the next entry begins."""
    if at + ENTRY.size > len(directory):
        raise ValueError("the directory of its archive is cut")
    fields = ENTRY.unpack_from(directory, at)
    magic, method, crc, packed, unpacked = fields[0], fields[4], fields[7], fields[8], fields[9]
    name_bytes, extra_bytes, comment_bytes, offset = fields[10], fields[11], fields[12], fields[16]
    if magic != b"PK\x01\x02" or method != STORED:
        raise ValueError("its archive is compressed, or no directory of one")
    at += ENTRY.size
    name = directory[at : at + name_bytes].decode()
    extra = directory[at + name_bytes : at + name_bytes + extra_bytes]
    unpacked, packed, offset = _widened((unpacked, packed, offset), _wide_numbers(extra))
    if packed != unpacked:
        raise ValueError("its archive is compressed")
    return (
        name.partition("/")[2],
        Record(offset, unpacked, crc),
        at + name_bytes + extra_bytes + comment_bytes,
    )


def _widened(values: Sequence[int], wide: Sequence[int]) -> tuple[int, ...]:
    """Return numbers, those that stand elsewhere from there. Raises ValueError if fewer do."""
    if len(wide) < sum(value == WIDE for value in values):
        raise ValueError("the directory of its archive lacks numbers")
    rest = iter(wide)
    return tuple(next(rest) if value == WIDE else value for value in values)


def _wide_numbers(extra: bytes) -> tuple[int, ...]:
    """Return the numbers in the fields of an entry that do not fit into it."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if at + 4 + length > len(extra):
            raise ValueError("the directory of its archive is cut")
        if kind == WIDE_EXTRA:
            return struct.unpack_from(f"<{length // 8}Q", extra, at + 4)
        at += 4 + length
    return ()


def _located(
    record: Record, head: bytes, read_at: Callable[[int, int], bytes], begin: int, end: int
) -> Record:
    """Return a record whose `begin` is that of its bytes in the file: the header before them is padded."""
    offset = record.begin
    inside = offset + LOCAL.size <= len(head)
    header = head[offset : offset + LOCAL.size] if inside else read_at(LOCAL.size, begin + offset)
    if len(header) != LOCAL.size:
        raise ValueError("its archive is cut")
    fields = LOCAL.unpack(header)
    first = offset + LOCAL.size + fields[9] + fields[10]
    if fields[0] != b"PK\x03\x04" or fields[3] != STORED or first + record.num_bytes > end:
        raise ValueError("its archive is damaged")
    return Record(begin + first, record.num_bytes, record.crc32)
