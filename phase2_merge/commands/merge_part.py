"""The story of `merge --part`: this part's share of the shards, into OUT.partial, which the parts have in common."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from shardmerge.common.command.byte_count import show
from shardmerge.common.errors import OutputExistsError

from ..assembly.assemble import STAGING_BYTES
from ..options import ADOPT, Asked, Uncalibrated
from ..output.publish import sharing
from ..proof.prove import prove
from ..shards import parts
from ..shards.adopt import Adoption, adopt
from ..shards.parts import Part, Record
from ..shards.plan import MAX_SHARD_BYTES, Adopted, Plan, plan_shards
from ..shards.resume import is_finished
from ..shards.run import Means, assemble_shards
from .check import verify_bytes
from .metadata import published_plan
from .report import Verification


@dataclass(frozen=True, slots=True)
class PartReport:
    """A part of a merge that is complete."""

    out: str
    part: str
    num_shards: int
    num_bytes: int
    kept_shards: int
    adoption: Adoption
    seconds: float

    def facts(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        kept = f" ({self.kept_shards:,} were there already)" if self.kept_shards else ""
        size = f"{self.num_shards:,} shards{kept}, {show(self.num_bytes)}, in {self.seconds:.1f} s"
        return (
            f"Part {self.part} of {self.out} is complete: {size}. "
            "When all parts are, the same command with --finalize instead of --part publishes it."
        )


def merge_part(
    dumps: Sequence[str | Path],
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
    grafts: Sequence[str] = (),
    executor: Executor | None = None,
    staging_bytes: int = STAGING_BYTES,
    talk: TextIO | None = None,
) -> PartReport:
    """Write one part's share of the shards of `merge`, which takes the same options; publish nothing.

    part: "3/16". Parts may run at the same time, on hosts that share the file system, in any order, and again: one
    that is complete, here or published, is left alone. When all are, `merge(..., finalize=True)` publishes.
    Raises an error of the tree: BadInputError (`part`), OutputExistsError (`out` is of another dump or plan),
    OutputLockedError, what `check` raises; OSError. What other parts wrote stays.
    """
    started, out, mine = time.monotonic(), Path(os.path.abspath(out)), parts.parse(part)
    proof = prove(Asked(dumps, hf_reference, allow, uncalibrated, corrections, grafts))
    plan = plan_shards(proof, max_shard_bytes, layout, min_shard_bytes)
    means = Means(workers, executor, staging_bytes, verify == "full", talk)
    names = parts.share(plan, mine)
    kept, adoption = len(names), Adoption({}, 0)
    if not _is_published(out, plan):
        with sharing(out, talk) as folder:
            kept, adoption = _write(plan, mine, names, folder, means)
    size = sum(shard.num_bytes for shard in plan.shards if shard.name in names)
    return PartReport(
        str(out), str(mine), len(names), size, kept, adoption, round(time.monotonic() - started, 3)
    )


def _is_published(out: Path, plan: Plan) -> bool:
    """Whether `out` is what all parts together become. Raises OutputExistsError if it is anything else."""
    if not os.path.lexists(out):
        return False
    if published_plan(out) != plan.facts():
        raise OutputExistsError(str(out), "it was merged from another dump or into other shards")
    return True


def _write(plan: Plan, part: Part, mine: frozenset[str], folder: Path, means: Means) -> tuple[int, Adoption]:
    """How many shards were there already, and how the others were adopted."""
    digest = plan.digest
    adopted = [shard for shard in plan.adopted if shard.name in mine]
    done = {one.part: one for one in parts.records(folder, digest, check=means.check)}
    if str(part) in done and _are_there(adopted, folder):
        there, adoption = adopted, done[str(part)].adoption
    else:
        there, adoption = [], _adopt(plan, adopted, folder, means)
    assembled = [shard for shard in plan.assembled if shard.name in mine]
    left = [shard for shard in assembled if not is_finished(folder, shard.name, digest, check=means.check)]
    assemble_shards(plan, left, folder, means)
    parts.write(folder, Record(str(part), digest, means.check, tuple(sorted(mine)), adoption))
    return len(there) + len(assembled) - len(left), adoption


def _are_there(adopted: Sequence[Adopted], folder: Path) -> bool:
    paths = [(folder / shard.name, shard.fragment.file.num_bytes) for shard in adopted]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def _adopt(plan: Plan, adopted: Sequence[Adopted], folder: Path, means: Means) -> Adoption:
    if means.check:
        verify_bytes(plan.ledger, [shard.fragment for shard in adopted], means.talk)
    for shard in adopted:
        (folder / shard.name).unlink(missing_ok=True)  # of an attempt that was killed
    return adopt(adopted, folder)
