"""Is every expected tensor there, whole, once, in its dtype, and nothing else? Columns only, no byte is read.

Cheap tests over all rows come first; a tensor that fails one is named for that and left out of the next, so that
one fault gives one message. Only tensors that do not tile are looked at rectangle by rectangle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

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
from shardmerge.common.errors.wording import first_ranks
from shardmerge.common.rectangle import place

from ...ledger.names import summary
from ...ledger.rows import BoolArray, IntArray, group
from ...ledger.table import Ledger
from . import gaps
from .expected import Expected, ExpectedTensor
from .tiling import outside, untiled

UNKNOWN = -1


@dataclass(slots=True)
class Verdict:
    """What was found. `kept` are the rows that make the checkpoint, `tensor` each row's expected tensor or -1.

    `borrowed`: expected tensor that nobody wrote -> the row whose bytes it gets.
    `incomplete` are expected tensors with nothing wrong but that something is missing: a missing rank may owe it.
    """

    tensor: IntArray
    kept: BoolArray
    problems: list[ShardmergeError] = field(default_factory=list)
    incomplete: dict[str, ShardmergeError] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    borrowed: dict[int, int] = field(default_factory=dict)


def judge(ledger: Ledger, expected: Expected, architecture: str) -> Verdict:
    """Compare what was written with what a complete checkpoint holds."""
    rows = ledger.rows
    of_name = np.full(len(ledger.names) + 1, UNKNOWN)  # the last one is for expected names in no manifest
    of_name[ledger.name_ids(expected.names)] = np.arange(len(expected))
    of_name[-1] = UNKNOWN
    verdict = Verdict(of_name[rows.name], rows.written & (of_name[rows.name] != UNKNOWN))
    verdict.problems += _unexpected(ledger, verdict, architecture)
    sound = np.ones(len(expected), bool)
    for test in (_outside, _misshapen, _mistyped, _missized):
        verdict.problems += test(ledger, verdict, expected, sound)
    _judge_tiling(ledger, verdict, expected, sound)
    _note_missing(verdict, expected)
    return verdict


def borrow(ledger: Ledger, verdict: Verdict, expected: Expected, lenders: Mapping[str, str]) -> None:
    """Let tensors that nobody wrote have the bytes of another, which is whole in one row: name -> its lender's name."""
    number = {name: at for at, name in enumerate(expected.names) if name in lenders}
    rows = np.flatnonzero(verdict.kept & ledger.rows.whole())
    row_of = {ledger.names[ledger.rows.name[row]]: int(row) for row in rows} if lenders else {}
    for name, lender in lenders.items():
        if lender in row_of:
            verdict.borrowed[number[name]] = row_of[lender]
            verdict.incomplete.pop(name, None)


def _unexpected(ledger: Ledger, verdict: Verdict, architecture: str) -> Iterator[ShardmergeError]:
    rows = ledger.rows
    strange = np.flatnonzero(verdict.tensor == UNKNOWN)
    order, start = group(rows.name[strange], len(ledger.names))
    for name in np.unique(rows.name[strange]):
        members = strange[order[start[name] : start[name + 1]]]
        yield UnexpectedTensorError(ledger.names[name], rows.ranks_of(members), architecture)


def _outside(ledger: Ledger, v: Verdict, expected: Expected, sound: BoolArray) -> Iterator[ShardmergeError]:
    """Rectangles that leave the tensor they say they are part of."""
    rows = ledger.rows
    bad = v.kept & outside(list(rows.global_offset), list(rows.local_shape), list(rows.global_shape))
    for members, name in _by_tensor(v, expected, bad, sound):
        whole = rows.global_of(members[0])
        yield MismatchError(
            name,
            "a rectangle",
            place(*rows.box(members[0])),
            f"one inside {list(whole)}",
            rows.ranks_of(members),
        )


def _misshapen(ledger: Ledger, v: Verdict, expected: Expected, sound: BoolArray) -> Iterator[ShardmergeError]:
    rows = ledger.rows
    sizes, ndim = expected.shapes(len(rows.global_shape))
    bad = v.kept & (rows.ndim != ndim[v.tensor])
    for got, size in zip(rows.global_shape, sizes, strict=True):
        bad |= v.kept & (got != size[v.tensor])
    for members, name in _by_tensor(v, expected, bad, sound):
        want = expected[v.tensor[members[0]]].shape
        yield MismatchError(
            name,
            "global_shape",
            str(list(rows.global_of(members[0]))),
            str(list(want)),
            rows.ranks_of(members),
        )


def _mistyped(ledger: Ledger, v: Verdict, expected: Expected, sound: BoolArray) -> Iterator[ShardmergeError]:
    """Not the expected dtype; where none is expected, not that of the tensor's first rectangle."""
    rows = ledger.rows
    known = [UNKNOWN if one.dtype is None else DTYPES.index(one.dtype) for one in expected.kinds]
    want = np.array(known, np.int64)[expected.kind]
    kept = np.flatnonzero(v.kept)[::-1]
    first = np.full(len(expected), UNKNOWN)
    first[v.tensor[kept]] = rows.dtype[kept]  # the last assignment wins: the first row of each tensor
    want = np.where(want == UNKNOWN, first, want)
    bad = v.kept & (rows.dtype != want[v.tensor])
    for members, name in _by_tensor(v, expected, bad, sound):
        got = sorted({DTYPES[code] for code in rows.dtype[members]})
        yield MismatchError(
            name, "dtype", " and ".join(got), DTYPES[want[v.tensor[members[0]]]], rows.ranks_of(members)
        )


def _missized(ledger: Ledger, v: Verdict, expected: Expected, sound: BoolArray) -> Iterator[ShardmergeError]:
    """begin and end that do not hold what dtype and shape need. In floats first: a wrong shape may not overflow."""
    rows = ledger.rows
    bits = np.array([BITS[dtype] for dtype in DTYPES])[rows.dtype]
    sizes = [np.where(v.kept, size, 1) for size in rows.local_shape]
    rough = np.prod([size.astype(np.float64) for size in sizes], axis=0) * bits / 8
    exact = np.prod(np.where(rough < 2.0**59, sizes, 1), axis=0)
    length = rows.end - rows.begin
    bad = v.kept & (
        (rough >= 2.0**59) | (length >= 1 << 59) | (rows.begin < 8) | (length * 8 != exact * bits)
    )
    for members, name in _by_tensor(v, expected, bad, sound):
        row = members[0]
        got = f"{rows.end[row] - rows.begin[row]:,} bytes at {rows.begin[row]:,}"
        want = f"what {DTYPES[rows.dtype[row]]} {list(rows.box(row)[1])} needs"
        yield MismatchError(name, "a rectangle's place in its file", got, want, rows.ranks_of(members))


def _by_tensor(
    v: Verdict, expected: Expected, bad: BoolArray, sound: BoolArray
) -> Iterator[tuple[IntArray, str]]:
    """(rows, name) of every tensor with bad rows that was sound so far; it is no longer."""
    found = np.flatnonzero(bad)
    order, start = group(v.tensor[found], len(expected))
    for tensor in np.unique(v.tensor[found]):
        if sound[tensor]:
            sound[tensor] = False
            yield found[order[start[tensor] : start[tensor + 1]]], expected[tensor].name


def _judge_tiling(ledger: Ledger, v: Verdict, expected: Expected, sound: BoolArray) -> None:
    rows = ledger.rows
    tested = np.flatnonzero(v.kept)
    tested = tested[sound[v.tensor[tested]]]
    tensor = v.tensor[tested]
    offset, local = [[column[tested] for column in of] for of in (rows.global_offset, rows.local_shape)]
    failing = untiled(tensor, offset, local, expected.shapes(len(offset))[0])
    order, start = group(tensor, len(expected))
    again: dict[str, list[str]] = defaultdict(list)
    for at in failing:
        members = _without_repeats(ledger, v, tested[order[start[at] : start[at + 1]]], again)
        _judge_pieces(ledger, v, expected[at], members)
    v.warnings += [f"{how}: {summary(names)}, the first {names[0]}" for how, names in again.items()]


def _without_repeats(ledger: Ledger, v: Verdict, members: IntArray, again: dict[str, list[str]]) -> IntArray:
    """Of rectangles written twice with the same bytes the first stays; the others are no longer kept."""
    rows, stay = ledger.rows, []
    seen: dict[tuple[Any, ...], int] = {}
    for row in members:
        key = (*rows.box(row), rows.checksum(row), int(rows.dtype[row]))
        if key in seen:
            v.kept[row] = False
            how = f"written twice with the same bytes, by ranks {rows.rank[seen[key]]} and {rows.rank[row]}"
            again[how].append(ledger.names[rows.name[row]])
        else:
            seen[key] = row
            stay.append(row)
    return np.array(stay, np.int64)


def _judge_pieces(ledger: Ledger, v: Verdict, one: ExpectedTensor, members: IntArray) -> None:
    rows, boxes = ledger.rows, [ledger.rows.box(row) for row in members]
    clash = gaps.overlapping(boxes)
    if clash is not None:
        pair = members[list(clash)]
        what = f"{place(*boxes[clash[0]])} and {place(*boxes[clash[1]])}"
        v.problems.append(OverlapError(one.name, rows.ranks_of(pair), what))
        return
    lacking = prod(one.shape) - sum(prod(shape) for _, shape in boxes)
    if lacking:
        absent = gaps.missing(boxes, one.shape)
        what = f"{lacking:,} elements" if absent is None else gaps.show(absent)
        ranks = rows.ranks_of(members)
        present = f"{gaps.show(sorted(boxes))} by rank {first_ranks(ranks)}"
        v.incomplete[one.name] = UncoveredTensorError(one.name, one.shape, what, present, ranks)


def _note_missing(v: Verdict, expected: Expected) -> None:
    there = np.zeros(len(expected), bool)
    there[v.tensor[v.kept]] = True
    for at in np.flatnonzero(~there).tolist():
        one = expected[at]
        v.incomplete[one.name] = MissingTensorError(one.name, one.shape, one.required_by)
