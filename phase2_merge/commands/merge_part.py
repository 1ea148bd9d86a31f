"""The story of `merge --part`: write one part's share of the shards into OUT.partial, which all parts share."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from shardmerge.common import file_systems, places
from shardmerge.common.architectures import Architecture
from shardmerge.common.command.byte_count import show
from shardmerge.common.errors import OutputExistsError
from shardmerge.common.errors.wording import counted
from shardmerge.common.processes import owner

from ..assembly.assemble import STAGING_BYTES
from ..options import ADOPT, Asked, Uncalibrated, Verification, refuse_nested, refuse_unknown_verification
from ..output.lock import Lock
from ..output.publish import building, is_taken
from ..proof.prove import prove
from ..shards import parts, run, space
from ..shards.adopt import Adoption
from ..shards.assembly_options import AssemblyOptions
from ..shards.parts import MergePart, PartRecord
from ..shards.plan import MAX_SHARD_BYTES, Adopted, Assembled, Plan, plan_shards
from .metadata import published_plan
from .report import PROVED


@dataclass(frozen=True, slots=True)
class PartReport:
    """What `merge --part` says of a part that is complete."""

    out: str
    part: str
    num_shards: int
    num_bytes: int
    kept_shards: int
    adoption: Adoption
    seconds: float
    verification: Verification = "full"

    def facts(self) -> dict[str, Any]:
        return asdict(self)

    def scope(self) -> tuple[list[str], list[str]]:
        """Return what was checked, and what not."""
        checked, this = [*PROVED], "the checksum of every rectangle of this part"
        if self.verification == "size":
            return checked, [this]
        return [*checked, this], ["the bytes of other parts"]

    def text(self) -> str:
        already = f" ({self.kept_shards:,} were there already)" if self.kept_shards else ""
        size = (
            f"{counted(self.num_shards, 'shard')}{already}, {show(self.num_bytes)}, in {self.seconds:.1f} s"
        )
        return (
            f"Part {self.part} of {self.out} is complete: {size}. "
            "When all parts are, the same command with --finalize instead of --part publishes it."
        )


def merge_part(
    dumps: str | Path | Sequence[str | Path],
    out: str | Path,
    part: str,
    *,
    hf_reference: str | Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    min_shard_bytes: int = 0,
    layout: str = ADOPT,
    verify: Verification = "full",
    workers: int | None = None,
    allow: Collection[str] = (),
    uncalibrated: Uncalibrated = "error",
    corrections: Sequence[str] = (),
    new_corrections: Sequence[str] = (),
    grafts: Sequence[str] = (),
    drop_mtp: bool = False,
    architecture: str | Architecture | None = None,
    break_lock: bool = False,
    executor: Executor | None = None,
    staging_bytes: int = STAGING_BYTES,
    talk: TextIO | None = None,
) -> PartReport:
    """Write one part's share of the shards of `merge`; publish nothing.

    Parts may run at the same time, on hosts that share the file system, in any order, and again: one that is
    complete, here or published, is left alone. When all are, `merge(..., finalize=True)` publishes.

    Args:
        part: Which part of how many, as "3/16".
        dumps, out, and all other options: As for `merge`, the same for every part.

    Returns:
        What the part wrote.

    Raises:
        BadInputError: `part` is not a part.
        OutputExistsError: `out` is of another dump or plan.
        OutputLockedError: A merge that is not in parts is writing it.
        ShardmergeError: What `check` raises. What other parts wrote stays.
        OSError: Likewise.
    """
    started, out, this = time.monotonic(), Path(os.path.abspath(out)), parts.parse(part)
    refuse_unknown_verification(verify)
    refuse_nested(dumps, out)
    if not is_taken(out):
        file_systems.require_writable(out, places.partial(out))
    asked = Asked(
        dumps, hf_reference, allow, uncalibrated, corrections, grafts, drop_mtp, new_corrections, architecture
    )
    proof = prove(asked)
    plan = plan_shards(proof, max_shard_bytes, min_shard_bytes, layout)
    options = AssemblyOptions(workers, executor, staging_bytes, verify == "full", talk)
    shards = parts.share(plan, this)
    kept_shards, adoption = len(shards), Adoption({}, 0)
    if not _is_published(out, plan):
        space.required(plan, shards, places.partial(out))
        me = owner.here(f"part {this} of a merge", subject=plan.digest)
        with building(out, me, talk, break_lock=break_lock) as held:
            kept_shards, adoption = _write(plan, this, shards, held, options)
    return PartReport(
        out=str(out),
        part=str(this),
        num_shards=len(shards),
        num_bytes=sum(shard.num_bytes for shard in shards),
        kept_shards=kept_shards,
        adoption=adoption,
        seconds=round(time.monotonic() - started, 3),
        verification=verify,
    )


def _is_published(out: Path, plan: Plan) -> bool:
    """Whether `out` is what all parts together become. Raises OutputExistsError if it is anything else."""
    if not is_taken(out):
        return False
    if published_plan(out) != plan.facts():
        raise OutputExistsError(str(out), "it was merged from another dump or into other shards")
    return True


def _write(
    plan: Plan,
    part: MergePart,
    shards: Sequence[Adopted | Assembled],
    held: Lock,
    options: AssemblyOptions,
) -> tuple[int, Adoption]:
    """Write the shards of a part, and then its record.

    Returns how many shards were there already, and how the adopted ones were adopted.
    """
    parts.forget_others(held, plan)
    written = run.write(plan, shards, held, options)
    held.confirm()
    parts.write(
        held.folder,
        PartRecord(
            part=str(part),
            plan_digest=plan.digest,
            ledger_digest=plan.ledger.digest,
            generation=parts.generation_of(plan),
            checked=options.check,
            shards=written.seen,
            adoption=written.adoption,
        ),
    )
    return written.kept_shards, written.adoption
