"""Lists what a rank holds: rectangles of Hugging Face tensors, each made of boxes of local parameters.

Must not know what the handles of parameters are, nor which rank writes a rectangle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TypeAlias

from shardmerge.common.architectures import Blueprint, Tensor
from shardmerge.common.errors import OverlapError, UnsupportedParameterError
from shardmerge.common.rectangle import Rectangle, place

from ..source import Holding
from ..world import World
from .claims import Claimed
from .layouts import pieces_of
from .layouts.box import Box
from .packed_pieces import Stored, packed_pieces, packed_scalars, scalar
from .parameter import Parameter
from .parts import Part, Recipe, Scalar, bounds, fills_bounds, join

INTERLEAVED = "this rank holds every other row of it, and nothing of the rows between them"
# by tensor and the ranks that hold the same of it
PartsByTensor: TypeAlias = dict[tuple[Stored, tuple[int, ...]], list[Part]]
Replicas: TypeAlias = Callable[..., tuple[int, ...]]  # `World.replicas`


def holdings_of(
    claimed: Iterable[Claimed],
    blueprint: Blueprint,
    world: World,
    dtype_of: Callable[[Tensor], str],
    scalars: Iterable[tuple[str, float]] = (),
) -> Iterator[Holding]:
    """Yield the rectangles that claimed parameters become, in the order of the model, each with a `Recipe`.

    Args:
        claimed: parameters of one rank.
        blueprint: the table that claimed them.
        world: the place of the rank.
        dtype_of: safetensors name of the dtype that a tensor which is not packed is written in.
        scalars: names and values of scales that belong to no weight.

    Raises:
        MismatchError: the model's shapes are not those of config.json.
        OverlapError: two parameters are the same part of the same tensor.
        CutInsideBlockError: a part of a packed weight begins or ends inside a block.
        UnsupportedParameterError: what lies between its elements is held by another rank, or it is packed and turned.
    """
    parts: PartsByTensor = defaultdict(list)
    names: dict[tuple[object, ...], str] = {}  # by what a parameter is of the model, whatever its key
    replicas_of = cache(world.replicas)  # thousands of parameters are held by the same few groups of ranks
    for number, entry in enumerate(claimed):
        parameter = entry.parameter
        claim, offset = entry.claim, parameter.global_offset
        first = names.setdefault((claim.row.keys, claim.layer, claim.expert, offset), parameter.name)
        if len(names) == number:
            box = place(offset, parameter.local_shape)
            both = f"{first} {box} and {parameter.name} {box}"
            raise OverlapError(claim.tensors[0].name, (world.rank,), both)
        _add_parts(parts, entry, blueprint, world, dtype_of, replicas_of)
    for name, value in scalars:
        parts[scalar(name), replicas_of(routed_expert=False, cut=False)].append(_scalar_part(value))
    for (stored, replicas), parts_of_tensor in parts.items():
        for joined in join(parts_of_tensor):
            if not fills_bounds(joined):
                raise UnsupportedParameterError(stored.name, INTERLEAVED, world.rank)
            offset, shape = bounds(joined)
            rectangle = Rectangle(stored.name, stored.dtype, stored.shape, offset, shape)
            yield Holding(rectangle, replicas, Recipe(tuple(joined), stored.encoding, stored.is_scale))


def _add_parts(
    parts: PartsByTensor,
    entry: Claimed,
    blueprint: Blueprint,
    world: World,
    dtype_of: Callable[[Tensor], str],
    replicas_of: Replicas,
) -> None:
    """Add what a parameter holds of every tensor that it becomes."""
    parameter, packed = entry.parameter, entry.packed
    replicas = _replicas(parameter, world, replicas_of)
    box = Box(parameter.global_shape, parameter.global_offset, parameter.local_shape)
    for piece in pieces_of(box, entry.claim, blueprint.dimensions):
        source = tuple(map(sum, zip(parameter.start, piece.source, strict=True)))
        if packed is None:
            plain = Stored(piece.tensor.name, piece.tensor.shape, dtype_of(piece.tensor))
            parts[plain, replicas].append(Part(parameter.data, source, piece.offset, piece.shape, piece.turn))
            continue
        for stored, part in packed_pieces(parameter, packed, piece, source, world.rank):
            parts[stored, replicas].append(part)
    if packed is not None and entry.claim.row.part == 0:  # all parts of a tensor share its scalars
        everywhere = replicas_of(routed_expert=parameter.is_routed_expert, cut=False)
        for stored, value in packed_scalars(packed, entry.claim.tensors):
            parts[stored, everywhere].append(_scalar_part(value))


def _replicas(parameter: Parameter, world: World, replicas_of: Replicas) -> tuple[int, ...]:
    """Return the ranks that hold the same part of a tensor."""
    routed = parameter.is_routed_expert
    copies = world.copies(*parameter.part, routed_expert=routed) if parameter.is_cut else 1
    if copies is None:
        part, parts = parameter.part
        reason = f"it is part {part} of {parts}, which other ranks hold too, but not neighbours of tensor parallelism"
        raise UnsupportedParameterError(parameter.name, reason, world.rank)
    return replicas_of(routed_expert=routed, cut=parameter.is_cut, copies=copies)


def _scalar_part(value: float) -> Part:
    return Part(Scalar(value), (), (), ())
