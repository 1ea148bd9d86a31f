"""The story of `merge`: prove, plan, adopt, assemble, describe, publish."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from shardmerge.common import canonical_json, durable

from . import hf_metadata, ledger, parts, sidecars
from .adopt import adopt
from .assemble import STAGING_BYTES
from .assembling import Means, assemble_shards
from .check_dump import verify_bytes
from .plan import ADOPT, MAX_SHARD_BYTES, Plan
from .proof import Proof, prove
from .publish import publishing
from .quantization import Uncalibrated
from .receipts import RECORDS
from .report import MergeReport, Verification, check_report, finished, merge_report
from .resume import keep_finished
from .rewrite_metadata import correct_config, refuse_other, republish


def merge(
    dumps: Sequence[str | Path],
    out: str | Path,
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
    finalize: bool = False,
    dry_run: bool = False,
    executor: Executor | None = None,
    staging_bytes: int = STAGING_BYTES,
    talk: TextIO | None = None,
) -> MergeReport:
    """Publish `dumps`, together, as the Hugging Face checkpoint `out`, which must not exist.

    If it exists, from the same dump in the same shards, its metadata are written again and no shard is touched.
    max_shard_bytes bounds assembled shards; adopted ones are as the dump made them, and fragments with fewer than
    min_shard_bytes are joined. layout: "adopt", or "canonical" to assemble all tensors in the order of layers.
    workers: processes that assemble, by default one per core; they are spawned, so a script that calls this needs
    `if __name__ == "__main__":`. executor: used instead of a pool of our own, and left running. staging_bytes: memory
    for data, per worker. finalize: publish what `merge_part` wrote, all parts of it. dry_run: prove (without reading
    bytes) and plan only. The rest as for `check`. Raises an error of the tree, OSError; `out` then does not exist.
    """
    started, out = time.monotonic(), Path(os.path.abspath(out))
    if exists := os.path.lexists(out):
        refuse_other(out)
    proof = prove(
        [Path(dump) for dump in dumps], Path(hf_reference), allow, uncalibrated, corrections, grafts
    )
    plan = proof.plan(max_shard_bytes, min_shard_bytes, layout)
    means = Means(workers, executor, staging_bytes, verify == "full", talk)
    checked = check_report(proof, "size" if dry_run or exists else verify)
    report = merge_report(plan, checked, str(out), dry_run=dry_run)
    if dry_run:
        return finished(report, {}, time.monotonic() - started)
    if exists:
        again = republish(out, plan, Path(hf_reference), proof.given)
        return finished(replace(report, rewritten=again.changed), {}, time.monotonic() - started)
    with publishing(out, talk, keep=finalize) as folder:
        kept, adopted_by = (_gather if finalize else _write)(plan, proof, folder, means)
        _describe(proof, plan, report, folder)
    return finished(replace(report, kept_shards=kept), adopted_by, time.monotonic() - started)


def _write(plan: Plan, proof: Proof, folder: Path, means: Means) -> tuple[int, dict[str, int]]:
    """Write all shards: how many were kept of a merge that was killed, and how others were adopted."""
    kept = keep_finished(folder, plan, check=means.check)
    if means.check:
        verify_bytes(proof.ledger, [shard.fragment for shard in plan.adopted], means.talk)
    adopted_by = adopt(plan.adopted, folder)
    assemble_shards(plan, [shard for shard in plan.assembled if shard.name not in kept], folder, means)
    return len(kept), adopted_by


def _gather(plan: Plan, proof: Proof, folder: Path, means: Means) -> tuple[int, dict[str, int]]:
    """Take what the parts wrote, all of which must be there: nothing is kept of a merge that was killed."""
    found = tuple(parts.records(folder, plan.digest, check=means.check))
    parts.require(plan, found)
    keep_finished(folder, plan, check=means.check, stay={shard.name for shard in plan.adopted})
    return 0, parts.adopted_by(found)


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
