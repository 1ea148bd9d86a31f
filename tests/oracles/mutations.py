"""Every row of a table, changed once: what is wrong, and the rows of the table that is.

Targets of a row are exchanged with those of another row of the same layers, parts of a tensor with each other, a copy
gets another source. Must not know how a wrong table is noticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from shardmerge.common.architectures import Blueprint
from shardmerge.common.architectures.rows import Layout, Row

SECTIONED = (Layout.PART, Layout.PACKED)


def mutations(table: Blueprint) -> Iterator[tuple[str, tuple[Row, ...]]]:
    """Yield what is wrong, and all rows, once for each row that config.json uses."""
    used = [row for row in table.rows if is_used(table, row)]
    for row in used:
        if row.copy_of:
            others = [one.targets[0].name for one in used if one.copy_of or one.layout is Layout.VOCAB]
            other = next(name for name in others if name != row.copy_of and "{" not in name)
            yield f"{row.targets[0].name} copies {other}", _with(table, {row: replace(row, copy_of=other)})
        elif row.plain_norm:
            yield f"nothing is added to {row.keys[0]}", _with(table, {row: replace(row, plain_norm=False)})
        elif row.layout is Layout.GATED_QKV:
            turned = replace(row, interleaved=not row.interleaved)
            yield f"queries and gates of {row.keys[0]} lie otherwise", _with(table, {row: turned})
        elif row.layout is Layout.QKV:
            turned = replace(row, targets=row.targets[1:] + row.targets[:1])
            yield f"{row.keys[0]} is cut in another order", _with(table, {row: turned})
        elif row.layout is Layout.FUSED_QKV:
            plain = replace(row, layout=Layout.SAME)
            yield f"{row.keys[0]} stays group by group", _with(table, {row: plain})
        elif row.layout is Layout.PACKED and not row.sections and row.transposed:
            (target,) = row.targets
            turned = replace(row, transposed=False, targets=(replace(target, shape=_turned(target.shape)),))
            yield f"{row.keys[0]} is not transposed", _with(table, {row: turned})
        elif row.interleaved:
            yield f"{row.keys[0]} does not alternate", _with(table, _apart(row, used))
        else:
            other_row = _partner(row, used)
            yield f"{row.keys[0]} and {other_row.keys[0]} exchanged", _with(table, _exchanged(row, other_row))


def _turned(shape: tuple[str, ...]) -> tuple[str, ...]:
    return (shape[0], *shape[1:][::-1])


def _apart(row: Row, used: list[Row]) -> dict[Row, Row]:
    """Return the rows of one tensor in sections that follow each other, where they alternate."""
    return {one: replace(one, interleaved=False) for one in used if one.targets == row.targets}


def _partner(row: Row, used: list[Row]) -> Row:
    """Return another row of the same layers, if possible with targets of the same shape."""
    alike = [
        one for one in used if one is not row and one.where == row.where and one.keys and not one.copy_of
    ]
    alike = [one for one in alike if len(one.targets) == len(row.targets)] or [
        one for one in used if one is not row and one.keys and len(one.targets) == len(row.targets)
    ]
    parts = [one for one in alike if one.layout in SECTIONED and one.targets == row.targets]
    same_shape = [one for one in alike if one.targets[0].shape == row.targets[0].shape]
    of_experts = [one for one in alike if ("{expert}" in one.keys[0]) == ("{expert}" in row.keys[0])]
    return next(iter(parts or same_shape or of_experts or alike))


def _exchanged(row: Row, other: Row) -> dict[Row, Row]:
    if row.layout in SECTIONED and other.targets == row.targets:
        return {row: replace(row, part=other.part), other: replace(other, part=row.part)}
    return {row: replace(row, targets=other.targets), other: replace(other, targets=row.targets)}


def _with(table: Blueprint, changed: dict[Row, Row]) -> tuple[Row, ...]:
    return tuple(changed.get(row, row) for row in table.architecture.rows)


def is_used(table: Blueprint, row: Row) -> bool:
    """Whether a layer of this config.json has the row."""
    every = range(table.mtp_layers.stop)
    return row.where == "model" or any(table.has(row, layer) for layer in every)


def each_row(table: Blueprint) -> Iterator[tuple[Row, str, tuple[Row, ...]]]:
    """Yield the row that is changed, what is wrong with it, and all rows of the table."""
    used = [row for row in table.rows if is_used(table, row)]
    yield from ((row, what, rows) for row, (what, rows) in zip(used, mutations(table), strict=True))
