"""Plans a dump of a checkpoint: what it holds, claimed by the table, and the shares that are dumped as ranks.

A function of checkpoint, reference and options alone, so that any number of processes comes to the same plan.
Parameters are kept as columns, and described again when their share is written. No number is read.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TypeAlias

from shardmerge.common import reference
from shardmerge.common.architectures import Architecture, Blueprint, Tensor, blueprint
from shardmerge.common.errors import (
    ChangedCheckpointError,
    UnsupportedCheckpointError,
)
from shardmerge.common.errors.several import raise_problems
from shardmerge.common.places import METADATA
from shardmerge.common.reference import Reference

from ..rectangles.bound_table import bound_table
from ..rectangles.claims import Claimed
from ..rectangles.experts import respelled
from ..rectangles.packed_pieces import Packed
from ..rectangles.parameter import Parameter
from ..rectangles.written_dtypes import dtype_chooser
from ..torch_dist.chunks import ChunkTable
from ..torch_dist.folder import FileState, Folder, find, iteration_in
from ..torch_dist.one_save import hints, wrong_sizes
from .chunk_files import StoredPart
from .contents import Contents, contents_of
from .division import Share, distributed
from .keys import NONE, Place, StoredKey, stored_key
from .packing import Packing, PackingOf
from .quantizers import Quantizers, module_of, require_all_claimed
from .run_config import Recorded, file_there, recorded_in
from .units import Sizes, digest_of, require_counts, units_of


@dataclass(frozen=True, slots=True)
class Options:
    """How a checkpoint is to be read, as the caller of `dump_checkpoint` chose.

    dtype_from_reference: let the reference narrow tensors that are otherwise kept float32.
    drop_mtp: leave out multi-token prediction.
    drop_vision: leave out what stands beside the language model, though training may have changed it.
    max_share_bytes: size of a share; None chooses by the size of the model.
    experts: how routed experts are spelled; None lets the reference decide.
    architecture: a table of the caller's own, or where it is; None for the one that is known.
    """

    dtype_from_reference: bool = False
    drop_mtp: bool = False
    max_share_bytes: int | None = None
    experts: str | None = None
    architecture: str | Architecture | None = None
    drop_vision: bool = False


ReadContents: TypeAlias = Callable[[Folder, Blueprint, Options], Contents]


@dataclass(frozen=True, eq=False)
class Plan:
    """What becomes of a checkpoint.

    Attributes:
        folder: Where it lies.
        states: Sizes and times of all files that are read.
        table: Its tensors and their chunks.
        stored: By tensor of the table, how it holds parameters.
        known: The reference.
        blueprint: The table of its architecture.
        params_dtype: What it was trained in.
        options: How it is read.
        shares: What is dumped as rank 0, 1, ...
        columns: Of each parameter, in the order of shares: its tensor, layer, expert and half.
        packing: What packs weights that have quantizers, None for a checkpoint that has none.
        digest: Of everything that decides what a share holds.
        iteration: Of the training, None if no name tells.
        warnings: Signs that files are of several saves.
        recorded: What training recorded of the model's settings.
        beside: How many tensors beside the language model are left out.
    """

    folder: Folder
    states: dict[str, FileState]
    table: ChunkTable
    stored: tuple[StoredKey, ...]
    known: Reference
    blueprint: Blueprint
    params_dtype: str
    options: Options
    shares: tuple[Share, ...]
    columns: tuple[array[int], array[int], array[int], array[int]]
    packing: Packing | None
    digest: str
    iteration: int | None
    warnings: tuple[str, ...]
    recorded: Recorded
    beside: int

    @cached_property
    def dtype_of(self) -> Callable[[Tensor], str]:
        """The function that chooses the dtype of each tensor."""
        return dtype_chooser(
            self.known, self.params_dtype, dtype_from_reference=self.options.dtype_from_reference
        )

    def parameters(self, share: int) -> Iterator[Parameter]:
        """Yield the parameters of a share."""
        rows = self.shares[share]
        for row in range(rows.first, rows.end):
            tensor, layer, expert, half = (column[row] for column in self.columns)
            yield _parameter(tensor, self.stored[tensor], Place(layer, expert, half), self.table.keys[tensor])

    def files_of(self, share: int) -> tuple[str, ...]:
        """Return the names of the files that a share is read from."""
        rows = self.shares[share]
        return self.table.files_of(sorted(set(self.columns[0][rows.first : rows.end])))


def read_contents(folder: Folder, bound: Blueprint, options: Options) -> Contents:
    """Read what a checkpoint holds.

    Args:
        folder: Where it lies.
        bound: The table of the architecture.
        options: How it is to be read.

    Returns:
        What it holds.

    Raises:
        ShardmergeError: it is damaged, not whole, or holds what cannot be exported from disk.
        OSError: a file cannot be read.
    """
    return contents_of(folder, bound, drop_mtp=options.drop_mtp, drop_vision=options.drop_vision)


def plan_of(
    checkpoint: Path,
    hf_reference: Path,
    options: Options,
    packing_of: PackingOf | None = None,
    read: ReadContents = read_contents,
) -> Plan:
    """Plan the dump of a checkpoint.

    Args:
        checkpoint: Its directory.
        hf_reference: Hugging Face directory with config.json.
        options: How it is to be read.
        packing_of: Makes what packs weights with quantizers. None refuses them.
        read: Returns what the checkpoint holds, read now or by another process before.

    Returns:
        The plan.

    Raises:
        ShardmergeError: the checkpoint, its reference or both cannot be dumped; any of the tree.
    """
    folder = find(checkpoint)
    known = reference.read(hf_reference)
    bound = bound_table(known, options.architecture, options.experts)
    contents = read(folder, bound, options)
    table, quantizers = contents.table, contents.quantizers
    states = _states(folder, table, quantizers)
    recorded = recorded_in(folder.path, drop_mtp=options.drop_mtp)
    _require_norms_as_read(folder, recorded, bound)
    raise_problems(wrong_sizes(folder, table, contents.ends, states))
    stored = tuple(stored_key(key, shape, bound) for key, shape in zip(table.keys, table.shapes, strict=True))
    packing = _packing(folder, quantizers, stored, packing_of)
    if spelled := respelled(list(_first_of_each(stored, bound, packing)), bound, options.experts):
        bound = blueprint(known.config, known.tensors, bound.experts | spelled, bound.architecture)
    params_dtype = _params_dtype(table)
    dtype_of = dtype_chooser(known, params_dtype, dtype_from_reference=options.dtype_from_reference)
    units = units_of(
        stored,
        bound,
        Sizes(dtype_of, packing),
        drop_mtp=options.drop_mtp,
        own_delta_nets=recorded.own_delta_nets,
    )
    if quantizers is not None:
        require_all_claimed(quantizers, units.keys, units.attentions)
    shares, order = distributed(units.units, list(map(len, units.rows)), options.max_share_bytes)
    rows = [row for unit in order for row in units.rows[unit]]
    columns = tuple(array("i", [column[row] for row in rows]) for column in units.columns)
    digest = digest_of(folder, states, bound, shares, units, order)
    return Plan(
        folder,
        states,
        table,
        stored,
        known,
        bound,
        params_dtype,
        options,
        shares,
        (columns[0], columns[1], columns[2], columns[3]),
        packing,
        digest,
        iteration_in(contents.saved_as or "") if folder.iteration is None else folder.iteration,
        tuple(hints(folder, contents.saved_as, states)),
        recorded,
        contents.beside,
    )


def _states(folder: Folder, table: ChunkTable, quantizers: Quantizers | None) -> dict[str, FileState]:
    """Return the states of all files that are read. Raises ChangedCheckpointError if `.metadata` is another one now."""
    paths = {METADATA, *(table.paths[number] for number in set(table.path.tolist()))}
    paths |= quantizers.paths if quantizers is not None else set()
    states = folder.states(paths | {file_there(folder.path)} - {""})
    if states[METADATA] != folder.metadata:
        raise ChangedCheckpointError(str(folder.path), f"{METADATA} was written to, or replaced")
    return states


def _require_norms_as_read(folder: Folder, recorded: Recorded, bound: Blueprint) -> None:
    """Raise UnsupportedCheckpointError if norms were recorded as stored otherwise than readers take them.

    No choice of the merge could put that right. The route of a live model adds or subtracts the 1.
    """
    setting = "zero_centred_norms"
    stored, read = (recorded.settings or {}).get(setting), bound.says(setting).value
    if stored is not None and stored != read:
        kinds = ("as they are", "minus one")
        raise UnsupportedCheckpointError(
            str(folder.path),
            f"{recorded.file} says that norms are stored {kinds[stored]} (layernorm_zero_centered_gamma), and readers "
            f"of {bound.architecture.name} take them {kinds[not stored]}",
        )


def _packing(
    folder: Folder,
    quantizers: Quantizers | None,
    stored: Sequence[StoredKey],
    packing_of: PackingOf | None,
) -> Packing | None:
    """Return what packs the weights of a checkpoint, None if it has no quantizers."""
    if quantizers is None:
        return None
    if packing_of is None:
        raise UnsupportedCheckpointError(str(folder.path), "it has quantizers of Model-Optimizer")
    parts: dict[str, list[StoredPart]] = defaultdict(list)
    for tensor, one in enumerate(stored):
        module = module_of(one.key)
        if module is not None and not one.leading:
            parts[module].append(StoredPart(tensor, (), 0, one.shape))
    return packing_of(quantizers, parts.__getitem__)


def _first_of_each(
    stored: Sequence[StoredKey], bound: Blueprint, packing: Packing | None
) -> Iterator[Claimed]:
    """Yield the first parameter of each stored tensor that the table claims, and whether it is to be packed."""
    for tensor, one in enumerate(stored):
        require_counts(one, bound)
        place = next(iter(one.places()), None)
        claim = bound.claim(one.canonical(place)) if place is not None else None
        if place is not None and claim is not None:
            parameter = _parameter(tensor, one, place, one.key)
            row = packing.row_of(parameter.key) if packing is not None else None
            yield Claimed(parameter, claim, None if row is None else Packed(row, {}, {}))


def _params_dtype(table: ChunkTable) -> str:
    """Return the dtype of most elements of matrices: vectors may be kept in another."""
    counts: Counter[str] = Counter()
    for dtype, shape in zip(table.dtypes, table.shapes, strict=True):
        counts[dtype] += prod(shape) if len(shape) > 1 else 0
    return max(sorted(counts), key=lambda dtype: counts[dtype])


def _parameter(tensor: int, stored: StoredKey, place: Place, name: str) -> Parameter:
    """Return the parameter at a place of a stored tensor. It is whole: chunks are put together when they are read."""
    shape = stored.parameter_shape
    leading = tuple(at for at in (place.layer, place.expert) if at != NONE)
    part = StoredPart(tensor, leading, shape[0] * place.half if place.half > 0 else 0, shape)
    origin = (0,) * len(shape)
    where = f"{name}{list(leading)}" if leading else name
    return Parameter(stored.canonical(place), where, part, shape, origin, shape, shape, origin, 0)
