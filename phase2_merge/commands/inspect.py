"""The story of `inspect`: look at a dump, also one in progress, or at an output. Judges nothing, writes nothing.

Reads manifests of a dump or headers of an output, never a tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shardmerge.common import reference as references
from shardmerge.common.architectures import architecture_of, blueprint
from shardmerge.common.dtypes import DTYPES
from shardmerge.common.errors import (
    BadInputError,
    CorruptFileError,
    ShardmergeError,
    UnsupportedArchitectureError,
    not_a_directory,
)
from shardmerge.common.manifest import Manifest
from shardmerge.common.safetensors_header import Entry

from ..inspection.coverage import LayerCover, cover
from ..inspection.report import Inspection, Ranks
from ..inspection.unfinished import Unfinished, unfinished
from ..ledger import table
from ..ledger.names import FIRST_MTP, layer_of
from ..ledger.rank_directories import discover, holds_ranks
from ..ledger.read import readable
from ..ledger.table import Ledger
from ..output import journal
from ..proof import generations
from ..proof.config import settings

Array: TypeAlias = NDArray[Any]
# as the summary shows them; a manifest has an order of its own
MOST_SECONDS = 1e6  # that a stall can be believed to have lasted
INCOMPLETE = 1  # the exit code of --exit-code, as that of `diff`
AXES = ("pp", "tp", "cp", "dp", "ep", "etp", "edp")


def inspect(path: str | Path, *, exit_code: bool = False) -> Inspection:
    """Look at `path`: a dump, or a directory with safetensors.

    Of a dump, ranks whose manifest cannot be read are told among the problems, if any other can be.

    Args:
        path: What to look at.
        exit_code: Let the outcome say 1 if anything is missing or wrong, as far as is seen without reading tensors.

    Returns:
        What was seen.

    Raises:
        BadInputError: It is neither.
        MissingRecordError: It is an output of shardmerge that lost its index.
        ShardmergeError: What reading manifests and headers raises.
    """
    seen = _look(Path(path))
    complete, _ = seen.verdict()
    return replace(seen, exit_code=seen.exit_code or INCOMPLETE) if exit_code and not complete else seen


def _look(path: Path) -> Inspection:
    """Look at a dump or a directory."""
    if not path.is_dir():
        raise not_a_directory(path, "Give a dump or a Hugging Face directory.")
    if references.weight_files(path):
        return _output(path)
    rest = unfinished(path)
    if holds_ranks(path):
        return _dump(path, rest)
    if not rest.writers and not rest.problems:
        from . import records  # slow to import, and only this folder needs it

        records.refuse_lost_index(path)
        raise BadInputError(
            f"{path} holds no rank of a dump and no checkpoint", "Give what a dump or a merge wrote."
        )
    return Inspection(
        path=str(path),
        kind="dump",
        head={},
        topology={},
        ranks=Ranks(writers=rest.writers, failed=rest.failed),
        num_tensors=0,
        num_rectangles=0,
        bytes_by_dtype={},
        sizes={},
        drops={},
        layers=(),
        problems=rest.problems,
    )


def _dump(path: Path, rest: Unfinished) -> Inspection:
    ledger, damaged = _readable(path)
    manifests = [head.manifest for head in ledger.heads]
    first, rows = manifests[0], ledger.rows
    written = rows.written
    sizes = np.where(written, rows.end - rows.begin, 0)
    dimensions = first.facts.dimensions or {}
    drops: Counter[str] = Counter()
    for manifest in manifests:
        drops.update(manifest.drops)
    mixed = (*generations.disagreements(ledger.manifests()), *settings.disagreements(manifests))
    problems = [error.message() for error in mixed]
    problems += [f"rank {rank}: {why}" for rank, why in damaged.items()]
    problems += _other_sizes(ledger)
    shares = _shares(ledger)
    layers = cover(shares, dimensions.get("num_layers", 0), dimensions.get("num_experts", 0))
    return Inspection(
        path=str(path),
        kind="dump",
        head={"model": first.architecture, "run": first.run_id, "step": first.step, "attempt": first.attempt},
        topology={axis: len(first.groups[axis]) for axis in AXES if axis in first.groups},
        ranks=Ranks(first.world_size, tuple(rows.present.tolist()), rest.writers, rest.failed, damaged),
        num_tensors=len(np.unique(rows.name[written])),
        num_rectangles=int(written.sum()),
        bytes_by_dtype=_by_number(DTYPES, rows.dtype, sizes),
        sizes=dict.fromkeys((f"rank {rank}" for rank in rows.present.tolist()), 0)
        | {f"rank {rank}": size for rank, size in _summed(rows.rank, sizes).items()},
        drops=dict(drops),
        layers=layers,
        problems=(*problems, *rest.problems, *_undrawn(shares, layers)),
        stalls=dict(_stalls(manifests)),
        exit_code=CorruptFileError.exit_code if damaged else 0,
    )


def _readable(path: Path) -> tuple[Ledger, dict[int, str]]:
    """Return the ledger of all ranks that can be read, and what is wrong with the others."""
    directories = discover([path])
    try:
        return table.read(directories), {}
    except (ShardmergeError, OSError):
        some, damaged = readable(directories)
        if not some.complete:
            raise
        return table.read(some), damaged


def _other_sizes(ledger: Ledger) -> Iterator[str]:
    """Yield a line for each fragment that is not there, or has not the size that its manifest says."""
    for head in ledger.heads:
        for file in head.manifest.files:
            where = f"rank {head.manifest.rank}: {file.name}"
            try:
                found = (head.directory / file.name).stat().st_size
            except OSError as error:
                yield f"{where} cannot be read: {error.strerror or error}"
            else:
                if found != file.num_bytes:
                    yield f"{where} has {found:,} bytes, and its manifest says {file.num_bytes:,}"


def _stalls(manifests: Iterable[Manifest]) -> Iterator[tuple[str, float]]:
    """Yield for how many seconds the training of each rank stood still, as far as its manifest tells a number."""
    for manifest in manifests:
        seconds = manifest.statistics.get("seconds_stalled")
        if isinstance(seconds, int | float) and 0 <= seconds < MOST_SECONDS:
            yield f"rank {manifest.rank}", float(seconds)


def _shares(ledger: Ledger) -> dict[str, float]:
    """Return, by name, the covered elements of every tensor over all of its elements."""
    rows = ledger.rows
    written = np.flatnonzero(rows.written)
    ids = rows.name[written]
    covered = np.bincount(ids, _product(rows.local_shape, written), len(ledger.names))
    whole = np.zeros(len(ledger.names))
    whole[ids] = _product(rows.global_shape, written)
    return {
        ledger.names[tensor]: float(covered[tensor] / whole[tensor]) if whole[tensor] else 1.0
        for tensor in np.unique(ids).tolist()
    }


def _product(dims: tuple[Array, ...], rows: Array) -> Array:
    product: Array = np.prod([size[rows].astype(np.float64) for size in dims], axis=0)
    return product


def _by_number(names: tuple[str, ...], codes: Array, sizes: Array) -> dict[str, int]:
    return {names[code]: size for code, size in _summed(codes, sizes).items() if size}


def _summed(keys: Array, sizes: Array) -> dict[int, int]:
    """Return the sum of the sizes that have each key."""
    total = np.zeros(int(keys.max(initial=-1)) + 1, np.int64)
    np.add.at(total, keys, sizes)
    return {key: int(total[key]) for key in np.unique(keys).tolist()}


def _output(path: Path) -> Inspection:
    config = references.read_config(path, references.DOWNLOAD)
    shards = {file.name: references.read_header(file, path) for file in references.weight_files(path)}
    entries = [entry for header in shards.values() for entry in header.entries]
    dtypes: Counter[str] = Counter()
    for entry in entries:
        dtypes[entry.dtype] += entry.end - entry.begin
    names = Counter(entry.name for entry in entries)
    dimensions = _dimensions(config, {entry.name: entry for entry in entries})
    shares = {name: float(count) for name, count in names.items()}
    layers = cover(shares, dimensions.get("num_layers", 0), dimensions.get("num_experts", 0))
    return Inspection(
        path=str(path),
        kind="output",
        head={"model": architecture_of(config) or "unknown"},
        topology={},
        ranks=Ranks(),
        num_tensors=len(names),
        num_rectangles=len(entries),
        bytes_by_dtype=dict(dtypes),
        sizes={name: sum(e.end - e.begin for e in header.entries) for name, header in shards.items()},
        drops={},
        layers=layers,
        problems=(*journal.interrupted(path), *_held_twice(names), *_undrawn(names, layers)),
    )


def _dimensions(config: Mapping[str, Any], entries: Mapping[str, Entry]) -> Mapping[str, int]:
    """Return the dimensions that config.json says, none where there is no table of its architecture."""
    try:
        return blueprint(config, entries).dimensions
    except (UnsupportedArchitectureError, BadInputError):
        return {}


def _undrawn(names: Iterable[str], layers: tuple[LayerCover, ...]) -> Iterator[str]:
    """Yield a line if there are layers and no map of them."""
    far = max((number % FIRST_MTP for name in names if (number := layer_of(name)) is not None), default=None)
    if far is not None and not layers:
        yield f"no map is drawn: tensors are named by layers up to {far:,} and their experts, more than any model has"


def _held_twice(counts: Mapping[str, int]) -> Iterator[str]:
    for name, count in sorted(counts.items()):
        if count > 1:
            yield f"{name} is in {count} shards"
