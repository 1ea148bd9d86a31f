"""The second half of phase one: plans, writes, lists and names everything that a rank owns.

Must not know what kind of source the bytes come from.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shardmerge.common import durable
from shardmerge.common import manifest as manifests
from shardmerge.common.command.progress import Progress
from shardmerge.common.manifest import Manifest
from shardmerge.common.places import MANIFEST

from ..source import Source
from .at_once import streams_for, write_fragments
from .manifest import manifest_of
from .plan import FILES_AT_ONCE, PlannedFragment, plan_fragments
from .rank_directory import building
from .replicas import Replica, hashed, owned, replicas_of

MAX_FRAGMENT_BYTES = 5_000_000_000


@dataclass(frozen=True, slots=True, eq=False)
class RankPlan:
    """Everything that a rank reads: for the files that it writes, and to hash what another rank writes."""

    fragments: tuple[PlannedFragment, ...]
    replicas: tuple[Replica, ...] = ()

    @property
    def num_bytes(self) -> int:
        """How many bytes of files there will be, headers included."""
        return sum(fragment.header.file_bytes for fragment in self.fragments)


def plan_rank(
    source: Source, *, max_fragment_bytes: int, check_replicas: bool, at_once: int = FILES_AT_ONCE
) -> RankPlan:
    """Decide what a rank writes and hashes, before a byte is read.

    Args:
        source: everything that must be known about this rank.
        max_fragment_bytes: size of a fragment file; a larger tensor has a file of its own.
        check_replicas: also hash what this rank holds and another one writes.
        at_once: how many files should be written at the same time.

    Returns:
        The plan, with holdings of the source.
    """
    fragments = plan_fragments(owned(source.holdings, source.world.rank), max_fragment_bytes, at_once)
    return RankPlan(fragments, replicas_of(source) if check_replicas else ())


def write_rank(
    source: Source,
    out: Path,
    *,
    max_fragment_bytes: int = MAX_FRAGMENT_BYTES,
    check_replicas: bool = False,
    quiet: bool = False,
    advance: Callable[[int], None] | None = None,
    most_streams: int = FILES_AT_ONCE,
    past_the_cache: bool = False,
) -> Manifest:
    """Write what a source owns to `out/rank-NNNNN`: fragments, then the manifest, under a temporary name.

    Args:
        source: everything that must be known about this rank.
        out: the dump, shared by all ranks.
        max_fragment_bytes: size of a fragment file; a larger tensor has a file of its own.
        check_replicas: also record the checksums of what this rank holds and another one writes.
        quiet: show no progress.
        advance: called with numbers of bytes that are written, by which somebody else shows progress.
        most_streams: how many streams of the source may be read at once.
        past_the_cache: write whole pages past the page cache, as of a source that is itself larger than memory.

    Returns:
        The manifest, which is the mark that the rank is complete.

    Raises:
        OSError: something could not be written; the temporary folder is removed.
        RuntimeError: the source does not deliver what it holds; the temporary folder is removed.
    """
    plan = plan_rank(
        source,
        max_fragment_bytes=max_fragment_bytes,
        check_replicas=check_replicas,
        at_once=most_streams,
    )
    source.settle()
    return write_planned(
        source,
        plan,
        out,
        streams_for(plan.fragments, most_streams),
        quiet=quiet,
        advance=advance,
        past_the_cache=past_the_cache,
    )


def write_planned(
    source: Source,
    plan: RankPlan,
    out: Path,
    streams: int = 1,
    *,
    quiet: bool = False,
    advance: Callable[[int], None] | None = None,
    past_the_cache: bool = False,
) -> Manifest:
    """Write a plan to `out/rank-NNNNN`. The source must have settled.

    Args:
        source: delivers the bytes of the plan's holdings.
        plan: what to write and what to hash.
        out: the dump, shared by all ranks.
        streams: how many fragments are written at the same time.
        quiet: show no progress.
        advance: called with numbers of bytes that are written, by which somebody else shows progress.
        past_the_cache: write whole pages past the page cache.

    Returns:
        The manifest, which is the mark that the rank is complete.

    Raises:
        OSError: something could not be written; the temporary folder is removed.
        RuntimeError: the source does not deliver what it holds; the temporary folder is removed.
    """
    rank = source.world.rank
    progress = _progress(plan.num_bytes, rank, quiet=quiet)
    with building(out, rank) as partial:
        written = write_fragments(
            partial,
            plan.fragments,
            source,
            advance or progress.advance,
            streams,
            past_the_cache=past_the_cache,
        )
        replicas = hashed(plan.replicas, source)
        manifest = manifest_of(source, plan.fragments, written, replicas)
        durable.write_file(partial / MANIFEST, manifests.encode(manifest))
    progress.close()
    return manifest


def _progress(num_bytes: int, rank: int, *, quiet: bool) -> Progress:
    """Return what shows the progress. Only the first rank of a node prints it."""
    speaks = not quiet and os.environ.get("LOCAL_RANK", str(rank)) == "0"
    return Progress(f"rank {rank} dumps", num_bytes, sys.stderr if speaks else None)
