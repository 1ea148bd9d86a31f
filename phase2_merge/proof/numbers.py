"""Looks at every number of a file, for `verify --scan`: NaN, infinities, tensors that are zero throughout.

The only place where phase two looks at numbers. It does so by bit masks alone, and must not compute with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shardmerge.common import durable, regular_files
from shardmerge.common.errors import CorruptFileError, Findings, NonFiniteError
from shardmerge.common.safetensors_header import Entry, Header

from ..disk.hashing import Advance
from ..ledger.names import grouped

CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Bits:
    """How numbers of a dtype are told apart by their bits.

    Attributes:
        kind: The unsigned integer of numpy that has as many bits.
        magnitude: Every bit but the sign.
        largest: The largest magnitude that is not NaN.
        infinite: Whether `largest` is infinity.
    """

    kind: Any
    magnitude: int
    largest: int
    infinite: bool = True


# Source: IEEE 754; OCP 8-bit Floating Point Specification (E4M3 has no infinity); OCP Microscaling Formats (E8M0).
FLOATS = {
    "BF16": Bits(np.uint16, 0x7FFF, 0x7F80),
    "F16": Bits(np.uint16, 0x7FFF, 0x7C00),
    "F32": Bits(np.uint32, 0x7FFFFFFF, 0x7F800000),
    "F64": Bits(np.uint64, 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
    "F8_E4M3": Bits(np.uint8, 0x7F, 0x7E, infinite=False),
    "F8_E5M2": Bits(np.uint8, 0x7F, 0x7C),
    "F8_E8M0": Bits(np.uint8, 0xFF, 0xFE, infinite=False),
}
INTEGER = Bits(np.uint8, 0xFF, 0xFF, infinite=False)  # no pattern is special


@dataclass(frozen=True, slots=True)
class Numbers:
    """What was seen in one tensor."""

    name: str
    nan_count: int
    inf_count: int
    all_zero: bool


def scan(path: Path, header: Header, advance: Advance) -> list[Numbers]:
    """Look at every number of a file.

    Args:
        path: The file, from which the header was read.
        header: Its header.
        advance: Called with numbers of bytes as they are read.

    Returns:
        What was seen in tensors that are not as weights should be, in the order of the header.

    Raises:
        CorruptFileError: It has become shorter.
        OSError: Reading fails.
    """
    with durable.naming(path), open(regular_files.reopen(path), "rb", buffering=0) as file:
        seen = [_scan(path, file, header.data_offset, entry, advance) for entry in header.entries]
    return [tensor for tensor in seen if tensor.nan_count or tensor.inf_count or tensor.all_zero]


def _scan(path: Path, file: Any, start: int, entry: Entry, advance: Advance) -> Numbers:
    bits = FLOATS.get(entry.dtype, INTEGER)
    file.seek(start + entry.begin)
    nan_count = inf_count = 0
    # in F8_E8M0 all bits zero is the smallest power of two
    zero = entry.end > entry.begin and entry.dtype != "F8_E8M0"
    bytes_left = entry.end - entry.begin
    while bytes_left:
        data = file.read(min(bytes_left, CHUNK_BYTES))
        if not data:
            raise CorruptFileError(str(path), f"it ends at byte {file.tell():,}")
        values = np.frombuffer(data, bits.kind) & np.array(bits.magnitude, bits.kind)
        nan_count += int((values > bits.largest).sum())
        inf_count += int((values == bits.largest).sum()) if bits.infinite else 0
        zero = zero and not values.any()
        bytes_left -= len(data)
        advance(len(data))
    return Numbers(entry.name, nan_count, inf_count, zero)


def judge(strange: Sequence[Numbers]) -> Findings:
    """Turn what was seen into problems, for NaN and infinities, and warnings, for tensors of zeros."""
    sick = (tensor for tensor in strange if tensor.nan_count or tensor.inf_count)
    problems = tuple(NonFiniteError(each.name, each.nan_count, each.inf_count, ()) for each in sick)
    zeros = grouped(sorted(tensor.name for tensor in strange if tensor.all_zero))
    return Findings(problems, tuple(f"all zero: {line}" for line in zeros))
