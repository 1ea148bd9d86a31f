"""The second half of phase one: plans, writes, lists and names everything that a rank owns.

Must not know what kind of source the bytes come from.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from shardmerge.common import durable
from shardmerge.common import manifest as manifests
from shardmerge.common.command.progress import Progress
from shardmerge.common.manifest import Manifest
from shardmerge.common.places import MANIFEST

from ..source import Source
from .manifest import manifest_of
from .plan import PlannedFragment, plan_fragments
from .rank_directory import building
from .replicas import hashed, owned, replicas_of
from .writer import write_fragment

MAX_FRAGMENT_BYTES = 5_000_000_000


def write_rank(
    source: Source,
    out: Path,
    *,
    max_fragment_bytes: int = MAX_FRAGMENT_BYTES,
    check_replicas: bool = False,
    quiet: bool = False,
    advance: Callable[[int], None] | None = None,
) -> Manifest:
    """Write what a source owns to `out/rank-NNNNN`: fragments, then the manifest, under a temporary name.

    Args:
        source: everything that must be known about this rank.
        out: the dump, shared by all ranks.
        max_fragment_bytes: size of a fragment file; a larger tensor has a file of its own.
        check_replicas: also record the checksums of what this rank holds and another one writes.
        quiet: show no progress.
        advance: called with numbers of bytes that are written, by which somebody else shows progress.

    Returns:
        The manifest, which is the mark that the rank is complete.

    Raises:
        OSError: something could not be written; the temporary folder is removed.
        RuntimeError: the source does not deliver what it holds; the temporary folder is removed.
    """
    rank = source.world.rank
    fragments = plan_fragments(owned(source.holdings, rank), max_fragment_bytes)
    replicas = replicas_of(source) if check_replicas else ()
    progress = _progress(fragments, rank, quiet=quiet)
    shown = progress.advance if advance is None else advance
    source.settle()
    with building(out, rank) as partial:
        written = [write_fragment(partial, fragment, source, shown) for fragment in fragments]
        manifest = manifest_of(source, fragments, written, hashed(replicas, source))
        durable.write_file(partial / MANIFEST, manifests.encode(manifest))
    progress.close()
    return manifest


def _progress(fragments: Sequence[PlannedFragment], rank: int, *, quiet: bool) -> Progress:
    """Return what shows the progress. Only the first rank of a node prints it."""
    speaks = not quiet and os.environ.get("LOCAL_RANK", str(rank)) == "0"
    total = sum(fragment.header.file_bytes for fragment in fragments)
    return Progress(f"rank {rank} dumps", total, sys.stderr if speaks else None)
