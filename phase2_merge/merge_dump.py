"""The story of `merge`: prove, plan, adopt, assemble, describe, publish."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from shardmerge.common import canonical_json, durable
from shardmerge.common.errors import WorkerDiedError
from shardmerge.common.progress import Progress

from . import hf_metadata, ledger, receipts, sidecars
from .adopt import adopt
from .assemble import STAGING_BYTES
from .check_dump import verify_bytes
from .plan import ADOPT, MAX_SHARD_BYTES, Assembled, Plan, plan_shards, task
from .proof import Proof, prove
from .publish import publishing
from .quantization import Uncalibrated
from .receipts import RECORDS
from .report import MergeReport, Verification, check_report, finished, merge_report
from .resume import keep_finished
from .rewrite_metadata import correct_config, refuse_other, republish
from .workers import default_workers, pool, write_shards

MAX_POOLS = 3  # a worker that is killed again and again lacks memory, and no new pool gives it any


def merge(
    dumps: Sequence[str | Path],
    out: str | Path,
    *,
    hf_reference: str | Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    layout: str = ADOPT,
    verify: Verification = "full",
    workers: int | None = None,
    allow: Collection[str] = (),
    uncalibrated: Uncalibrated = "error",
    corrections: Sequence[str] = (),
    dry_run: bool = False,
    executor: Executor | None = None,
    staging_bytes: int = STAGING_BYTES,
    talk: TextIO | None = None,
) -> MergeReport:
    """Publish `dumps`, together, as the Hugging Face checkpoint `out`, which must not exist.

    If it exists, from the same dump in the same shards, its metadata are written again and no shard is touched.
    max_shard_bytes bounds assembled shards; adopted ones are as the dump made them. layout:
    "adopt", or "canonical" to assemble all tensors in the order of layers. workers: processes that assemble,
    by default one per core; they are spawned, so a script that calls this needs `if __name__ == "__main__":`.
    executor: used instead of a pool of our own, and left running. staging_bytes: memory for data, per worker.
    dry_run: prove (without reading bytes) and plan only. The rest as for `check`.
    Raises an error of the tree, OSError; `out` then does not exist.
    """
    started, out = time.monotonic(), Path(os.path.abspath(out))
    if exists := os.path.lexists(out):
        refuse_other(out)
    proof = prove([Path(dump) for dump in dumps], Path(hf_reference), allow, uncalibrated, corrections)
    plan = plan_shards(proof.ledger, proof.verdict, proof.expected, proof.fragments, max_shard_bytes, layout)
    report = merge_report(
        plan, check_report(proof, "size" if dry_run or exists else verify), str(out), dry_run=dry_run
    )
    if dry_run:
        return finished(report, {}, time.monotonic() - started)
    if exists:
        again = republish(out, plan, Path(hf_reference), proof.given)
        return finished(replace(report, rewritten=again.changed), {}, time.monotonic() - started)
    with publishing(out, talk) as folder:
        kept = keep_finished(folder, plan, check=verify == "full")
        if verify == "full":
            verify_bytes(proof.ledger, [shard.fragment for shard in plan.adopted], talk)
        adopted_by = adopt(plan.adopted, folder)
        left = [shard for shard in plan.assembled if shard.name not in kept]
        _assemble(plan, left, folder, workers, executor, staging_bytes, check=verify == "full", talk=talk)
        _describe(proof, plan, report, folder)
    return finished(replace(report, kept_shards=len(kept)), adopted_by, time.monotonic() - started)


def _assemble(
    plan: Plan,
    left: list[Assembled],
    folder: Path,
    workers: int | None,
    executor: Executor | None,
    staging_bytes: int,
    *,
    check: bool,
    talk: TextIO | None,
) -> None:
    """Split tensors are verified here, as they pass: nothing is read twice. A pool that dies is built anew."""
    progress = Progress("assembling", sum(shard.num_bytes for shard in left), talk)
    count, digest = min(workers or default_workers(), len(left)), plan.digest
    for pools_left in reversed(range(1 if executor else MAX_POOLS)):
        try:
            with nullcontext(executor) if executor else pool(count) as running:
                tasks = (task(plan, shard, check=check, plan_digest=digest) for shard in left)
                write_shards(tasks, folder, running, staging_bytes, progress.advance)
            break
        except WorkerDiedError as error:
            if not pools_left:
                raise
            left = [shard for shard in left if receipts.read(folder, shard.name) is None]
            if talk:
                print(f"A worker was killed ({error.shards[0]}, ...): {len(left):,} shards left.", file=talk)
    progress.close()


def _describe(proof: Proof, plan: Plan, report: MergeReport, folder: Path) -> None:
    """Records of our own, sidecars, config.json, and last the index."""
    records = folder / RECORDS
    ledger.write(proof.ledger, records / "ledger.parquet")
    durable.write_file(records / "plan.json", canonical_json.encode(plan.facts(), indent=2))
    report = replace(report, sidecars=sidecars.copy(proof.reference.path, folder))
    durable.write_file(records / "report.json", canonical_json.encode(report.published(), indent=2))
    hf_metadata.write_config(folder, proof.reference.config, proof.dtype(), proof.quantization_json())
    correct_config(folder, proof.given)
    hf_metadata.write_index(folder, plan)
