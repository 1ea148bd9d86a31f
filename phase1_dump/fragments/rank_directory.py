"""The directory of one rank: built under a temporary name, made durable, renamed when it is complete.

A rank that a killed job left unfinished begins anew; one that is complete is refused.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from shardmerge.common import durable
from shardmerge.common.errors import OutputExistsError
from shardmerge.common.places import rank_name, rank_partial

from .failed_ranks import forget_failure


def refuse_existing(out: Path, rank: int) -> None:
    """Raise OutputExistsError if this rank was dumped here before: a live dump never replaces single ranks."""
    if (out / rank_name(rank)).exists():
        raise OutputExistsError(str(out / rank_name(rank)), "this rank was dumped there before")


@contextlib.contextmanager
def building(out: Path, rank: int) -> Iterator[Path]:
    """Yield a fresh folder that becomes `out/rank-NNNNN` if the block ends well, and is removed if it does not."""
    out.mkdir(parents=True, exist_ok=True)
    final, partial = out / rank_name(rank), rank_partial(out, rank)
    shutil.rmtree(partial, ignore_errors=True)  # what a killed attempt of this rank left
    partial.mkdir()
    try:
        yield partial
        durable.sync_folder(partial)
        os.rename(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    durable.sync_folder(out)
    forget_failure(out, rank)
