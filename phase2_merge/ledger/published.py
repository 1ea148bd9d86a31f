"""What a published output keeps of its merge: tensors and facts from ledger.parquet, shards from plan.json, the report.

Enough to write everything but the shards again. Opens no shard, and needs no dump.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shardmerge.common import canonical_json
from shardmerge.common.dtypes import BITS
from shardmerge.common.errors import BadInputError, CorruptFileError
from shardmerge.common.manifest_facts import Facts
from shardmerge.common.places import LEDGER, PLAN, RECORDS, REPORT
from shardmerge.common.reference import PLAIN_FLOATS, stays_inside

from .read import DTYPES
from .rows import IntArray
from .table import DAMAGED, raise_machines

SCALE = "_scale"  # as all names end that a merge may fill in
T = TypeVar("T")
Shape = tuple[int, ...]
Json = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """Tensors of an output, sorted by name, as parallel columns. `facts` are those of the dump."""

    names: list[str]
    shapes: list[Shape]
    num_elements: IntArray
    dtypes: IntArray
    weight_map: dict[str, str]
    architecture: str
    facts: Facts
    plan: Json
    report: Json

    @property
    def corrections(self) -> Json:
        """What was corrected so far."""
        return dict(self.report["check"].get("corrections", {}))

    @property
    def num_parameters(self) -> int:
        return int(self.num_elements.sum())

    @property
    def plain(self) -> bool:
        """Whether all tensors are plain floats."""
        return {DTYPES[at] for at in np.unique(self.dtypes)} <= set(PLAIN_FLOATS)

    @property
    def num_shards(self) -> int:
        return len(self.plan["adopted"]) + len(self.plan["assembled"])

    @property
    def total_bytes(self) -> int:
        return int(self.bytes_by_dtype().sum())

    @property
    def dominant_dtype(self) -> str:
        """The dtype of most bytes."""
        return DTYPES[int(np.argmax(self.bytes_by_dtype()))]

    def bytes_by_dtype(self) -> IntArray:
        """[DTYPES] bytes of all tensors of each dtype."""
        found = np.zeros(len(DTYPES), np.int64)
        np.add.at(
            found, self.dtypes, self.num_elements * np.array([BITS[name] for name in DTYPES])[self.dtypes]
        )
        return found // 8


def is_output(out: Path) -> bool:
    """Whether shardmerge published this directory."""
    return all((out / RECORDS / name).is_file() for name in (LEDGER, PLAN, REPORT))


def read(out: Path) -> Kept:
    """Read what `out` keeps. Raises BadInputError if shardmerge did not publish it, CorruptFileError."""
    if not is_output(out):
        raise BadInputError(
            f"{out} holds no {RECORDS}/{LEDGER}", "Give a directory that shardmerge merge published."
        )
    plan = _read(out / RECORDS / PLAN, canonical_json.read_object)
    report = _read(out / RECORDS / REPORT, _report)
    return _read(out / RECORDS / LEDGER, lambda path: _kept(path, plan, report))


def _read(path: Path, how: Callable[[Path], T]) -> T:
    try:
        return how(path)
    except (*DAMAGED, ArithmeticError) as error:
        raise_machines(error)
        raise CorruptFileError(str(path), f"{type(error).__name__}: {error}") from None


def _report(path: Path) -> Json:
    """Raises ValueError if it lacks what is read of it later."""
    found = canonical_json.read_object(path)
    canonical_json.encode(found)  # it is written again: no infinities
    check, beside = found.get("check"), found.get("sidecars", [])
    told = check.get("corrections", {}) if isinstance(check, dict) else None
    if not isinstance(told, dict) or not all(
        isinstance(one, dict) and one.keys() >= {"was", "now"} for one in told.values()
    ):
        raise ValueError("no corrections that were recorded")
    if not isinstance(beside, list) or not all(
        isinstance(name, str) and stays_inside(name) for name in beside
    ):
        raise ValueError("no list of sidecars")
    return found


def _kept(path: Path, plan: Json, report: Json) -> Kept:
    """One row of each tensor: rectangles of one tensor agree on dtype and global shape, or there were no output."""
    import pyarrow.compute as pc  # slow to import, and a first merge needs none of it

    dims = [name for name in pq.read_schema(path).names if re.fullmatch(r"g\d", name)]
    table = pq.read_table(path, columns=["name", "rank", "file", "dtype", "ndim", *dims])
    generation = json.loads(table.schema.metadata[b"shardmerge"])
    table = _with_filled(table, plan)
    coded = table["name"].combine_chunks()
    place = np.empty(len(coded.dictionary), np.int64)
    place[pc.sort_indices(coded.dictionary).to_numpy()] = np.arange(len(place))
    tensor = place[coded.indices.to_numpy()]  # [rows] where the tensor stands among all names, sorted
    names = coded.dictionary.take(np.argsort(place))
    first = np.unique(tensor, return_index=True)[1]
    columns = {name: table[name].to_numpy() for name in table.column_names if name != "name"}
    whole = [columns[dim][first] for dim in dims]
    shard_of, shards = _shards(names, tensor, columns["rank"], columns["file"], plan)
    return Kept(
        names=(texts := names.to_pylist()),
        shapes=_shapes(whole, columns["ndim"][first].astype(np.int64)),
        num_elements=np.prod(whole, axis=0),
        dtypes=columns["dtype"][first].astype(np.int64),
        weight_map=dict(zip(texts, np.array(shards, object)[shard_of].tolist(), strict=True)),
        architecture=generation["architecture"],
        facts=Facts.of_json(generation["facts"]),
        plan=plan,
        report=report,
    )


def _with_filled(table: pa.Table, plan: Json) -> pa.Table:
    """Scales that nobody wrote were filled in by the merge: float32 scalars, which only the plan names."""
    import pyarrow.compute as pc  # slow to import, and a first merge needs none of it

    listed = pa.array([name for one in plan["assembled"] for name in one["tensors"]], pa.string())
    listed = listed.filter(pc.ends_with(listed, SCALE))
    known = table["name"].combine_chunks().dictionary
    filled = listed.filter(pc.is_null(pc.index_in(listed, value_set=known)))
    if not len(filled):
        return table
    absent = {"rank": -1, "file": -1, "dtype": DTYPES.index("F32"), "ndim": 0}
    columns = {
        name: pa.array(np.full(len(filled), absent.get(name, 1)), table.schema.field(name).type)
        for name in table.column_names
        if name != "name"
    }
    more = pa.table({"name": filled.dictionary_encode(), **columns}).select(table.column_names)
    return pa.concat_tables([table.replace_schema_metadata(None), more]).unify_dictionaries()


def _shapes(whole: list[IntArray], ndim: IntArray) -> list[Shape]:
    """Each tensor's shape. There are few different ones, so a million tensors share a few tuples."""
    code = ndim
    for sizes in whole:
        different, which = np.unique(sizes, return_inverse=True)
        code = np.unique(code * len(different) + which, return_inverse=True)[1]
    first = np.unique(code, return_index=True)[1]
    shapes = [tuple(int(sizes[at]) for sizes in whole[: ndim[at]]) for at in first]
    return [shapes[at] for at in code.tolist()]


def _shards(
    names: pa.Array, tensor: IntArray, rank: IntArray, file: IntArray, plan: Json
) -> tuple[IntArray, list[str]]:
    """([tensors] shard, shards): adopted shards hold what their fragment holds, assembled ones are listed."""
    import pyarrow.compute as pc  # slow to import, and a first merge needs none of it

    found = np.full(len(names), -1)
    order = np.lexsort((file, rank))
    place = (
        rank.astype(np.int64) << 32
    ) + file  # of a row's fragment; -1 for a rectangle that was not written
    place = place[order]
    for number, one in enumerate(plan["adopted"]):
        key = (one["rank"] << 32) + one["file"]
        begin, end = np.searchsorted(place, key, "left"), np.searchsorted(place, key, "right")
        found[tensor[order[begin:end]]] = number
    listed = [name for one in plan["assembled"] for name in one["tensors"]]
    sizes = [len(one["tensors"]) for one in plan["assembled"]]
    at = pc.index_in(pa.array(listed, pa.string()), value_set=names).to_numpy(zero_copy_only=False)
    found[at] = np.repeat(np.arange(len(sizes)) + len(plan["adopted"]), sizes)
    if (found < 0).any():
        raise ValueError(f"the plan gives {names[int(np.argmin(found))]} to no shard")
    return found, [_shard(one["shard"]) for part in ("adopted", "assembled") for one in plan[part]]


def _shard(name: Any) -> str:
    """Raises ValueError for what no merge called a shard: the index would name it."""
    if (
        not isinstance(name, str)
        or "/" in name
        or not stays_inside(name)
        or not name.endswith(".safetensors")
    ):
        raise ValueError(f"the plan calls a shard {name!r:.60}")
    return name
