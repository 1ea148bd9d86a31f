"""Which parameters stay together in a share: the units of a plan, their sizes, and the digest of all that decides them.

Must not know files, nor who writes which share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import xxhash

from shardmerge.common import canonical_json, dtypes
from shardmerge.common.architectures import Blueprint, Claim, Layout, Tensor
from shardmerge.common.architectures.keys import is_mtp
from shardmerge.common.errors import (
    MismatchError,
    ShardmergeError,
    UnclaimedParameterError,
    UnsupportedCheckpointError,
)
from shardmerge.common.errors.several import raise_problems
from shardmerge.common.quantization.arithmetic import companions_of
from shardmerge.common.rectangle import Shape

from ..rectangles.layouts import LAYOUTS, pieces_of
from ..rectangles.layouts.box import Box
from ..torch_dist.folder import FileState, Folder
from .division import Share, Unit
from .keys import StoredKey
from .packing import Packing
from .run_config import RUN_CONFIG

SHOWN = 10
TOGETHER = (Layout.PART, Layout.PACKED)  # several parameters are one tensor, which is written by one share


@dataclass(slots=True)
class Units:
    """What no share may cut: units, the rows of their parameters, and these as columns."""

    units: list[Unit]
    rows: list[list[int]]
    columns: tuple[list[int], list[int], list[int], list[int]]
    names: list[str]
    keys: list[str]
    attentions: set[str]  # those with keys and values, as Megatron calls them


@dataclass(frozen=True, slots=True)
class Sizes:
    """Knows what tensors are written as, and so their sizes."""

    dtype_of: Callable[[Tensor], str]
    packing: Packing | None

    def written(self, claim: Claim, key: str, elements: int) -> tuple[int, str]:
        """Return how many bytes a parameter becomes, and what tells in which dtypes.

        Args:
            claim: Its row.
            key: Its canonical key.
            elements: How many it has.

        Returns:
            (bytes, names of its tensors, each with its dtype or format).
        """
        row = self.packing.row_of(key) if self.packing is not None else None
        total, names = 0, list[str]()
        for tensor in claim.tensors:
            dtype = self.dtype_of(tensor) if row is None else row.name
            names.append(f"{tensor.name} {dtype}")
            if row is None:
                shape = (elements,) if claim.row.layout in TOGETHER else tensor.shape
                total += dtypes.byte_size(dtype, shape)
            else:
                each = companions_of(tensor.name, tensor.shape, row)
                total += sum(dtypes.byte_size(kind, shape) for _, shape, kind in each)
        return total, " ".join(names)


def units_of(
    stored: Sequence[StoredKey],
    bound: Blueprint,
    sizes: Sizes,
    *,
    drop_mtp: bool,
    own_delta_nets: bool = False,
) -> Units:
    """Return the units of all parameters.

    Args:
        stored: By tensor of the checkpoint, how it holds parameters.
        bound: The table, bound to config.json.
        sizes: What tensors are written as.
        drop_mtp: Multi-token prediction is left out.
        own_delta_nets: Layers with Gated DeltaNets are known to be megatron-core's own.

    Returns:
        The units, in the order of the checkpoint.

    Raises:
        UnclaimedParameterError: no row claims or drops a parameter.
        MismatchError: a tensor has other dimensions than config.json gives it.
        UnsupportedCheckpointError: only the live model can explain the numbers of a parameter.
    """
    found = Units([], [], ([], [], [], []), [], [], set())
    number: dict[tuple[int, int, str], int] = {}
    unclaimed: list[ShardmergeError] = []
    for tensor, one in enumerate(stored):
        require_counts(one, bound)
        for place in one.places():
            key = one.canonical(place)
            if drop_mtp and is_mtp(key):
                continue
            claim = bound.claim(key)
            if claim is None:
                if bound.drop_reason(key) is None and len(unclaimed) < SHOWN:
                    shape, table = one.parameter_shape, bound.architecture.name
                    unclaimed.append(UnclaimedParameterError(key, shape, table, 0, bound.mtp_key))
                continue
            if not own_delta_nets:
                _require_known_order(claim, key)
            _require_fit(claim, one.parameter_shape, bound)
            written = sizes.written(claim, key, prod(one.parameter_shape))
            _add(found, number, claim, key, (tensor, *place), written)
    raise_problems(unclaimed)
    return found


def _require_known_order(claim: Claim, key: str) -> None:
    """Raise UnsupportedCheckpointError for a parameter whose numbers only the live model can explain."""
    row = claim.row
    if row.plain_norm or row.layout is Layout.GATED_QKV:
        what = "how its norm is stored" if row.plain_norm else "in which order its queries and gates lie"
        raise UnsupportedCheckpointError(
            key, f"no file of this checkpoint says {what}: {RUN_CONFIG} of Megatron-Bridge would"
        )


def require_counts(stored: StoredKey, bound: Blueprint) -> None:
    """Raise MismatchError unless first dimensions for layers and experts are as many as config.json has."""
    layers, experts = bound.dimensions["num_layers"], bound.dimensions.get("num_experts", 0)
    expected = (*((layers,) if stored.has_layers else ()), *((experts,) if stored.has_experts else ()))
    got = stored.shape[: stored.leading]
    if got != expected:
        raise MismatchError(
            stored.key,
            "layers and experts in the checkpoint",
            str(list(got)),
            f"{list(expected)} by config.json",
        )


def _require_fit(claim: Claim, shape: Shape, bound: Blueprint) -> None:
    """Raise MismatchError unless a parameter has the shape that config.json gives it."""
    origin = (0,) * len(shape)
    for _ in pieces_of(Box(shape, origin, shape), claim, bound.dimensions):
        pass


def _add(
    found: Units,
    number: dict[tuple[int, int, str], int],
    claim: Claim,
    key: str,
    row: tuple[int, ...],
    written: tuple[int, str],
) -> None:
    """Add a parameter to its unit."""
    tensors = claim.tensors
    together = claim.row.layout in TOGETHER
    layer = claim.layer if claim.layer is not None else (-1 if key.startswith("embedding.") else 1 << 30)
    expert = -1 if claim.expert is None or together else claim.expert
    unit = (layer, expert, "" if expert >= 0 else tensors[0].name)
    at = number.setdefault(unit, len(found.units))
    if at == len(found.units):
        found.units.append(Unit(unit, 0))
        found.rows.append([])
    num_bytes, names = written
    found.units[at] = Unit(unit, found.units[at].num_bytes + num_bytes)
    found.rows[at].append(len(found.columns[0]))
    for column, value in zip(found.columns, row, strict=True):
        column.append(value)
    found.names.append(names)
    found.keys.append(key)
    if LAYOUTS[claim.row.layout].is_attention:
        found.attentions.add(key.rpartition(".linear_qkv.")[0])


def digest_of(
    folder: Folder,
    states: Mapping[str, FileState],
    bound: Blueprint,
    shares: Sequence[Share],
    units: Units,
    order: Sequence[int],
) -> str:
    """Return a digest of everything that decides what a share holds, in which order and dtype.

    Sizes and times of the files are part of it: shares that were read before and after a change are of two attempts,
    which no merge puts together.

    Args:
        folder: Of the checkpoint.
        states: Of all files that are read.
        bound: The table, bound to config.json.
        shares: Of the plan.
        units: Of the plan.
        order: Of the units in the shares.

    Returns:
        32 hexadecimal digits.
    """
    checksum = xxhash.xxh3_128()
    files = [[name, state.num_bytes, state.written] for name, state in sorted(states.items())]
    said = [folder.digest, files, bound.architecture.name, bound.dimensions, [share.end for share in shares]]
    checksum.update(canonical_json.encode(said))
    for unit in order:
        for row in units.rows[unit]:
            checksum.update(f"{units.names[row]}\n".encode())
    return checksum.hexdigest()
