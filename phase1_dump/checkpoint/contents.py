"""What the description of a checkpoint says and a plan needs: the tensors of the model with their chunks, proven whole.

A million chunks take minutes and half a gigabyte to read: `contents_file` writes down what is kept of them.
Must not know who reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from shardmerge.common.architectures import Blueprint
from shardmerge.common.architectures.composites import VISION
from shardmerge.common.errors import ShardmergeError, UnsupportedCheckpointError
from shardmerge.common.errors.several import raise_problems
from shardmerge.common.places import METADATA

from ..torch_dist.chunks import ChunkTable, Integers, table_of
from ..torch_dist.folder import Folder
from ..torch_dist.metadata import Columns, Described, read_metadata
from .keys import is_of_the_model, refusal, without_prefix
from .numbers import KINDS
from .quantizers import Quantizers, find_quantizers

TRAINED = (
    "If training did not change it, or what it learned may be lost: drop_vision=True (--drop-vision), and in the merge "
    "--graft vision."
)


@dataclass(frozen=True, eq=False)
class Contents:
    """What a checkpoint holds of a model.

    Attributes:
        table: Its tensors and their chunks.
        ends: How large each file of the table is by the entries in it, those of optimizers too.
        saved_as: The path that it was saved to, None if that is not told.
        quantizers: Those of Model-Optimizer, None if it has none.
        beside: How many tensors beside the language model are left out.
    """

    table: ChunkTable
    ends: Integers
    saved_as: str | None
    quantizers: Quantizers | None = None
    beside: int = 0


def contents_of(folder: Folder, bound: Blueprint, *, drop_mtp: bool, drop_vision: bool) -> Contents:
    """Read the description of a checkpoint.

    Args:
        folder: Where it lies.
        bound: The table of the architecture.
        drop_mtp: Leave out quantizers of multi-token prediction.
        drop_vision: Leave out what stands beside the language model.

    Returns:
        What it says.

    Raises:
        ShardmergeError: the checkpoint is damaged, not whole, or holds what cannot be exported from disk.
        OSError: a file cannot be read.
    """
    described = read_metadata(folder.open_metadata, folder.metadata.num_bytes, str(folder.path / METADATA))
    raise_problems(_refusals(folder, [*described.tensors, *described.objects]))
    quantizers = find_quantizers(folder, described, bound, drop_mtp=drop_mtp)
    beside = _left_beside(folder, described, bound, drop_vision=drop_vision)
    table = table_of(described, lambda key: is_of_the_model(key) and key not in beside)
    raise_problems(_unreadable(folder, table))
    return Contents(table, _ends(described.columns), described.saved_as, quantizers, len(beside))


def _ends(columns: Columns) -> Integers:
    """Return where the last entry of each file ends."""
    ends = np.zeros(len(columns.paths.of), np.int64)
    each = (np.asarray(column, np.int64) for column in (columns.path, columns.begin, columns.length))
    path, begin, length = each
    np.maximum.at(ends, path, begin + length)
    return ends


def _left_beside(
    folder: Folder, described: Described, bound: Blueprint, *, drop_vision: bool
) -> frozenset[str]:
    """Return the keys of what stands beside the language model.

    A live model says what was frozen, and then leaves it out; no file does, so that here it must be chosen.
    """
    keys = [key for key in described.tensors if is_of_the_model(key)]
    beside = frozenset(key for key in keys if bound.drop_reason(without_prefix(key, bound)) == VISION)
    if beside and not drop_vision:
        raise UnsupportedCheckpointError(
            str(folder.path),
            f"{min(beside)} stands beside the language model, which alone is written",
            TRAINED,
        )
    return beside


def _refusals(folder: Folder, keys: Sequence[str]) -> Iterator[ShardmergeError]:
    """Yield a problem for each kind of keys that cannot be exported from disk, naming the first."""
    seen: set[str] = set()
    for key in keys:
        what = refusal(key) if is_of_the_model(key) else None
        if what is not None and what not in seen:
            seen.add(what)
            yield UnsupportedCheckpointError(str(folder.path), f"{key} is of {what}")


def _unreadable(folder: Folder, table: ChunkTable) -> Iterator[ShardmergeError]:
    if not table.keys:
        yield UnsupportedCheckpointError(str(folder.path), "it holds no parameters of a model")
    for key, dtype in zip(table.keys, table.dtypes, strict=True):
        if dtype not in KINDS:
            yield UnsupportedCheckpointError(
                str(folder.path), f"{key} has dtype {dtype}, and {', '.join(KINDS)} are supported"
            )
