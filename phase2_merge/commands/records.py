"""What an output's own records say of its shards, for commands that look: is all of it there, and what were its bytes?

A folder without records is not ours, which is not a fault. One that has some of them must have all: a proof of a part
of the tensors would pass for one of all. Must not judge shards: whoever calls it has read their headers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from shardmerge.common import places, regular_files
from shardmerge.common.errors import (
    CorruptFileError,
    CorruptIndexError,
    Findings,
    MissingRecordError,
    ShardmergeError,
)
from shardmerge.common.places import COMMIT, INDEX, LEDGER, PLAN, REPORT, SHARDS
from shardmerge.common.safetensors_header import Header

from ..ledger import parquet, published
from ..output import receipts

WITHOUT = {
    LEDGER: "nothing says which bytes adopted shards had",
    PLAN: "nothing says which shards there are",
    REPORT: "nothing says what was proved and corrected",
    COMMIT: "nothing says that a merge proved and published it",
}
Checksums = dict[str, dict[str, str]]  # of each tensor of each shard, as far as they are recorded


def are_there(out: Path) -> bool:
    """Whether a folder has records of a merge. Raises CorruptFileError for a link that leads out of it."""
    records = places.records(out)
    if records.is_symlink():
        regular_files.located(records, out)
    return records.is_dir()


def refuse_lost_index(out: Path) -> None:
    """Raise MissingRecordError for an output of ours with shards that no index names any more: `metadata` writes it."""
    index = out / INDEX
    is_lost = any(out.glob(SHARDS)) and not regular_files.exists(index, out)
    if is_lost and are_there(out) and published.is_output(out):
        do = f"`shardmerge metadata {out}` writes it again, from the records that are there."
        raise MissingRecordError(str(index), "nothing says which shard holds which tensor", do)


def check(out: Path, shards: Mapping[str, Header]) -> Findings:
    """Find what is missing of the records of an output, and of the shards that they name.

    `shards` are those that readers would load.
    """
    problems: list[ShardmergeError] = []
    try:
        problems += _missing(out, shards) if are_there(out) else ()
    except CorruptFileError as error:
        problems.append(error)
    return Findings(tuple(problems))


def checksums(out: Path, shards: Mapping[str, Header]) -> Checksums:
    """Return the checksums that are recorded of the tensors of these shards: in their receipts, or in the ledger.

    Raises CorruptFileError, OSError.
    """
    ledger, plan = (places.records(out) / name for name in (LEDGER, PLAN))
    planned = published.read_plan(out).ledger_digest if regular_files.exists(plan, out) else None
    in_ledger = parquet.whole_checksums(ledger, out, planned) if regular_files.exists(ledger, out) else {}
    return {file: receipt.tensors if (receipt := receipts.read(out, file)) else in_ledger for file in shards}


def _missing(out: Path, shards: Mapping[str, Header]) -> Iterator[ShardmergeError]:
    """Yield a problem for each record and shard that is missing, and each shard that no plan knows."""
    for name, without in WITHOUT.items():
        path = places.records(out) / name
        if not regular_files.exists(path, out):
            yield MissingRecordError(str(path), without)
        elif name == PLAN:
            yield from _against_plan(out, shards, published.read_plan(out))


def _against_plan(
    out: Path, shards: Mapping[str, Header], plan: published.PublishedPlan
) -> Iterator[ShardmergeError]:
    planned = set(plan.shards)
    for name in sorted(planned - shards.keys()):
        if not regular_files.exists(out / name, out):
            yield MissingRecordError(str(out / name), "its tensors are in no other file")
    for shard in plan.assembled:
        receipt = places.receipt(out, shard.name)
        if not regular_files.exists(receipt, out):
            yield MissingRecordError(str(receipt), f"nothing says which bytes {shard.name} had")
    for name in sorted(shards.keys() - planned):
        yield CorruptIndexError(
            str(out / INDEX), f"readers would load {name}, which is not in the plan of this output"
        )
