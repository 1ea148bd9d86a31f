"""A merge cut into parts, for an array of jobs: which shards a part writes, and what it records at the end.

The same plan gives the same shares on every host, so parts need not know of each other. A part's record comes last: it
is the mark that the part is complete.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shardmerge.common import canonical_json, durable, places
from shardmerge.common.errors import BadInputError, CorruptFileError, MissingPartsError
from shardmerge.common.places import PART_RECORDS

from ..disk.stamp import Stamp
from ..output.lock import Lock
from .adopt import Adoption
from .final_proof import Seen
from .plan import Adopted, Assembled, Plan

WRITTEN = re.compile(r"(\d{1,9})/(\d{1,9})")


@dataclass(frozen=True, slots=True)
class MergePart:
    """Part `number` of `count`, from 1 on."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True, slots=True)
class PartRecord:
    """The shards that a part put into the output.

    Attributes:
        part: As `3/16`.
        plan_digest: Of the plan.
        ledger_digest: Of the dump.
        generation: Run, step and attempt of the dump, in words.
        checked: All bytes were compared with the checksums in the manifests.
        shards: What each shard was when it was written or verified, by name.
        adoption: How those were adopted that are.
    """

    part: str
    plan_digest: str
    ledger_digest: str
    generation: str
    checked: bool
    shards: dict[str, Seen]
    adoption: Adoption


def parse(text: str) -> MergePart:
    """Read `3/16`. Raises BadInputError."""
    part = _part(text)
    if part is None:
        raise BadInputError(
            f"--part {text}", "Write number/count, from 1/16 to 16/16 for an array of 16 jobs."
        )
    return part


def _part(text: str) -> MergePart | None:
    """Return the part that a text names, None if it names none."""
    match = WRITTEN.fullmatch(text)
    part = MergePart(int(match[1]), int(match[2])) if match else MergePart(0, 0)
    return part if 1 <= part.number <= part.count else None


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


def generation_of(plan: Plan) -> str:
    """Return which dump a plan is of, in words."""
    manifest = plan.ledger.heads[0].manifest
    step = "" if manifest.step is None else f" step {manifest.step},"
    return f"run {manifest.run_id},{step} attempt {manifest.attempt}"


def write(folder: Path, record: PartRecord) -> None:
    """Write the record of a part that is complete."""
    durable.write_file(places.part_record(folder, record.part), canonical_json.encode(asdict(record)))


def records(folder: Path, plan: Plan, *, check: bool) -> Iterator[PartRecord]:
    """Yield the records of parts that are complete.

    Args:
        folder: OUT.partial.
        plan: What is published. Records of other plans are passed over.
        check: Pass over parts that did not compare checksums.

    Raises:
        CorruptFileError: A record cannot be read.
    """
    for _, record in _all(folder):
        if _is_of(record, plan) and (record.checked or not check):
            yield record


def forget_others(held: Lock, plan: Plan) -> None:
    """Remove, durably, records of other plans: a part is about to replace shards that they promise.

    Raises CorruptFileError, LockLostError, OSError.
    """
    folder = held.folder
    stale = [path for path, record in _all(folder) if not _is_of(record, plan)]
    if stale:
        held.confirm()
        for path in stale:
            path.unlink(missing_ok=True)  # another part may do the same
        durable.sync_folder(places.receipts(folder))


def require(plan: Plan, recorded: Sequence[PartRecord], wrong: Sequence[str] = ()) -> None:
    """Refuse to publish unless parts wrote every shard of the plan.

    Args:
        plan: What is published.
        recorded: The records of its parts.
        wrong: Sentences about shards that are not what was recorded, which begin with their names.

    Raises:
        MissingPartsError: A shard is in no record, or is not what was recorded.
    """
    written = {name for record in recorded for name in record.shards}
    named = {sentence.split(" ")[0] for sentence in wrong}
    absent = [shard.name for shard in plan.shards if shard.name not in written or shard.name in named]
    if absent:
        raise MissingPartsError(
            _absent_parts(plan, absent, recorded), len(absent), len(plan.shards), tuple(wrong)
        )


def unlike(seen: Mapping[str, Seen], recorded: Mapping[str, Seen]) -> tuple[str, ...]:
    """Compare shards with what parts recorded of them.

    Args:
        seen: What shards are, by name.
        recorded: What parts recorded, by name.

    Returns:
        A sentence for each shard that differs.
    """
    return tuple(
        f"{name} is another one than its part recorded"
        for name, shard in seen.items()
        if (shard.num_bytes, shard.xxh3_128) != (recorded[name].num_bytes, recorded[name].xxh3_128)
    )


def _is_of(record: PartRecord, plan: Plan) -> bool:
    return (record.plan_digest, record.ledger_digest) == (plan.digest, plan.ledger.digest)


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
            yield path, _record(**canonical_json.read_object(path, folder))
        except FileNotFoundError:  # another part has just removed it
            continue
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise CorruptFileError(str(path), str(error), do="Remove it, and run its part again.") from None


def _record(adoption: dict[str, Any], shards: dict[str, Any], **rest: Any) -> PartRecord:
    """Return the record that a JSON object is. Raises ValueError, TypeError, AttributeError."""
    seen = {
        name: Seen(**{**shard, "stamp": Stamp(**shard["stamp"])})
        for name, shard in shards.items()
        if isinstance(shard, dict)
    }
    record = PartRecord(adoption=Adoption(**adoption), shards=seen, **rest)
    counts = [record.adoption.copied_bytes, *record.adoption.by.values()]
    if not all(type(count) is int for count in counts) or not isinstance(record.checked, bool):
        raise ValueError("it is not the record of a part")
    if _part(record.part) is None:
        raise ValueError(f"it is of part {record.part!r:.60}")
    return record
