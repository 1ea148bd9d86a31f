"""One rank of a dump, written from arrays: what `shardmerge dump` does once it knows the model, and without torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from shardmerge.phase1_dump.fragments.failed_ranks import forget_failure, record_failure
from shardmerge.phase1_dump.fragments.rank_directory import refuse_existing
from shardmerge.phase1_dump.fragments.write_rank import write_rank
from tests.dumps.dumps import dense_config, model_of
from tests.phase1_dump.fragments.without_torch import ArraySource, sources

RUN = "run"
MAX_FRAGMENT_BYTES = 1500


@cache
def source(rank: int) -> ArraySource:
    """One of two tensor-parallel ranks."""
    return sources(model_of(dense_config(layers=1)))[rank]


def dump_rank(out: Path, rank: int) -> None:
    """Write a rank, in the order of `phase1_dump.dump_model.dump`. Raises SystemExit if it fails."""
    forget_failure(out, rank)
    try:
        refuse_existing(out, rank)
        write_rank(source(rank), out, max_fragment_bytes=MAX_FRAGMENT_BYTES, check_replicas=True)
    except Exception as error:
        record_failure(out, rank, RUN, error)
        print(f"{type(error).__name__}: {error}")
        raise SystemExit(getattr(error, "exit_code", 1)) from error
