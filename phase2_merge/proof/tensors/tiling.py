"""Do rectangles tile their tensors, each element once? An exact answer without comparing rectangles pairwise.

A rectangle is the signed sum of its corners. If the corners of all rectangles of a tensor, less those of the tensor
itself, cancel at every point, then the rectangles cover each element exactly once; and only then. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from ...ledger.rows import BoolArray, IntArray

BATCH_ROWS = 1 << 20
LARGEST_KEY = 1 << 62


def untiled(
    tensor: IntArray, offset: list[IntArray], local: list[IntArray], whole: list[IntArray]
) -> IntArray:
    """Find tensors whose rectangles do not tile them. Tensors without any rectangle are not looked at.

    Args:
        tensor: [rows] the number of each rectangle's tensor.
        offset: Per dimension [rows] global_offset. Rectangles must lie inside their tensors.
        local: Per dimension [rows] local_shape.
        whole: Per dimension [tensors] global_shape.

    Returns:
        The numbers of these tensors, ascending.
    """
    if not len(tensor):
        return tensor
    cuts = _cut_dims(tensor, offset, local, whole)
    failing: list[IntArray] = []
    for mask in np.unique(cuts[tensor]):
        rows = np.flatnonzero(cuts[tensor] == mask)
        dims = [dim for dim in range(len(whole)) if mask >> dim & 1]
        if dims:
            chosen = ([offset[d] for d in dims], [local[d] for d in dims], [whole[d] for d in dims])
            failing += [_uncancelled(tensor[part], *_take(chosen, part)) for part in _batches(tensor, rows)]
        else:  # entire tensors: one rectangle each is right, two are one too many
            ids, counts = np.unique(tensor[rows], return_counts=True)
            failing.append(ids[counts > 1])
    return np.unique(np.concatenate(failing))


def _cut_dims(
    tensor: IntArray, offset: list[IntArray], local: list[IntArray], whole: list[IntArray]
) -> IntArray:
    """Return [tensors] a bit mask of the dimensions that any rectangle cuts. The others need no proof."""
    masks = np.zeros(len(tensor), np.int64)
    for dim, (start, size, entire) in enumerate(zip(offset, local, whole, strict=True)):
        masks |= ((start != 0) | (size != entire[tensor])).astype(np.int64) << dim
    cuts = np.zeros(len(whole[0]), np.int64)
    np.bitwise_or.at(cuts, tensor, masks)
    return cuts


def _batches(tensor: IntArray, rows: IntArray) -> Iterator[IntArray]:
    """Yield rows sorted by tensor, in parts of about BATCH_ROWS that never divide a tensor."""
    rows = rows[np.argsort(tensor[rows], kind="stable")]
    ids = tensor[rows]
    begin = 0
    while begin < len(rows):
        end = min(begin + BATCH_ROWS, len(rows))
        end = int(np.searchsorted(ids, ids[end - 1], side="right"))
        yield rows[begin:end]
        begin = end


def _take(
    chosen: tuple[list[IntArray], list[IntArray], list[IntArray]], rows: IntArray
) -> tuple[list[IntArray], list[IntArray], list[IntArray]]:
    offset, local, whole = chosen
    return [values[rows] for values in offset], [values[rows] for values in local], whole


def _uncancelled(
    tensor: IntArray, offset: list[IntArray], local: list[IntArray], whole: list[IntArray]
) -> IntArray:
    """Return the tensors at which some corner's signs do not add up to zero."""
    ids = np.unique(tensor)
    boxes = [size[ids] for size in whole]
    origin = [np.zeros_like(size) for size in boxes]
    pieces, expected = _corners(tensor, offset, local, 1), _corners(ids, origin, boxes, -1)
    points = [np.concatenate(pair) for pair in zip(pieces[0], expected[0], strict=True)]
    signs = np.concatenate([pieces[1], expected[1]])
    sizes = [int(size.max()) + 1 for size in boxes]
    if (int(ids[-1]) + 1) * prod(sizes) < LARGEST_KEY:
        return _unbalanced_keys(points, signs, sizes)
    return _unbalanced_points(points, signs)


def _unbalanced_keys(points: list[IntArray], signs: IntArray, sizes: list[int]) -> IntArray:
    """Do so with a corner as one number, its sign the last bit: sorting numbers needs no order to carry along."""
    key = points[-1]
    for axis, size in zip(points[:-1], sizes, strict=True):
        key = key * size + axis
    key = np.sort(key << 1 | (signs > 0))
    corner = key >> 1
    starts = np.flatnonzero(np.diff(corner, prepend=-1))
    sums = np.add.reduceat((key & 1) * 2 - 1, starts)
    return np.unique(corner[starts[sums != 0]] // prod(sizes))


def _unbalanced_points(points: list[IntArray], signs: IntArray) -> IntArray:
    """Do the same where such a number would not fit into 63 bits."""
    order = np.lexsort(points)
    changed = np.zeros(len(order), bool)
    changed[0] = True
    for axis in points:
        values = axis[order]
        changed[1:] |= values[1:] != values[:-1]
    starts = np.flatnonzero(changed)
    sums = np.add.reduceat(signs[order], starts)
    return np.unique(points[-1][order][starts[sums != 0]])


def _corners(
    tensor: IntArray, offset: list[IntArray], local: list[IntArray], sign: int
) -> tuple[list[IntArray], IntArray]:
    """Return all corners of boxes: ([coordinates per dimension..., tensor], signs), 2 ** dims times as long."""
    dims = len(offset)
    far = [bool(corner >> dim & 1) for corner in range(1 << dims) for dim in range(dims)]
    points: list[list[IntArray]] = [[] for _ in range(dims)]
    signs = []
    for corner in range(1 << dims):
        bits = far[corner * dims : (corner + 1) * dims]
        for dim, bit in enumerate(bits):
            points[dim].append(offset[dim] + local[dim] if bit else offset[dim])
        signs.append(np.full(len(tensor), sign * (-1) ** sum(bits), np.int64))
    axes = [np.concatenate(coordinates) for coordinates in points]
    return [*axes, np.tile(tensor, 1 << dims)], np.concatenate(signs)


def outside(offset: list[IntArray], local: list[IntArray], whole: list[IntArray]) -> BoolArray:
    """Find rectangles that leave their tensor.

    Args:
        offset: Per dimension [rows] global_offset.
        local: Per dimension [rows] local_shape.
        whole: Per dimension [rows] global_shape.

    Returns:
        [rows] whether a rectangle leaves its tensor.
    """
    leaves = np.zeros(len(offset[0]), bool)
    for start, size, entire in zip(offset, local, whole, strict=True):
        leaves |= (start < 0) | (size < 0) | (start > entire) | (size > entire - start)
    return leaves
