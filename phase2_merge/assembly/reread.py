"""Reads a shard that somebody wrote before, and compares it with the rectangles that it should be made of.

Nothing that stands beside the shard is believed: its header is made anew, and every piece must have the checksum that
its rank recorded. Like `assemble`, it knows neither ledger nor Arrow.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import xxhash

from shardmerge.common import durable, regular_files, safetensors_header
from shardmerge.common.errors import CorruptFileError

from ..disk.stamp import Stamp, stamp
from ..disk.uncached import Bytes
from ..output.receipts import Receipt
from .pieces import bands, begun, compare, in_bytes, overlap
from .task import ShardTask, TensorTask

BAND_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class RereadShard:
    """What a shard turned out to be: its size, and the receipt that it deserves, or why it is not the planned one."""

    name: str
    num_bytes: int
    receipt: Receipt | None
    stamp: Stamp | None
    reason: str = ""


def reread(task: ShardTask, folder: Path) -> RereadShard:
    """Read one shard whole.

    Args:
        task: The shard as it is planned.
        folder: Where it lies.

    Returns:
        What it is. A shard that is missing or wrong is not an error here.

    Raises:
        OSError: Reading, or making it durable, fails.
    """
    path = folder / task.name
    try:
        before = stamp(path)
        receipt = _read(task, path, folder)
        if stamp(path) != before:
            raise CorruptFileError(str(path), "it was changed while it was read")
    except FileNotFoundError:
        return RereadShard(task.name, 0, None, None, "it is missing")
    except CorruptFileError as error:
        return RereadShard(task.name, 0, None, None, error.reason)
    return RereadShard(task.name, receipt.num_bytes, receipt, before)


def _read(task: ShardTask, path: Path, folder: Path) -> Receipt:
    """Return the receipt of a shard. Raises CorruptFileError if it is not as planned."""
    head, header = safetensors_header.build((t.name, t.dtype, t.shape) for t in task.tensors)
    with (
        durable.naming(path),
        open(regular_files.open_for_reading(path, folder), "rb", buffering=0) as file,
    ):
        os.fsync(file.fileno())  # somebody may have put it back with cp
        if os.fstat(file.fileno()).st_size != header.file_bytes:
            raise CorruptFileError(str(path), f"it does not have {header.file_bytes:,} bytes")
        if regular_files.read_at(file.fileno(), len(head), 0) != head:
            raise CorruptFileError(str(path), "its header is not the planned one")
        file.seek(len(head))
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        memory = np.empty(BAND_BYTES, np.uint8)
        tensors = {tensor.name: _checksum(tensor, file.fileno(), memory, path) for tensor in task.tensors}
    header_checksum = xxhash.xxh3_128_hexdigest(head)
    return Receipt(task.name, task.plan_digest, True, header.file_bytes, header_checksum, tensors)


def _checksum(tensor: TensorTask, file: int, memory: Bytes, path: Path) -> str:
    """Read the next tensor of a file. Returns its checksum. Raises CorruptFileError if a piece has another one."""
    pieces = [begun(tensor, piece) for piece in tensor.pieces if prod(piece.shape)]
    checksum = xxhash.xxh3_128()
    for offset, size in bands(in_bytes(tensor, tensor.shape, 1), len(memory)):
        band = memory[: prod(size)]
        _fill(file, band, path)
        checksum.update(band.data)
        for progress in pieces:
            where = overlap(progress, offset, size)
            if where is not None:
                progress.checksum.update(np.ascontiguousarray(band.reshape(size)[where]).reshape(-1).data)
    compare(tensor, pieces)
    return checksum.hexdigest()


def _fill(file: int, band: Bytes, path: Path) -> None:
    """Read the next bytes of a file. Raises CorruptFileError if it ends before."""
    rest = band.data
    while rest:
        count = os.readv(file, [rest])
        if not count:
            raise CorruptFileError(str(path), "it ends before its last tensor does")
        rest = rest[count:]
