"""Rows of the ledger are those that manifests list, however many manifests are read at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from shardmerge.common import errors as tree
from shardmerge.common import manifest as manifests
from shardmerge.common.dtypes import DTYPES
from shardmerge.common.rectangle import Rectangle
from shardmerge.phase2_merge.ledger import read
from shardmerge.phase2_merge.ledger import table as ledger
from shardmerge.phase2_merge.ledger.rank_directories import discover
from shardmerge.phase2_merge.ledger.table import Ledger
from tests.dumps.dumps import Cut, Held, Topology
from tests.dumps.refusals import edit, refusal
from tests.dumps.worlds import MakeWorld, World

Q, VALUE = "model.layers.1.self_attn.q_proj.weight", b"\1" * 256


@pytest.fixture
def one(world: MakeWorld) -> World:
    """Four ranks: names and dtypes that several of them know, a replica, and a rank that knows vectors only."""
    made = world(Topology(tp=4))
    made.cuts = {
        name: [Cut(0 if len(shape) > 1 else 2, (0,) * len(shape), shape)]
        for name, (_, shape, _) in made.model.tensors.items()
    }
    made.cuts[Q] = [Cut(3, (0, 0), (8, 8)), Cut(1, (8, 0), (8, 8))]
    replica = Held(1, 0, "model.layers.0.self_attn.q_proj.weight", (0, 0), (16, 8), VALUE)
    facts = {"nonfinite": [[0, 5, 7]], "all_zero": [1]}
    return made.write(held=[replica], health=lambda rank: facts if rank == 2 else {})


@pytest.mark.parametrize("at_once", [1, 8, 20_000])
def test_every_row_is_one_that_its_rank_listed(
    one: World, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(read, "ROWS_AT_ONCE", at_once)
    book = ledger.read(discover([one.dump]))
    assert [told(book, row) for row in range(len(book.rows))] == [
        (rank, placed)
        for rank in range(4)
        for placed in manifests.read(one.rank(rank) / "manifest.json").placed()
    ]
    assert {head.manifest.rank: head.manifest.coordinates["tp"] for head in book.heads} == dict(
        enumerate(range(4))
    )


@pytest.mark.parametrize("at_once", [1, 20_000])
def test_health_is_of_the_row_that_a_rank_names(
    one: World, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(read, "ROWS_AT_ONCE", at_once)
    book = ledger.read(discover([one.dump]))
    first, second = list(manifests.read(one.rank(2) / "manifest.json").placed())[:2]
    counts = zip(book.rows.nan_count.tolist(), book.rows.inf_count.tolist(), strict=True)
    assert {told(book, row): of for row, of in enumerate(counts) if any(of)} == {(2, first): (5, 7)}
    zeros = [told(book, row) for row, zero in enumerate(book.rows.all_zero.tolist()) if zero]
    assert zeros == [(2, second)]


def told(book: Ledger, row: int) -> tuple[int, manifests.Placed]:
    """A row as its manifest tells it."""
    rows = book.rows
    offset, local = rows.box(row)
    rectangle = Rectangle(
        book.names[rows.name[row]], DTYPES[rows.dtype[row]], rows.global_of(row), offset, local
    )
    file, begin, end, owner = (int(column[row]) for column in (rows.file, rows.begin, rows.end, rows.owner))
    return int(rows.rank[row]), manifests.Placed(rectangle, file, begin, end, owner, rows.checksum(row))


def last(value: Any) -> Callable[[list[Any]], Any]:
    """A column with another value in its last row."""
    return lambda column: [*column[:-1], value]


def first_dimension(value: Any) -> Callable[[list[Any]], Any]:
    return lambda column: [last(value)(column[0]), *column[1:]]


SPOILED = [
    ("name", lambda column: column[1:], "columns differ in length"),
    ("name", last(1000), "points outside its list"),
    ("name", last(-1), "points outside its list"),
    ("file", last(1), "points outside its list"),
    ("file", last(-2), "leaves its range"),
    ("dtype", last(-1), "points outside its list"),
    ("ndim", last(2), "points outside its list"),
    ("begin", last(0.5), "something else than integers"),
    ("begin", last(True), "something else than integers"),
    ("begin", last("1"), "something else than integers"),
    ("begin", last([1]), "something else than integers"),
    ("end", last(1 << 62), "leaves its range"),
    ("end", last(1 << 64), "too large"),
    ("owner", last(-1), "an owner is not a rank of this world"),
    ("owner", last(4), "an owner is not a rank of this world"),
    ("owner", last(-2), "leaves its range"),
    ("xxh3_128", last(1), "are strings"),
    ("xxh3_128", last("ff"), "32 hexadecimal digits"),
    ("global_shape", lambda _: [], "columns of dimensions"),
    ("global_shape", lambda _: 5, "a column is not a list"),
    ("global_shape", first_dimension(2.0), "something else than integers"),
    ("local_shape", lambda column: [*column, column[0]], "columns of dimensions"),
    ("local_shape", lambda column: [*column, [1]], "inhomogeneous"),
]


@pytest.mark.parametrize(("column", "spoiled", "reason"), SPOILED)
def test_columns_that_cannot_be_are_refused(
    one: World, column: str, spoiled: Callable[[Any], Any], reason: str
) -> None:
    columns = json.loads((one.rank(2) / "manifest.json").read_bytes())["columns"]
    assert reason in refused(one, columns=columns | {column: spoiled(columns[column])})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"names": ["model.norm.weight"]}, "points outside its list"),
        ({"names": "model.norm.weight"}, "are not lists"),
        ({"dtypes": [1]}, "are strings"),
        ({"dtypes": ["BF17"]}, "dtype BF17 is not one of safetensors"),
        ({"columns": None}, "are not an object"),
        ({"columns": {}}, "xxh3_128|name"),
        ({"health": {"all_zero": [1000]}}, "health speaks of row 1000"),
        ({"health": {"nonfinite": [[0, "many", 1]]}}, "many"),
    ],
)
def test_what_columns_count_is_looked_at_too(one: World, changes: dict[str, Any], reason: str) -> None:
    found = refused(one, **changes)
    assert any(word in found for word in reason.split("|"))


def refused(one: World, **changes: Any) -> str:
    """Why the third of four manifests is refused, which is the one that the error names."""
    path = one.rank(2) / "manifest.json"
    edit(path, **changes)
    error = refusal(one, tree.CorruptManifestError, 4)
    assert error.path == str(path)
    return str(error.reason)
