"""Writes several fragments at the same time, each in a thread of its own, and ends all of them if one fails.

A file system lets one writer at a time into a file, so several files are what makes fast storage fast. Must not know
what a fragment holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event

from ..source import Source
from .plan import PlannedFragment
from .writer import Progress, Written, write_fragment

STREAM_BYTES = 256 << 20  # what a further thread must have to write, to be worth its start
LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE")


class _Stopped(Exception):  # noqa: N818 - it is no fault of the fragment that ends by it
    """Another fragment failed."""


def streams_for(
    fragments: Sequence[PlannedFragment],
    most: int,
    environment: Mapping[str, str] = os.environ,
) -> int:
    """Return how many fragments to write at once: as many as this rank's share of the node's processors allows.

    Args:
        fragments: what is to be written.
        most: how many at most.
        environment: where the launcher says how many ranks a node has.

    Returns:
        At least 1.
    """
    told = (environment.get(name, "") for name in LOCAL_SIZES)
    ranks = next((int(size) for size in told if size.isdecimal() and int(size)), 1)
    processors = len(os.sched_getaffinity(0)) // ranks
    total = sum(fragment.header.file_bytes for fragment in fragments)
    return max(1, min(most, len(fragments), processors, total // STREAM_BYTES))


def write_fragments(
    folder: Path,
    fragments: Sequence[PlannedFragment],
    source: Source,
    progress: Progress,
    streams: int,
    *,
    past_the_cache: bool = False,
) -> list[list[Written]]:
    """Write and fsync all files.

    Args:
        folder: where; none of the files may be there yet.
        fragments: the files.
        source: what delivers the holdings' bytes; with more than one stream it is read by that many threads.
        progress: called with the number of bytes each time some are handed to a writing thread.
        streams: how many are written at the same time; with 1 no thread is started.
        past_the_cache: write whole pages past the page cache.

    Returns:
        For each fragment what was learnt about each of its holdings.

    Raises:
        OSError: a file could not be written; nothing is cleaned up here.
        RuntimeError: the source did not deliver what a fragment holds.
    """
    if streams == 1:
        return [
            write_fragment(folder, fragment, source, progress, past_the_cache=past_the_cache)
            for fragment in fragments
        ]
    stop = Event()
    with ThreadPoolExecutor(streams, "fragment") as pool:
        try:
            writing = [
                pool.submit(
                    write_fragment,
                    folder,
                    fragment,
                    source,
                    _until(stop, progress),
                    streams,
                    past_the_cache=past_the_cache,
                )
                for fragment in fragments
            ]
            wait(writing, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    return _results(writing)


def _until(stop: Event, progress: Progress) -> Callable[[int], None]:
    def advance(num_bytes: int) -> None:
        if stop.is_set():
            raise _Stopped
        progress(num_bytes)

    return advance


def _results(writing: Sequence[Future[list[Written]]]) -> list[list[Written]]:
    """Return what the fragments gave, or raise what the first of those that failed by themselves raised."""
    for future in writing:
        error = None if future.cancelled() else future.exception()
        if error is not None and not isinstance(error, _Stopped):
            raise error
    return [future.result() for future in writing]
