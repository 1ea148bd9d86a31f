"""Decides which shard holds which tensor, and where its bytes come from. Pure: must not open any file.

A fragment of entire tensors, every one of which is wanted, is adopted as it is, in the order of ranks, unless it has
less than `min_shard_bytes`. All other tensors are assembled, in the order of layers, into shards of at most
`max_shard_bytes`. With layout `canonical` all are: it costs about a copy, and gives full shards in the order of layers
however many ranks there were.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xxhash

from shardmerge.common import canonical_json, places, safetensors_header
from shardmerge.common.command.byte_count import show
from shardmerge.common.dtypes import DTYPES, byte_size
from shardmerge.common.errors import BadInputError
from shardmerge.common.places import rank_name

from ..assembly.task import ShardTask, SourcePiece, TensorTask
from ..ledger.fragments import Fragment
from ..ledger.graft import REFERENCE_RANK
from ..ledger.rows import BoolArray, IntArray, group
from ..ledger.table import Ledger
from ..options import ADOPT, LAYOUTS
from ..proof.prove import Proof
from ..proof.tensors.expected import Expected
from ..proof.tensors.verdict import Verdict

MAX_SHARD_BYTES = 5_000_000_000
MAX_SHARDS = 99_999
MANY_SHARDS = 1_000


@dataclass(frozen=True, slots=True, eq=False)
class Adopted:
    """A shard that is a fragment. `tensors` number its expected tensors, in the order of the fragment's bytes."""

    name: str
    fragment: Fragment
    tensors: IntArray

    @property
    def num_bytes(self) -> int:
        return self.fragment.data_bytes


@dataclass(frozen=True, slots=True, eq=False)
class Assembled:
    """A shard that is written. `tensors` number its expected tensors, in the order of its bytes."""

    name: str
    tensors: IntArray
    num_bytes: int


@dataclass(frozen=True, eq=False)  # no slots: the digest is computed once
class Plan:
    """All shards. `order` and `start` find the rows of a tensor, see `rows_of`; `copies` names what repeats what.

    `dropped` names what was dumped and is in no shard.
    """

    ledger: Ledger
    expected: Expected
    max_shard_bytes: int
    min_shard_bytes: int
    layout: str
    adopted: tuple[Adopted, ...]
    assembled: tuple[Assembled, ...]
    order: IntArray
    start: IntArray
    copies: dict[str, str]
    dropped: tuple[str, ...]

    @property
    def shards(self) -> tuple[Adopted | Assembled, ...]:
        return self.adopted + self.assembled

    @property
    def total_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)

    def rows_of(self, tensor: int) -> IntArray:
        """Return the rows of a tensor that are part of the checkpoint."""
        return self.order[self.start[tensor] : self.start[tensor + 1]]

    def weight_map(self) -> dict[str, str]:
        """Return tensor name to shard name."""
        return {name: shard.name for shard in self.shards for name in self._names_in(shard)}

    def facts(self) -> dict[str, Any]:
        """Return what plan.json holds: enough, with the ledger, to do the same again."""
        adopted = [{"shard": shard.name, **_fragment_facts(shard.fragment)} for shard in self.adopted]
        assembled = [{"shard": shard.name, "tensors": self._names_in(shard)} for shard in self.assembled]
        return {
            "schema_version": 1,
            "ledger_digest": self.ledger.digest,
            "layout": self.layout,
            "max_shard_bytes": self.max_shard_bytes,
            "min_shard_bytes": self.min_shard_bytes,
            "grafted": sorted(name for file in self.ledger.grafted for name in file.names),
            "copies": self.copies,
            "dropped": list(self.dropped),
            "adopted": adopted,
            "assembled": assembled,
        }

    @cached_property
    def digest(self) -> str:
        """The digest of `facts`. If it is the same, shards that another attempt finished can be used."""
        return xxhash.xxh3_128_hexdigest(canonical_json.encode(self.facts()))

    def _names_in(self, shard: Adopted | Assembled) -> list[str]:
        names = self.expected.names
        return [names[tensor] for tensor in shard.tensors.tolist()]


def plan_shards(
    proof: Proof,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    min_shard_bytes: int = 0,
    layout: str = ADOPT,
) -> Plan:
    """Decide all shards of what was proven.

    Args:
        proof: Of a dump that is whole.
        max_shard_bytes: Bytes of data in a shard that is assembled. A larger tensor stands alone.
        min_shard_bytes: A fragment with less is not adopted.
        layout: ADOPT or CANONICAL.

    Returns:
        The plan.

    Raises:
        BadInputError: The layout is not known, the sizes contradict each other, or shards are too many to number.
    """
    _refuse_unknown(layout, min_shard_bytes, max_shard_bytes)
    ledger, verdict, expected = proof.ledger, proof.verdict, proof.expected
    wanted = verdict.kept & ledger.rows.whole()
    adopted = [
        fragment
        for fragment in proof.fragments
        if layout == ADOPT and _is_shard(fragment, wanted, min_shard_bytes)
    ]
    is_adopted = np.zeros(len(expected), bool)
    for fragment in adopted:
        is_adopted[verdict.tensor[fragment.rows]] = True
    dtypes = _dtypes(ledger, verdict, expected)
    groups = list(_groups(np.flatnonzero(~is_adopted), expected, dtypes, max_shard_bytes))
    names = _names(len(adopted) + len(groups))
    order, start = _by_tensor(verdict, len(expected))
    return Plan(
        ledger=ledger,
        expected=expected,
        max_shard_bytes=max_shard_bytes,
        min_shard_bytes=min_shard_bytes,
        layout=layout,
        adopted=tuple(Adopted(next(names), fragment, verdict.tensor[fragment.rows]) for fragment in adopted),
        assembled=tuple(Assembled(next(names), tensors, num_bytes) for tensors, num_bytes in groups),
        order=order,
        start=start,
        copies=proof.blueprint.copies(),
        dropped=verdict.dropped,
    )


def _refuse_unknown(layout: str, min_shard_bytes: int, max_shard_bytes: int) -> None:
    if layout not in LAYOUTS:
        raise BadInputError(f"layout {layout}", f"Known: {', '.join(LAYOUTS)}.")
    if min_shard_bytes > max_shard_bytes:
        raise BadInputError(
            f"the smallest shard is to have {show(min_shard_bytes)}, the largest {show(max_shard_bytes)}",
            "Give a smaller --min-shard-size, or a larger --max-shard-size.",
        )


def _is_shard(fragment: Fragment, wanted: BoolArray, min_bytes: int) -> bool:
    """Whether a fragment can be a shard as it is: it holds entire tensors that are wanted, and enough of them."""
    enough = len(fragment.rows) > 0 and fragment.data_bytes >= min_bytes
    return enough and bool(wanted[fragment.rows].all())


def task(plan: Plan, shard: Assembled, *, check: bool, plan_digest: str = "") -> ShardTask:
    """Return all that a worker needs to write a shard, which is not the ledger.

    Args:
        plan: What is published.
        shard: One of its shards.
        check: Whether the worker compares bytes with their checksums.
        plan_digest: Of the plan, for the receipt.

    Returns:
        The task.
    """
    tensors = tuple(_tensor_task(plan, tensor) for tensor in shard.tensors.tolist())
    return ShardTask(shard.name, tensors, check, plan_digest)


def _tensor_task(plan: Plan, tensor: int) -> TensorTask:
    members = plan.rows_of(tensor)
    pieces = tuple(_piece(plan.ledger, row) for row in members.tolist())
    expected = plan.expected[tensor]
    return TensorTask(expected.name, DTYPES[plan.ledger.rows.dtype[members[0]]], expected.shape, pieces)


def _piece(ledger: Ledger, row: int) -> SourcePiece:
    rows = ledger.rows
    rank, file = int(rows.rank[row]), int(rows.file[row])
    offset, shape = rows.box(row)
    return SourcePiece(
        path=str(ledger.path(rank, file)),
        rank=None if rank == REFERENCE_RANK else rank,
        begin=int(rows.begin[row]),
        offset=offset,
        shape=shape,
        xxh3_128=rows.checksum(row),
    )


def _groups(
    tensors: IntArray, expected: Expected, dtypes: list[str], max_bytes: int
) -> Iterator[tuple[IntArray, int]]:
    """Cut tensors into shards, in the order of layers.

    Yields the tensors of each shard, in the order of their bytes, and how many bytes they have.
    """
    members: list[tuple[tuple[int, str], int]] = []
    shard_bytes = 0
    for tensor in tensors.tolist():
        described = expected[tensor]
        num_bytes = byte_size(dtypes[tensor], described.shape)
        if members and shard_bytes + num_bytes > max_bytes:
            yield _in_order(members), shard_bytes
            members, shard_bytes = [], 0
        members.append((safetensors_header.layout_order(num_bytes, described.name), tensor))
        shard_bytes += num_bytes
    if members:
        yield _in_order(members), shard_bytes


def _in_order(members: list[tuple[tuple[int, str], int]]) -> IntArray:
    return np.array([tensor for _, tensor in sorted(members)], np.int64)


def _dtypes(ledger: Ledger, verdict: Verdict, expected: Expected) -> list[str]:
    """Return the dtype of each expected tensor, as its rectangles have it."""
    codes = np.zeros(len(expected), np.int64)
    codes[verdict.tensor[verdict.kept]] = ledger.rows.dtype[verdict.kept]
    for tensor, rows in verdict.filled_from.items():
        codes[tensor] = ledger.rows.dtype[rows[0]]
    return [DTYPES[code] for code in codes]


def _by_tensor(verdict: Verdict, count: int) -> tuple[IntArray, IntArray]:
    """Return (order, start) of the rows of each tensor as `Plan` has them, those of a tensor in the order of ranks."""
    in_checkpoint = np.flatnonzero(verdict.kept)
    filled = verdict.filled_from
    rows = np.concatenate([in_checkpoint, *filled.values()])
    numbers = (np.full(len(rows_of), tensor) for tensor, rows_of in filled.items())
    tensors = np.concatenate([verdict.tensor[in_checkpoint], *numbers])
    order, start = group(tensors, count)
    return rows[order], start


def _names(count: int) -> Iterator[str]:
    """Return the names of so many shards, in order. Raises BadInputError for more than can be numbered."""
    if count > MAX_SHARDS:
        raise BadInputError(
            f"{count:,} shards", f"At most {MAX_SHARDS:,} can be numbered: use a larger --max-shard-size."
        )
    return (places.shard(number, count) for number in range(1, count + 1))


def _fragment_facts(fragment: Fragment) -> dict[str, Any]:
    """Return which fragment it is, by a name for people and by the numbers that the ledger gives it."""
    folder = "reference" if fragment.rank == REFERENCE_RANK else rank_name(fragment.rank)
    name = f"{folder}/{fragment.file.name}"
    return {"fragment": name, "rank": fragment.rank, "file": fragment.number}
