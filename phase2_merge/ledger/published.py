"""What a published output records of its merge, read back: ledger.parquet, plan.json and report.json.

Together they say enough to write everything but the shards again. Needs no dump, and must not read a shard but for the
eight bytes that say how long its header is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import xxhash

from shardmerge.common import canonical_json, regular_files
from shardmerge.common.dtypes import BITS, DTYPES
from shardmerge.common.errors import BadInputError, CorruptFileError, ShardsChangedError, printable
from shardmerge.common.errors.output import COPY_OUTPUT
from shardmerge.common.manifest import MAX_BYTES, MAX_WORLD_SIZE, NOT_WRITTEN, require
from shardmerge.common.manifest_facts import Facts
from shardmerge.common.places import COMMIT, LEDGER, PLAN, RECORDS, REPORT
from shardmerge.common.reference import PLAIN_FLOATS, stays_inside

from . import parquet, published_report
from .parquet import DAMAGED, coded_names, dimensions, reraise_system_errors
from .published_report import PublishedReport
from .rows import IntArray

SCALE = "_scale"  # the end of all names that a merge may fill in
NOBODY = -1  # the rank of a tensor that the merge filled in, since no rank wrote it
T = TypeVar("T")
Shape = tuple[int, ...]
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AdoptedShard:
    """A shard that is a fragment: the rank that wrote it, and its number among the rank's files."""

    name: str
    rank: int
    file: int

    def __post_init__(self) -> None:
        _require_shard_name(self.name)
        numbers = (self.rank, self.file)
        known = all(type(number) is int and -1 <= number < MAX_WORLD_SIZE for number in numbers)
        require(known, f"the plan adopts {self.name} from no file")


@dataclass(frozen=True, slots=True)
class AssembledShard:
    """A shard that the merge wrote, and the names of its tensors."""

    name: str
    tensors: list[str]

    def __post_init__(self) -> None:
        _require_shard_name(self.name)
        named = isinstance(self.tensors, list) and set(map(type, self.tensors)) <= {str}
        require(
            named and printable.is_printable(self.tensors),
            f"the plan lists no names of tensors for {self.name}",
        )


@dataclass(frozen=True, slots=True, eq=False)
class PublishedPlan:
    """plan.json, which `facts` holds as it stands there. Equal facts mean the same dump in the same shards."""

    facts: Json
    ledger_digest: str | None
    grafted: frozenset[str]
    copies: dict[str, str]
    dropped: tuple[str, ...]
    adopted: tuple[AdoptedShard, ...]
    assembled: tuple[AssembledShard, ...]

    @property
    def shards(self) -> list[str]:
        """The names of all shards, adopted ones first."""
        return [shard.name for shard in self.adopted] + [shard.name for shard in self.assembled]

    @property
    def digest(self) -> str:
        """The digest of `facts`, as the merge computed it of its plan."""
        return xxhash.xxh3_128_hexdigest(canonical_json.encode(self.facts))


@dataclass(frozen=True, slots=True, eq=False)
class PublishedRecords:
    """What all records say together. Tensors are sorted by name, in parallel columns; `facts` are those of the dump."""

    names: list[str]
    shapes: list[Shape]
    num_elements: IntArray
    dtypes: IntArray
    weight_map: dict[str, str]
    shard: IntArray  # the place of each tensor's shard in `plan.shards`
    architecture: str
    facts: Facts
    plan: PublishedPlan
    report: PublishedReport

    @property
    def num_parameters(self) -> int:
        return int(self.num_elements.sum())

    @property
    def plain(self) -> bool:
        """Whether all tensors are plain floats."""
        return {DTYPES[code] for code in np.unique(self.dtypes)} <= set(PLAIN_FLOATS)

    @property
    def total_bytes(self) -> int:
        return int(self.bytes_by_dtype().sum())

    @property
    def dominant_dtype(self) -> str:
        """The dtype of most bytes."""
        return DTYPES[int(np.argmax(self.bytes_by_dtype()))]

    def bytes_by_dtype(self) -> IntArray:
        """Return [DTYPES] the bytes of all tensors of each dtype."""
        bits = np.zeros(len(DTYPES), np.int64)
        np.add.at(
            bits, self.dtypes, self.num_elements * np.array([BITS[name] for name in DTYPES])[self.dtypes]
        )
        return bits // 8


def is_output(out: Path) -> bool:
    """Whether shardmerge published this directory. Raises CorruptFileError for what only looks like its records."""
    return not _missing(out)


def _missing(out: Path) -> list[str]:
    """Return the names of the records that every published output has and this one has not."""
    names = (LEDGER, PLAN, REPORT, COMMIT)
    return [name for name in names if not regular_files.exists(out / RECORDS / name, out)]


def read(out: Path) -> PublishedRecords:
    """Read what `out` records, and look whether all of it is of one merge.

    Raises BadInputError if shardmerge did not publish it, CorruptFileError, OSError.
    """
    if missing := _missing(out):
        raise BadInputError(
            f"{out} holds no {RECORDS}/{missing[0]}", "Give a directory that shardmerge merge published."
        )
    plan = read_plan(out)
    report = _read(out / RECORDS / REPORT, published_report.read)
    records = _read(out / RECORDS / LEDGER, lambda path: _records(path, plan, report))
    _require_of_plan(out, report, plan)
    return records


def require_shards(out: Path, records: PublishedRecords) -> None:
    """Raise ShardsChangedError unless every shard is there, as large as its header and its tensors are together."""
    sizes = records.num_elements * np.array([BITS[name] for name in DTYPES])[records.dtypes] // 8
    total = np.zeros(len(records.plan.shards), np.int64)
    np.add.at(total, records.shard, sizes)
    num_bytes = dict(zip(records.plan.shards, total.tolist(), strict=True))
    if wrong := tuple(
        reason for name, size in num_bytes.items() if (reason := _shard_problem(out, name, size))
    ):
        raise ShardsChangedError(str(out), wrong, published=True)


def _shard_problem(out: Path, name: str, data_bytes: int) -> str:
    """Return in words what is wrong with the size of a shard, nothing if it is right."""
    try:
        file = regular_files.open_for_reading(out / name, out)
    except FileNotFoundError:
        return f"{name} is missing"
    except CorruptFileError as error:
        return f"{name} cannot be a shard: {error.reason}"
    try:
        there, first = os.fstat(file).st_size, regular_files.read_at(file, 8, 0)
    finally:
        os.close(file)
    wanted = 8 + int.from_bytes(first, "little") + data_bytes
    return "" if there == wanted else f"{name} has {there:,} bytes instead of {wanted:,}"


def read_plan(out: Path) -> PublishedPlan:
    """Read plan.json alone. Raises CorruptFileError, OSError."""
    return _read(out / RECORDS / PLAN, _plan)


def _read(path: Path, reader: Callable[[Path], T]) -> T:
    """Read one record. Raises CorruptFileError for what is damaged, OSError."""
    try:
        return reader(path)
    except CorruptFileError as error:
        raise error.not_of_a_dump(COPY_OUTPUT) from None
    except (*DAMAGED, ArithmeticError) as error:
        reraise_system_errors(error)
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise CorruptFileError(str(path), reason, do=COPY_OUTPUT) from None


def read_report(out: Path, plan: PublishedPlan) -> PublishedReport:
    """Read report.json, and look whether it is of this plan. Raises CorruptFileError, OSError."""
    report = _read(out / RECORDS / REPORT, published_report.read)
    _require_of_plan(out, report, plan)
    return report


def read_facts(out: Path, plan: PublishedPlan) -> Facts:
    """Return the facts of the dump that `out` was merged from.

    Raises CorruptFileError for a damaged ledger and for one that is not of this plan, OSError.
    """

    def facts(path: Path) -> Facts:
        ledger = parquet.read(path, out, ("name",))
        parquet.require_digest(ledger, plan.ledger_digest)
        return Facts.of_json(parquet.generation_of(ledger)["facts"])

    return _read(out / RECORDS / LEDGER, facts)


def _require_of_plan(out: Path, report: PublishedReport, plan: PublishedPlan) -> None:
    """Raise CorruptFileError for a report of another plan: its corrections are of another output."""
    if report.plan_digest not in (None, plan.digest):
        path, other = out / RECORDS / REPORT, f"its plan is {report.plan_digest}, {PLAN} is {plan.digest}"
        raise CorruptFileError(str(path), f"it is of another output than {PLAN}: {other}", do=COPY_OUTPUT)


def _object(path: Path) -> Json:
    """Return the JSON object of a record in OUT/.shardmerge. Raises ValueError, CorruptFileError, OSError."""
    return canonical_json.read_object(path, path.parents[1])


def _plan(path: Path) -> PublishedPlan:
    facts = _object(path)
    return PublishedPlan(
        facts=facts,
        ledger_digest=facts.get("ledger_digest"),
        grafted=frozenset(facts.get("grafted", ())),
        copies=_copies(facts.get("copies", {})),
        dropped=_dropped(facts.get("dropped", [])),
        adopted=tuple(AdoptedShard(one["shard"], one["rank"], one["file"]) for one in facts["adopted"]),
        assembled=tuple(AssembledShard(one["shard"], one["tensors"]) for one in facts["assembled"]),
    )


def _copies(copies: Any) -> dict[str, str]:
    """Return name of each tensor that repeats another -> the name of that one. Raises ValueError."""
    named = isinstance(copies, dict) and set(map(type, copies.values())) <= {str}
    require(named and printable.is_printable(copies), "the plan lists no names of copies")
    return dict(copies)


def _dropped(names: Any) -> tuple[str, ...]:
    """Return names of tensors that were dumped and left out. Raises ValueError."""
    named = isinstance(names, list) and set(map(type, names)) <= {str}
    require(named and printable.is_printable(names), "the plan lists no names of what it leaves out")
    return tuple(names)


def _require_shard_name(name: Any) -> None:
    """Raise ValueError for what no merge would call a shard, since the index would name it."""
    plausible = isinstance(name, str) and "/" not in name and stays_inside(name)
    require(plausible and name.endswith(".safetensors"), f"the plan calls a shard {name!r:.60}")


def _records(path: Path, plan: PublishedPlan, report: PublishedReport) -> PublishedRecords:
    """Read ledger.parquet. Raises what a damaged one makes pyarrow and numpy raise.

    One row per tensor is enough: its rectangles agree on dtype and global shape, or nothing was published.
    """
    import pyarrow.compute as pc  # slow to import, and a first merge needs none of it

    table = parquet.read(path, path.parents[1], ("name", "rank", "file", "dtype", "ndim", "g"))
    parquet.require_digest(table, plan.ledger_digest)
    dims = dimensions(table.column_names, "g")
    generation = parquet.generation_of(table)
    architecture = generation["architecture"]
    require(isinstance(architecture, str) and architecture.isprintable(), "it names no architecture")
    table = _with_filled(_with_copies(_without_dropped(table, plan), plan), plan).combine_chunks()
    coded = coded_names(table)
    place = np.empty(len(coded.dictionary), np.int64)
    place[pc.sort_indices(coded.dictionary).to_numpy()] = np.arange(len(place))
    tensor = place[coded.indices.to_numpy()]  # [rows] where the tensor stands among all names, sorted
    names = coded.dictionary.take(np.argsort(place))
    require(not pc.any(pc.equal(names[1:], names[:-1])).as_py(), parquet.TWICE)
    first = np.unique(tensor, return_index=True)[1]
    columns = {name: table[name].to_numpy() for name in table.column_names if name != "name"}
    sizes = [columns[dim][first] for dim in dims]
    _require_tensors(sizes, columns["ndim"], columns["dtype"])
    shard = _shard_of(names, tensor, columns["rank"], columns["file"], plan)
    texts = names.to_pylist()
    return PublishedRecords(
        names=texts,
        shapes=_shapes(sizes, columns["ndim"][first].astype(np.int64)),
        num_elements=np.prod(sizes, axis=0),
        dtypes=columns["dtype"][first].astype(np.int64),
        shard=shard,
        weight_map=dict(zip(texts, np.array(plan.shards, object)[shard].tolist(), strict=True)),
        architecture=architecture,
        facts=Facts.of_json(generation["facts"]),
        plan=plan,
        report=report,
    )


def _require_tensors(sizes: list[IntArray], ndim: IntArray, dtype: IntArray) -> None:
    """Raise ValueError for numbers that no tensor has: they would be multiplied, or point outside a list."""
    known = not len(ndim) or (ndim.min() >= 0 and ndim.max() <= len(sizes))
    require(
        known and not ((dtype < 0) | (dtype >= len(DTYPES))).any(),
        "a tensor has no dtype or too many dimensions",
    )
    elements = np.prod([size.astype(np.float64) for size in sizes], axis=0)
    sound = all((size >= 0).all() for size in sizes) and (elements < MAX_BYTES).all()
    require(bool(sound), "a tensor is larger than any")


def _without_dropped(table: pa.Table, plan: PublishedPlan) -> pa.Table:
    """Leave out the tensors that the merge left out."""
    import pyarrow.compute as pc  # slow to import, and a first merge needs none of it

    if not plan.dropped:
        return table
    coded = coded_names(table)
    kept = pc.invert(pc.is_in(coded.dictionary, value_set=pa.array(plan.dropped, pa.string()))).to_numpy(
        False
    )
    rows = np.flatnonzero(kept[coded.indices.to_numpy()])
    left = table.take(rows)
    names = coded.dictionary.take(coded.indices).take(rows).dictionary_encode()
    return left.set_column(left.column_names.index("name"), "name", names)


def _with_copies(table: pa.Table, plan: PublishedPlan) -> pa.Table:
    """Add a row for each tensor that repeats another: NOBODY wrote it, and it is what the other is."""
    coded = coded_names(table)
    names = coded.dictionary.to_pylist() if plan.copies else []
    number = {name: at for at, name in enumerate(names)}
    absent = {name: source for name, source in plan.copies.items() if name not in number and source in number}
    if not absent:
        return table
    first = {int(name): row for row, name in reversed(list(enumerate(coded.indices.to_numpy())))}
    rows = [first[number[source]] for source in absent.values()]
    values = {"rank": NOBODY, "file": NOT_WRITTEN}
    columns = {
        name: pa.array(np.full(len(rows), values[name]), table.schema.field(name).type)
        if name in values
        else table[name].take(rows)
        for name in table.column_names
        if name != "name"
    }
    more = pa.table({"name": pa.array(list(absent)).dictionary_encode(), **columns}).select(
        table.column_names
    )
    return pa.concat_tables([table.replace_schema_metadata(None), more]).unify_dictionaries().combine_chunks()


def _with_filled(table: pa.Table, plan: PublishedPlan) -> pa.Table:
    """Add the scales that NOBODY wrote: the merge filled them in, as float32 scalars, and only the plan names them."""
    import pyarrow.compute as pc  # slow to import, and a first merge needs none of it

    listed = pa.array([name for shard in plan.assembled for name in shard.tensors], pa.string())
    listed = listed.filter(pc.ends_with(listed, SCALE))
    known = coded_names(table).dictionary
    filled = listed.filter(pc.is_null(pc.index_in(listed, value_set=known)))
    if not len(filled):
        return table
    values = {"rank": NOBODY, "file": NOT_WRITTEN, "dtype": DTYPES.index("F32"), "ndim": 0}
    columns = {
        name: pa.array(np.full(len(filled), values.get(name, 1)), table.schema.field(name).type)
        for name in table.column_names
        if name != "name"
    }
    more = pa.table({"name": filled.dictionary_encode(), **columns}).select(table.column_names)
    return pa.concat_tables([table.replace_schema_metadata(None), more]).unify_dictionaries()


def _shapes(sizes: list[IntArray], ndim: IntArray) -> list[Shape]:
    """Return [tensors] shapes. Few of them differ, so a million tensors share a few tuples."""
    code = ndim
    for size in sizes:
        different, which = np.unique(size, return_inverse=True)
        code = np.unique(code * len(different) + which, return_inverse=True)[1]
    first = np.unique(code, return_index=True)[1]
    shapes = [tuple(int(size[tensor]) for size in sizes[: ndim[tensor]]) for tensor in first]
    return [shapes[number] for number in code.tolist()]


def _shard_of(
    names: pa.Array, tensor: IntArray, rank: IntArray, file: IntArray, plan: PublishedPlan
) -> IntArray:
    """Find each tensor's shard. Adopted ones hold what their fragment holds, and the plan lists the others' tensors.

    Args:
        names: [tensors] of all tensors.
        tensor: [rows] which tensor a row is a rectangle of.
        rank: [rows] who wrote it.
        file: [rows] in which of the rank's files it lies, NOT_WRITTEN for none.
        plan: What plan.json says.

    Returns:
        [tensors] the place of its shard in `plan.shards`.

    Raises:
        ValueError: The plan gives a tensor to no shard.
    """
    import pyarrow.compute as pc  # slow to import, and a first merge needs none of it

    shard_of = np.full(len(names), -1)
    fragment = (rank.astype(np.int64) << 32) + file  # one number for both
    order = np.argsort(fragment, kind="stable")
    fragment = fragment[order]
    for number, shard in enumerate(plan.adopted):
        key = (shard.rank << 32) + shard.file
        begin, end = np.searchsorted(fragment, key, "left"), np.searchsorted(fragment, key, "right")
        shard_of[tensor[order[begin:end]]] = number
    listed = [name for assembled in plan.assembled for name in assembled.tensors]
    sizes = [len(assembled.tensors) for assembled in plan.assembled]
    places = pc.index_in(pa.array(listed, pa.string()), value_set=names)
    require(not places.null_count, "the plan lists a tensor that the ledger lacks")
    tensors = places.to_numpy(zero_copy_only=False)
    shard_of[tensors] = np.repeat(np.arange(len(sizes)) + len(plan.adopted), sizes)
    if (shard_of < 0).any():
        raise ValueError(f"the plan gives {names[int(np.argmin(shard_of))]} to no shard")
    return shard_of
