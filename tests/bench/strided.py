"""Scale tensors cut by columns, four bytes a run, beside the inner loop of torch.distributed.checkpoint's consolidator.

Ours reads the pieces, compares their checksums, writes a shard and waits until it is on the disk. The peer gets its
pieces in memory and only places them. Raises RuntimeError if both do not make the same bytes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import xxhash

from shardmerge.common import safetensors_header
from shardmerge.phase2_merge.assembly.assemble import assemble
from shardmerge.phase2_merge.assembly.task import ShardTask, SourcePiece, TensorTask

from .line import Bound, Line, times_as_fast
from .rounds import COLD, WARM, Contestant, remove, take_turns
from .watching import Ran

ROWS, COLUMNS, TENSORS = 1 << 16, 4, 8
ELEMENT_BYTES = 4
PIECE_BYTES = ROWS * ELEMENT_BYTES
BOUND = Bound(100, "at least 100", at_least=True)
OURS, PEER = "assemble", "the loop"


def lines(folder: Path) -> Iterator[Line]:
    """Warm and cold; the peer's pieces are in memory both times."""
    here = folder / "strided"
    task = _task(here / "pieces")
    contestants = {
        OURS: Contestant(here / "pieces", partial(_assembled, task)),
        PEER: Contestant(here / "pieces", partial(_looped, task)),
    }
    _compare(task, here)
    what = f"{TENSORS} scales [{ROWS}, {COLUMNS}] F32 cut into {COLUMNS} columns"
    for cache in (WARM, COLD):
        turns = take_turns(cache, here, contestants)
        value = 1 / turns.ratio(OURS, PEER)
        peer = f"inner loop of torch.distributed.checkpoint: {turns.told(PEER)}"
        yield Line(what, cache, turns.told(OURS), peer, times_as_fast(value), value, BOUND)
    remove(here)


def _task(folder: Path) -> ShardTask:
    """Write a file for every rank: its column of every tensor, one behind the other."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    pieces: dict[int, list[SourcePiece]] = {number: [] for number in range(TENSORS)}
    for rank in range(COLUMNS):
        path = folder / f"{rank}.bin"
        data = [generator.bytes(PIECE_BYTES) for _ in range(TENSORS)]
        path.write_bytes(b"".join(data))
        for number, each in enumerate(data):
            digest = xxhash.xxh3_128_hexdigest(each)
            pieces[number].append(
                SourcePiece(str(path), rank, number * PIECE_BYTES, (0, rank), (ROWS, 1), digest)
            )
    tensors = (TensorTask(f"{n}.scale", "F32", (ROWS, COLUMNS), tuple(of)) for n, of in pieces.items())
    return ShardTask("model.safetensors", tuple(tensors), check=True)


def _assembled(task: ShardTask, out: Path) -> Ran:
    out.mkdir()
    began = time.perf_counter()
    assemble(task, out)
    return Ran(time.perf_counter() - began)


def _looped(task: ShardTask, _out: Path) -> Ran:
    """Only the loop is timed."""
    given = [[(piece, _read(piece)) for piece in tensor.pieces] for tensor in task.tensors]
    began = time.perf_counter()
    for pieces in given:
        _placed(pieces)
    return Ran(time.perf_counter() - began)


def _placed(pieces: list[tuple[SourcePiece, bytes]]) -> memoryview:
    from torch.distributed.checkpoint._consolidate_hf_safetensors import _write_sub_tensor_to_file_optimized

    tensor = memoryview(bytearray(ROWS * COLUMNS * ELEMENT_BYTES))
    for piece, data in pieces:
        offset, shape = list(piece.offset), list(piece.shape)
        _write_sub_tensor_to_file_optimized(tensor, data, ELEMENT_BYTES, [ROWS, COLUMNS], offset, shape)
    return tensor


def _read(piece: SourcePiece) -> bytes:
    with open(piece.path, "rb") as file:
        return os.pread(file.fileno(), PIECE_BYTES, piece.begin)


def _compare(task: ShardTask, here: Path) -> None:
    """One tensor of both. It also imports torch before anything is timed."""
    assemble(task, here)
    path = here / task.name
    first = safetensors_header.read(path)
    data = path.read_bytes()[first.data_offset :][: ROWS * COLUMNS * ELEMENT_BYTES]
    if data != _placed([(piece, _read(piece)) for piece in task.tensors[0].pieces]):
        raise RuntimeError("the consolidator's inner loop and assemble() make different bytes")
