"""The task of a worker: a shard, the tensors in it, and the pieces of files that each is made of.

Plain values that are pickled to other processes and hosts, so they name files by path and hold no ledger and no Arrow.
"""

from __future__ import annotations

from dataclasses import dataclass

from shardmerge.common.rectangle import Shape


@dataclass(frozen=True, slots=True)
class SourcePiece:
    """A rectangle of a tensor and where its bytes are: in file `path`, contiguous from byte `begin`.

    `offset` and `shape` place it in the tensor, in elements. `rank` wrote it, None if it is of the reference.
    `xxh3_128` is the hexadecimal checksum of its bytes.
    """

    path: str
    rank: int | None
    begin: int
    offset: Shape
    shape: Shape
    xxh3_128: str


@dataclass(frozen=True, slots=True)
class TensorTask:
    """A tensor and the pieces that tile it. `dtype` is spelt as safetensors spells it."""

    name: str
    dtype: str
    shape: Shape
    pieces: tuple[SourcePiece, ...]


@dataclass(frozen=True, slots=True)
class ShardTask:
    """A shard: its file name and its tensors in the order of their bytes. `check`: compare the checksum of each piece.

    `plan_digest` goes into the receipt, so that a later merge knows whether the shard is of its plan.
    """

    name: str
    tensors: tuple[TensorTask, ...]
    check: bool
    plan_digest: str = ""
