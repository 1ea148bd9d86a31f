"""Looks whether all files of a checkpoint are of one save: their sizes can disprove it, times and names can hint at it.

Nothing in a `.distcp` file says of which save it is: neither an id nor a time is written into it. The file of another
step with the same layout has the same size and sound checksums, and when it was written is all that is left to see.
Source: torch.distributed.checkpoint.filesystem (files end with their last entry; StorageMeta stands in `.metadata`
alone); megatron.core.dist_checkpointing (`.metadata` is written when all ranks have written their files).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np

from shardmerge.common.errors import BadChunkError, CorruptFileError, ShardmergeError
from shardmerge.common.errors.wording import counted
from shardmerge.common.places import METADATA

from .chunks import ChunkTable, Integers
from .folder import FileState, Folder, iteration_in

CHUNKS = ".distcp"
SECOND = 1_000_000_000
SKEW = 60 * SECOND  # between the clocks of hosts that write to one file system
PAUSE = 3600 * SECOND  # no save and no copy writes nothing for so long


def wrong_sizes(
    folder: Folder, table: ChunkTable, ends: Integers, states: Mapping[str, FileState]
) -> Iterator[ShardmergeError]:
    """Yield a problem for each file of another size than its entries in `.metadata` have, optimizer state included.

    Args:
        folder: Of the checkpoint.
        table: The tensors of the model.
        ends: Where the last entry of each file of the table ends.
        states: Of the files that hold tensors of the model.
    """
    for number in np.unique(table.path).tolist():
        name, end = table.paths[number], int(ends[number])
        has = states[name].num_bytes
        beyond = np.flatnonzero((table.path == number) & (table.begin + table.length > has))
        if len(beyond):
            tensor = int(np.searchsorted(table.first, beyond[0], "right")) - 1
            reason = f"the file ends before it does, after {has:,} of {end:,} bytes"
            yield BadChunkError(table.keys[tensor], name, reason)
        elif has != end:
            reason = f"it has {has:,} bytes, and {end:,} by {METADATA}: it is cut, or of another save"
            yield CorruptFileError(str(folder.path / name), reason)


def hints(folder: Folder, saved_as: str | None, states: Mapping[str, FileState]) -> Iterator[str]:
    """Yield warnings that files may be of several saves, which renaming or copying may explain as well.

    Args:
        folder: Of the checkpoint.
        saved_as: The path that it was saved to, if `.metadata` tells.
        states: Of `.metadata` and all files that are read.
    """
    saved = iteration_in(saved_as) if saved_as else None
    if saved is not None and folder.iteration not in (None, saved):
        yield (
            f"{METADATA} in {folder.path} was saved as iteration {saved}: the folder was renamed, or the file is of "
            "another checkpoint"
        )
    states = {name: state for name, state in states.items() if name == METADATA or name.endswith(CHUNKS)}
    last = states[METADATA].written
    newer = sorted(name for name, state in states.items() if state.written > last + SKEW)
    if newer:
        yield (
            f"{counted(len(newer), 'file')} of {folder.path}, {newer[0]} first, {'was' if len(newer) == 1 else 'were'} "
            f"written after {METADATA}, which a save writes last: by a copy that did not keep times, or by another save"
        )
    in_order = sorted(states, key=lambda name: states[name].written)
    pauses = [
        (states[after].written - states[before].written, before, after)
        for before, after in pairwise(in_order)
    ]
    longest, before, after = max(pauses, default=(0, "", ""))
    if longest > PAUSE:
        yield (
            f"{before} in {folder.path} was written {longest / PAUSE:,.1f} hours before {after}, and nothing between "
            "them: they may be of two saves"
        )
