"""Compares what was written with what is expected: every tensor there, whole, once, and nothing else.

Cheap tests over all rows come first; a tensor that fails one is named for that and left out of the next, so that
one fault gives one message. Only tensors that do not tile are looked at rectangle by rectangle. No byte is read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np

from shardmerge.common.dtypes import BITS, DTYPES
from shardmerge.common.errors import (
    MismatchError,
    MissingTensorError,
    OverlapError,
    ShardmergeError,
    UncoveredTensorError,
    UnexpectedTensorError,
)
from shardmerge.common.errors.wording import counted, first_ranks
from shardmerge.common.rectangle import place
from shardmerge.common.reference import PLAIN_FLOATS

from ...ledger.names import summary
from ...ledger.rows import BoolArray, IntArray, group
from ...ledger.table import Ledger
from . import gaps
from .expected import Expected, ExpectedTensor
from .tiling import outside, untiled

UNKNOWN = -1
Incomplete: TypeAlias = MissingTensorError | UncoveredTensorError


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """Which rows make the checkpoint, and what is wrong with its tensors.

    Attributes:
        tensor: [rows] the number of each row's expected tensor, UNKNOWN for a row of no expected tensor.
        kept: [rows] whether a row is a part of the checkpoint.
        problems: What is wrong with tensors, but for those that are incomplete.
        incomplete: Errors of tensors whose only fault is a missing part, which a missing rank may explain.
        warnings: Of rectangles that were written twice.
        filled_from: Number of an expected tensor that nobody wrote -> the rows whose bytes it gets.
        dropped: Names of tensors that were written and are left out on purpose, sorted.
    """

    tensor: IntArray
    kept: BoolArray
    problems: tuple[ShardmergeError, ...]
    incomplete: Mapping[str, Incomplete]
    warnings: tuple[str, ...]
    filled_from: Mapping[int, IntArray]
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class _Compared:
    """Both sides of the comparison, and how far it is: `kept` and `sound` change while it goes on.

    kept: [rows] as in `Verdict`.
    sound: [tensors] whether nothing wrong was found so far.
    """

    ledger: Ledger
    expected: Expected
    tensor: IntArray
    kept: BoolArray
    sound: BoolArray


def judge(
    ledger: Ledger,
    expected: Expected,
    architecture: str,
    filled_from: Mapping[str, str],
    dropped: Collection[str] = (),
) -> Verdict:
    """Compare what was written with what a complete checkpoint holds.

    Args:
        ledger: all rectangles of all ranks, and what is grafted.
        expected: all tensors of a complete checkpoint.
        architecture: its name, for messages.
        filled_from: name of a tensor that nobody needs to write -> the tensor whose bytes it then gets.
        dropped: names of tensors that were written and are left out on purpose.

    Returns:
        Everything that is wrong, and the rows that a plan is made of.
    """
    rows = ledger.rows
    of_name = np.full(len(ledger.names) + 1, UNKNOWN)  # the last one is for expected names in no manifest
    of_name[ledger.name_ids(expected.names)] = np.arange(len(expected))
    of_name[-1] = UNKNOWN
    tensor = of_name[rows.name]
    kept = rows.written & (of_name[rows.name] != UNKNOWN)
    compared = _Compared(ledger, expected, tensor, kept, np.ones(len(expected), bool))
    problems = list(_unexpected(compared, architecture, dropped))
    for test in (_outside, _misshapen, _mistyped, _missized):
        problems += test(compared)
    overlaps, incomplete, warnings = _judge_tiling(compared)
    incomplete |= _missing(compared)
    rows_of_filled = _rows_to_fill_from(compared, filled_from)
    for number in rows_of_filled:
        incomplete.pop(expected.names[number], None)
    for name, source in filled_from.items():
        if source in incomplete:  # said once
            incomplete.pop(name, None)
    return Verdict(
        tensor,
        kept,
        (*problems, *overlaps),
        incomplete,
        tuple(warnings),
        rows_of_filled,
        tuple(sorted(dropped)),
    )


def _rows_to_fill_from(compared: _Compared, filled_from: Mapping[str, str]) -> dict[int, IntArray]:
    """Return number of each tensor that nobody wrote and that gets the bytes of another -> the rows of that other.

    Not of one that is packed: its bytes mean nothing without its scales.
    """
    if not filled_from:
        return {}
    wanted = {*filled_from, *filled_from.values()}
    number_of = {name: number for number, name in enumerate(compared.expected.names) if name in wanted}
    kept = np.flatnonzero(compared.kept)
    order, start = group(compared.tensor[kept], len(compared.expected))

    def rows_of(name: str) -> IntArray:
        number = number_of[name]
        return kept[order[start[number] : start[number + 1]]]

    pairs = ((name, source) for name, source in filled_from.items() if {name, source} <= number_of.keys())
    found = (
        (number_of[name], rows_of(source))
        for name, source in pairs
        if not len(rows_of(name)) and _shape(compared, number_of[name]) == _shape(compared, number_of[source])
    )
    plain = np.array([dtype in PLAIN_FLOATS for dtype in DTYPES])
    return {
        number: rows for number, rows in found if len(rows) and plain[compared.ledger.rows.dtype[rows]].all()
    }


def _shape(compared: _Compared, number: int) -> tuple[int, ...]:
    return compared.expected[number].shape


def _unexpected(
    compared: _Compared, architecture: str, dropped: Collection[str]
) -> Iterator[ShardmergeError]:
    """Yield tensors that nothing expects, but for those that are dropped."""
    ledger, rows = compared.ledger, compared.ledger.rows
    strange = np.flatnonzero(compared.tensor == UNKNOWN)
    order, start = group(rows.name[strange], len(ledger.names))
    for name in np.unique(rows.name[strange]):
        if ledger.names[name] in dropped:
            continue
        members = strange[order[start[name] : start[name + 1]]]
        yield UnexpectedTensorError(ledger.names[name], rows.ranks_of(members), architecture)


def _outside(compared: _Compared) -> Iterator[ShardmergeError]:
    """Yield tensors with rectangles that leave the tensor they say they are part of."""
    rows = compared.ledger.rows
    bad = compared.kept & outside(list(rows.global_offset), list(rows.local_shape), list(rows.global_shape))
    for members, name in _by_tensor(compared, bad):
        got, whole = place(*rows.box(members[0])), list(rows.global_of(members[0]))
        yield MismatchError(name, "a rectangle", got, f"one inside {whole}", rows.ranks_of(members))


def _misshapen(compared: _Compared) -> Iterator[ShardmergeError]:
    """Yield tensors that do not have the expected global_shape."""
    rows, kept, tensor = compared.ledger.rows, compared.kept, compared.tensor
    sizes, ndim = compared.expected.shapes(len(rows.global_shape))
    bad = kept & (rows.ndim != ndim[tensor])
    for got, size in zip(rows.global_shape, sizes, strict=True):
        bad |= kept & (got != size[tensor])
    for members, name in _by_tensor(compared, bad):
        has, want = rows.global_of(members[0]), compared.expected[tensor[members[0]]].shape
        yield MismatchError(name, "global_shape", str(list(has)), str(list(want)), rows.ranks_of(members))


def _mistyped(compared: _Compared) -> Iterator[ShardmergeError]:
    """Yield tensors not of the expected dtype, or where none is expected, not of that of their first rectangle."""
    rows, tensor, expected = compared.ledger.rows, compared.tensor, compared.expected
    known = [UNKNOWN if kind.dtype is None else DTYPES.index(kind.dtype) for kind in expected.kinds]
    want = np.array(known, np.int64)[expected.kind]
    kept = np.flatnonzero(compared.kept)[::-1]
    first = np.full(len(expected), UNKNOWN)
    first[tensor[kept]] = rows.dtype[kept]  # the last assignment wins: the first row of each tensor
    want = np.where(want == UNKNOWN, first, want)
    bad = compared.kept & (rows.dtype != want[tensor])
    for members, name in _by_tensor(compared, bad):
        got = sorted({DTYPES[code] for code in rows.dtype[members]})
        yield MismatchError(
            name, "dtype", " and ".join(got), DTYPES[want[tensor[members[0]]]], rows.ranks_of(members)
        )


def _missized(compared: _Compared) -> Iterator[ShardmergeError]:
    """Yield tensors with rectangles whose bytes are not as many as dtype and shape need.

    Sizes are computed in floats first, since those of a wrong shape may overflow integers.
    """
    rows, kept = compared.ledger.rows, compared.kept
    bits = np.array([BITS[dtype] for dtype in DTYPES])[rows.dtype]
    sizes = [np.where(kept, size, 1) for size in rows.local_shape]
    rough = np.prod([size.astype(np.float64) for size in sizes], axis=0) * bits / 8
    exact = np.prod(np.where(rough < 2.0**59, sizes, 1), axis=0)
    length = rows.end - rows.begin
    bad = kept & ((rough >= 2.0**59) | (length >= 1 << 59) | (rows.begin < 8) | (length * 8 != exact * bits))
    for members, name in _by_tensor(compared, bad):
        row = members[0]
        got = f"{rows.end[row] - rows.begin[row]:,} bytes at {rows.begin[row]:,}"
        want = f"what {DTYPES[rows.dtype[row]]} {list(rows.box(row)[1])} needs"
        yield MismatchError(name, "a rectangle's place in its file", got, want, rows.ranks_of(members))


def _by_tensor(compared: _Compared, bad: BoolArray) -> Iterator[tuple[IntArray, str]]:
    """Yield (rows, name) of every tensor with bad rows that was sound so far, and mark it as not sound."""
    strange, sound = np.flatnonzero(bad), compared.sound
    order, start = group(compared.tensor[strange], len(sound))
    for tensor in np.unique(compared.tensor[strange]):
        if sound[tensor]:
            sound[tensor] = False
            yield strange[order[start[tensor] : start[tensor + 1]]], compared.expected[tensor].name


def _judge_tiling(
    compared: _Compared,
) -> tuple[list[ShardmergeError], dict[str, Incomplete], list[str]]:
    """Return tensors that are covered twice, tensors with holes, and warnings of rectangles written twice."""
    rows, expected = compared.ledger.rows, compared.expected
    tested = np.flatnonzero(compared.kept)
    tested = tested[compared.sound[compared.tensor[tested]]]
    tensor = compared.tensor[tested]
    offset = [column[tested] for column in rows.global_offset]
    local = [column[tested] for column in rows.local_shape]
    failing = untiled(tensor, offset, local, expected.shapes(len(offset))[0])
    order, start = group(tensor, len(expected))
    overlaps: list[ShardmergeError] = []
    incomplete: dict[str, Incomplete] = {}
    repeated: dict[str, list[str]] = defaultdict(list)
    for number in failing:
        members = _without_repeats(compared, tested[order[start[number] : start[number + 1]]], repeated)
        error = _judge_pieces(compared.ledger, expected[number], members)
        if isinstance(error, OverlapError):
            overlaps.append(error)
        elif error is not None:
            incomplete[expected[number].name] = error
    warnings = [f"{how}: {summary(names)}, the first {names[0]}" for how, names in repeated.items()]
    return overlaps, incomplete, warnings


def _without_repeats(compared: _Compared, members: IntArray, repeated: dict[str, list[str]]) -> IntArray:
    """Return rows without those that repeat an earlier one, bytes included. These are then not kept either."""
    ledger, rows, stay = compared.ledger, compared.ledger.rows, []
    seen: dict[tuple[Any, ...], int] = {}
    for row in members:
        key = (*rows.box(row), rows.checksum(row), int(rows.dtype[row]))
        if key in seen:
            compared.kept[row] = False
            how = f"written twice with the same bytes, by ranks {rows.rank[seen[key]]} and {rows.rank[row]}"
            repeated[how].append(ledger.names[rows.name[row]])
        else:
            seen[key] = row
            stay.append(row)
    return np.array(stay, np.int64)


def _judge_pieces(
    ledger: Ledger, expected: ExpectedTensor, members: IntArray
) -> OverlapError | UncoveredTensorError | None:
    """Find what two rectangles of a tensor both cover, or else what none of them covers. None if they tile it."""
    rows, boxes = ledger.rows, [ledger.rows.box(row) for row in members]
    clash = gaps.overlapping(boxes)
    if clash is not None:
        pair = members[list(clash)]
        what = f"{place(*boxes[clash[0]])} and {place(*boxes[clash[1]])}"
        return OverlapError(expected.name, rows.ranks_of(pair), what)
    lacking = prod(expected.shape) - sum(prod(shape) for _, shape in boxes)
    if not lacking:
        return None
    absent = gaps.missing(boxes, expected.shape)
    what = counted(lacking, "element") if absent is None else gaps.show(absent)
    ranks = rows.ranks_of(members)
    present = f"{gaps.show(sorted(boxes))} by rank {first_ranks(ranks)}"
    return UncoveredTensorError(expected.name, expected.shape, what, present, ranks)


def _missing(compared: _Compared) -> dict[str, Incomplete]:
    """Return errors of expected tensors of which nobody wrote anything, by name."""
    present = np.zeros(len(compared.expected), bool)
    present[compared.tensor[compared.kept]] = True
    absent = (compared.expected[number] for number in np.flatnonzero(~present).tolist())
    return {each.name: MissingTensorError(each.name, each.shape, each.required_by) for each in absent}
