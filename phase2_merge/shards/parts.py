"""A merge cut into parts, for an array of jobs: which shards a part writes, and what it records when it has.

The same plan gives the same shares on every host, so parts need not know of each other. A part's record comes last: it
is the mark that the part is complete.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shardmerge.common import canonical_json, durable, places
from shardmerge.common.errors import BadInputError, CorruptFileError, MissingPartsError
from shardmerge.common.places import PART_RECORDS

from .adopt import Adoption
from .plan import Plan


@dataclass(frozen=True, slots=True)
class Part:
    """Part `number` of `count`, from 1 on."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True, slots=True)
class Record:
    """The shards that a part put into the output, and how it adopted those that are adopted."""

    part: str
    plan_digest: str
    checked: bool
    shards: tuple[str, ...]
    adoption: Adoption


def parse(text: str) -> Part:
    """`3/16`. Raises BadInputError."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    part = Part(int(found[1]), int(found[2])) if found else Part(0, 0)
    if not 1 <= part.number <= part.count:
        raise BadInputError(
            f"--part {text}", "Write number/count, from 1/16 to 16/16 for an array of 16 jobs."
        )
    return part


def share(plan: Plan, part: Part) -> frozenset[str]:
    """The shards of a part."""
    return frozenset(name for name, number in _numbers(plan, part.count).items() if number == part.number)


def _numbers(plan: Plan, count: int) -> dict[str, int]:
    """The part of each shard: the largest first, each to the part that has the fewest bytes so far."""
    loads = [(0, number) for number in range(1, count + 1)]
    found: dict[str, int] = {}
    for shard in sorted(plan.shards, key=lambda one: (-one.num_bytes, one.name)):
        size, number = heapq.heappop(loads)
        heapq.heappush(loads, (size + shard.num_bytes, number))
        found[shard.name] = number
    return found


def write(folder: Path, record: Record) -> None:
    """Keep the record of a part that is complete."""
    durable.write_file(places.part_record(folder, record.part), canonical_json.encode(asdict(record)))


def records(folder: Path, plan_digest: str, *, check: bool) -> Iterator[Record]:
    """Records of this plan, and if `check` only of parts that compared checksums. Raises CorruptFileError."""
    for path in sorted(places.receipts(folder).glob(PART_RECORDS)):
        try:
            found = _record(**canonical_json.read_object(path))
        except (ValueError, TypeError) as error:
            raise CorruptFileError(str(path), str(error)) from None
        if found.plan_digest == plan_digest and (found.checked or not check):
            yield found


def _record(adoption: dict[str, Any], shards: list[str], **rest: Any) -> Record:
    return Record(adoption=Adoption(**adoption), shards=tuple(shards), **rest)


def require(plan: Plan, found: Iterable[Record]) -> None:
    """Raise MissingPartsError unless these parts wrote every shard of the plan."""
    found = tuple(found)
    written = {name for one in found for name in one.shards}
    absent = [shard.name for shard in plan.shards if shard.name not in written]
    if absent:
        raise MissingPartsError(_absent_parts(plan, absent, found), len(absent), len(plan.shards))


def _absent_parts(plan: Plan, absent: list[str], found: tuple[Record, ...]) -> tuple[str, ...]:
    """The parts that owe something, as far as those that are there tell how many there are."""
    told: list[str] = []
    for count in sorted({int(one.part.partition("/")[2]) for one in found}):
        numbers = _numbers(plan, count)
        told += [str(Part(number, count)) for number in sorted({numbers[name] for name in absent})]
    return tuple(told)
