"""A merge cut into parts, for an array of jobs: which shards a part writes, and what it records at the end.

The same plan gives the same shares on every host, so parts need not know of each other. A part's record comes last: it
is the mark that the part is complete.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shardmerge.common import canonical_json, durable, places
from shardmerge.common.errors import BadInputError, CorruptFileError, MissingPartsError
from shardmerge.common.places import PART_RECORDS

from .adopt import Adoption
from .plan import Adopted, Assembled, Plan


@dataclass(frozen=True, slots=True)
class MergePart:
    """Part `number` of `count`, from 1 on."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True, slots=True)
class PartRecord:
    """The shards that a part put into the output, and how it adopted those that are adopted.

    `checked`: all bytes were compared with the checksums in the manifests.
    """

    part: str
    plan_digest: str
    checked: bool
    shards: tuple[str, ...]
    adoption: Adoption


def parse(text: str) -> MergePart:
    """Read `3/16`. Raises BadInputError."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    part = MergePart(int(match[1]), int(match[2])) if match else MergePart(0, 0)
    if not 1 <= part.number <= part.count:
        raise BadInputError(
            f"--part {text}", "Write number/count, from 1/16 to 16/16 for an array of 16 jobs."
        )
    return part


def share(plan: Plan, part: MergePart) -> tuple[Adopted | Assembled, ...]:
    """Return the shards of a part, in the order of the plan."""
    numbers = _numbers(plan, part.count)
    return tuple(shard for shard in plan.shards if numbers[shard.name] == part.number)


def _numbers(plan: Plan, count: int) -> dict[str, int]:
    """Give each shard to a part: the largest first, each to the part that has the fewest bytes so far."""
    loads = [(0, number) for number in range(1, count + 1)]
    numbers: dict[str, int] = {}
    for shard in sorted(plan.shards, key=lambda shard: (-shard.num_bytes, shard.name)):
        num_bytes, number = heapq.heappop(loads)
        heapq.heappush(loads, (num_bytes + shard.num_bytes, number))
        numbers[shard.name] = number
    return numbers


def write(folder: Path, record: PartRecord) -> None:
    """Write the record of a part that is complete."""
    durable.write_file(places.part_record(folder, record.part), canonical_json.encode(asdict(record)))


def records(folder: Path, plan_digest: str, *, check: bool) -> Iterator[PartRecord]:
    """Yield the records of parts that are complete.

    Args:
        folder: OUT.partial.
        plan_digest: Of the plan. Records of other plans are passed over.
        check: Pass over parts that did not compare checksums.

    Raises:
        CorruptFileError: A record cannot be read.
    """
    for _, record in _all(folder):
        if record.plan_digest == plan_digest and (record.checked or not check):
            yield record


def find(folder: Path, plan_digest: str, part: MergePart, *, check: bool) -> PartRecord | None:
    """Return the record of one part.

    Args:
        folder: OUT.partial.
        plan_digest: Of the plan. Records of other plans are passed over.
        part: Which part.
        check: Pass over a part that did not compare checksums.

    Returns:
        Its record, None if the part is not complete.

    Raises:
        CorruptFileError: A record, also that of another part, cannot be read.
    """
    named = {record.part: record for record in records(folder, plan_digest, check=check)}
    return named.get(str(part))


def forget_others(folder: Path, plan_digest: str) -> None:
    """Remove, durably, records of other plans: a part is about to replace shards that they promise.

    Raises CorruptFileError, OSError.
    """
    stale = [path for path, record in _all(folder) if record.plan_digest != plan_digest]
    for path in stale:
        path.unlink(missing_ok=True)  # another part may do the same
    if stale:
        durable.sync_folder(places.receipts(folder))


def require(plan: Plan, recorded: Sequence[PartRecord], finished: Collection[str]) -> None:
    """Refuse to publish unless parts wrote every shard of the plan.

    Args:
        plan: What is published.
        recorded: The records of its parts.
        finished: Names of the shards that are there.

    Raises:
        MissingPartsError: A shard is in no record, or is not there.
    """
    written = {name for record in recorded for name in record.shards} & set(finished)
    absent = [shard.name for shard in plan.shards if shard.name not in written]
    if absent:
        raise MissingPartsError(_absent_parts(plan, absent, recorded), len(absent), len(plan.shards))


def _absent_parts(plan: Plan, absent: list[str], recorded: Sequence[PartRecord]) -> tuple[str, ...]:
    """Return the parts that owe something, as far as those that are there know how many there are."""
    parts: list[str] = []
    for count in sorted({int(record.part.partition("/")[2]) for record in recorded}):
        numbers = _numbers(plan, count)
        parts += [str(MergePart(number, count)) for number in sorted({numbers[name] for name in absent})]
    return tuple(parts)


def _all(folder: Path) -> Iterator[tuple[Path, PartRecord]]:
    """Yield all records with their paths, of whatever plan. Raises CorruptFileError."""
    for path in sorted(places.receipts(folder).glob(PART_RECORDS)):
        try:
            yield path, _record(**canonical_json.read_object(path))
        except FileNotFoundError:  # another part has just removed it
            continue
        except (ValueError, TypeError) as error:
            raise CorruptFileError(str(path), str(error)) from None


def _record(adoption: dict[str, Any], shards: list[str], **rest: Any) -> PartRecord:
    return PartRecord(adoption=Adoption(**adoption), shards=tuple(shards), **rest)
