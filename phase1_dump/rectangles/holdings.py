"""What a rank holds: rectangles of Hugging Face tensors, each put together from boxes of local parameters.

Pieces of one tensor are joined into as few rectangles as possible: all of them if they fill their bounding box,
else runs of rows. Knows geometry and which tensor lies where; copies nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch

from shardmerge.common.architectures import Blueprint, Claim, Layout, Tensor
from shardmerge.common.errors import OverlapError, UnclaimedParameterError
from shardmerge.common.quantization.rows import Encoding
from shardmerge.common.rectangle import Rectangle, Shape, place

from ..quantization.derived import Packed, Readable
from ..sources.parameters import Parameter
from ..sources.world import World
from .layouts import Box, pieces_of
from .packed_pieces import Stored, packed_pieces, packed_scalars, scalar


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """`shape` elements at `source` of a live or derived tensor, bound for `offset` of the Hugging Face tensor."""

    data: Readable
    source: Shape
    offset: Shape
    shape: Shape


@dataclass(frozen=True, slots=True, eq=False)
class Holding:
    """A rectangle this rank holds, the parts it is made of, and the global ranks that hold the same."""

    rectangle: Rectangle
    parts: tuple[Part, ...]
    replicas: tuple[int, ...]
    encoding: Encoding = Encoding.FLOAT
    is_scale: bool = False


Held = dict[tuple[Stored, tuple[int, ...]], list[Part]]  # by tensor and the ranks that hold the same of it


@dataclass(frozen=True, slots=True, eq=False)
class Claimed:
    """A parameter, the row of the table that claims it, and the packed form it is written in if it has one."""

    parameter: Parameter
    claim: Claim
    packed: Packed | None = None
    has_quantizer: bool = False


def claim_all(
    parameters: Iterable[Parameter], blueprint: Blueprint, rank: int
) -> tuple[list[Claimed], dict[str, int]]:
    """Every parameter with its row, and counts of what is dropped of parameters or with them, by reason.

    Raises UnclaimedParameterError for a parameter that no row claims or drops.
    """
    claimed, drops = [], defaultdict[str, int](int)
    for parameter in parameters:
        claim, reason = blueprint.claim(parameter.key), blueprint.drop_reason(parameter.key)
        if claim is not None:
            claimed.append(Claimed(parameter, claim))
            if padding := _padding(parameter, claim):
                drops[padding] += 1
        elif reason is not None:
            drops[reason] += 1
        else:
            raise UnclaimedParameterError(
                parameter.key, parameter.global_shape, blueprint.architecture.name, rank
            )
    return claimed, dict(drops)


def _padding(parameter: Parameter, claim: Claim) -> str | None:
    """What is left out of a parameter that has more rows than the vocabulary: said, for a config.json may be wrong."""
    if claim.row.layout is not Layout.VOCAB:
        return None
    held, wanted = parameter.global_shape[0], claim.tensors[0].shape[0]
    return f"rows {wanted:,} to {held:,} of {parameter.key}: vocabulary padding" if held > wanted else None


def holdings_of(
    claimed: Iterable[Claimed],
    blueprint: Blueprint,
    world: World,
    dtype_of: Callable[[Tensor], str],
    scalars: Iterable[tuple[str, float]] = (),
) -> Iterator[Holding]:
    """The rectangles this rank holds and may write, in the order of the model.

    `scalars`: names and values of scales that belong to no weight. Raises MismatchError if the model's shapes are not
    those of config.json, OverlapError if two parameters are the same part of the same tensor, CutInsideBlockError if
    a part of a packed weight begins or ends inside a block.
    """
    parts: Held = defaultdict(list)
    seen: set[tuple[str, Shape]] = set()
    for one in claimed:
        parameter = one.parameter
        if (parameter.key, parameter.global_offset) in seen:
            both = f"{parameter.key} {place(parameter.global_offset, parameter.local_shape)} stands twice in the model"
            raise OverlapError(one.claim.tensors[0].name, (world.rank,), both)
        seen.add((parameter.key, parameter.global_offset))
        _hold(parts, one, blueprint, world, dtype_of)
    for name, value in scalars:
        parts[scalar(name), world.replicas(routed_expert=False, cut=False)].append(_scalar_part(value))
    for (stored, replicas), found in parts.items():
        for joined in join(found):
            offset, shape = bounds(joined)
            rectangle = Rectangle(stored.name, stored.dtype, stored.shape, offset, shape)
            yield Holding(rectangle, tuple(joined), replicas, stored.encoding, stored.is_scale)


def _hold(
    parts: Held, one: Claimed, blueprint: Blueprint, world: World, dtype_of: Callable[[Tensor], str]
) -> None:
    """Add what a parameter holds of every tensor that it becomes."""
    parameter, tensors, packed = one.parameter, one.claim.tensors, one.packed
    replicas = world.replicas(routed_expert=parameter.is_routed_expert, cut=parameter.is_cut)
    box = Box(parameter.global_shape, parameter.global_offset, parameter.local_shape)
    for piece in pieces_of(box, one.claim, blueprint.dimensions):
        source = tuple(map(sum, zip(parameter.start, piece.source, strict=True)))
        if packed is None:
            stored = Stored(piece.tensor.name, piece.tensor.shape, dtype_of(piece.tensor))
            parts[stored, replicas].append(Part(parameter.data, source, piece.offset, piece.shape))
            continue
        live = tuple(parameter.data.shape)
        for of in packed_pieces(parameter.name, packed, piece, source, live, world.rank):
            parts[of.tensor, replicas].append(Part(of.data, of.source, of.offset, of.shape))
    if packed is not None and one.claim.row.part == 0:  # all parts of a tensor share its scalars
        everywhere = world.replicas(routed_expert=parameter.is_routed_expert, cut=False)
        for stored, value in packed_scalars(packed, tensors):
            parts[stored, everywhere].append(_scalar_part(value))


def _scalar_part(value: float) -> Part:
    return Part(torch.tensor(value, dtype=torch.float32), (), (), ())


def join(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Groups of parts that each fill a box: all together if they do, else runs along the first dimension."""
    ordered = sorted(parts, key=lambda part: part.offset)
    if _fills_bounds(ordered):
        yield ordered
        return
    run: list[Part] = []
    for part in sorted(parts, key=lambda part: (part.offset[1:], part.offset)):
        if run and not _fills_bounds([*run, part]):
            yield run
            run = []
        run.append(part)
    yield run


def bounds(parts: Sequence[Part]) -> tuple[Shape, Shape]:
    """Offset and shape of the smallest box around all parts."""
    low = tuple(map(min, *(part.offset for part in parts))) if len(parts) > 1 else parts[0].offset
    ends = [tuple(map(sum, zip(part.offset, part.shape, strict=True))) for part in parts]
    high = tuple(map(max, *ends)) if len(ends) > 1 else ends[0]
    return low, tuple(end - start for start, end in zip(low, high, strict=True))


def _fills_bounds(parts: Sequence[Part]) -> bool:
    """True if the parts, which never overlap, leave no hole in the box around them."""
    return prod(bounds(parts)[1]) == sum(prod(part.shape) for part in parts)
