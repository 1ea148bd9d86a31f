"""The story of `merge`: prove, plan, adopt, assemble, describe, publish."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from shardmerge.common import canonical_json, durable, places
from shardmerge.common.dtypes import DTYPES
from shardmerge.common.places import LEDGER, PLAN, REPORT

from ..assembly.assemble import STAGING_BYTES
from ..hf_files import config_json as hf_metadata
from ..hf_files import sidecars
from ..ledger import parquet
from ..options import ADOPT, Asked, Uncalibrated
from ..output.publish import publishing
from ..proof.prove import Proof, prove
from ..quantization import json_files
from ..shards import parts
from ..shards.adopt import adopt, together
from ..shards.plan import MAX_SHARD_BYTES, Plan, plan_shards
from ..shards.resume import keep_finished
from ..shards.run import Means, assemble_shards
from .check import verify_bytes
from .laps import Laps
from .metadata import correct_config, refuse_other, republish
from .report import MergeReport, Verification, check_report, finished, merge_report


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
    workers: processes that assemble, by default one per core; they import the main module, so a script that calls
    this needs `if __name__ == "__main__":`. executor: used instead of a pool of our own, and left running.
    staging_bytes: memory for data, per worker. finalize: publish what `merge_part` wrote, all parts of it. dry_run:
    prove (without reading bytes) and plan only. The rest as for `check`. Raises an error of the tree, OSError; `out`
    then does not exist.
    """
    laps, out = Laps(), Path(os.path.abspath(out))
    if exists := os.path.lexists(out):
        refuse_other(out)
    proof = prove(Asked(dumps, hf_reference, allow, uncalibrated, corrections, grafts))
    plan = plan_shards(proof, max_shard_bytes, layout, min_shard_bytes)
    means = Means(workers, executor, staging_bytes, verify == "full", talk)
    checked = check_report(proof, "size" if dry_run or exists else verify)
    report = merge_report(plan, checked, str(out), dry_run=dry_run)
    laps.end("proof")
    if dry_run:
        return finished(report, laps)
    if exists:
        again = republish(out, plan, Path(hf_reference), proof.given)
        return finished(replace(report, rewritten=again.changed), laps)
    with publishing(out, talk, keep=finalize) as folder:
        report = replace(report, **(_gather if finalize else _write)(plan, proof, folder, means, laps))
        _describe(proof, plan, report, folder)
    laps.end("publishing")
    return finished(report, laps)


def _write(plan: Plan, proof: Proof, folder: Path, means: Means, laps: Laps) -> dict[str, Any]:
    """Write all shards: how others were adopted, and how many were kept of a merge that was killed."""
    kept = keep_finished(folder, plan, check=means.check)
    if means.check:
        verify_bytes(proof.ledger, [shard.fragment for shard in plan.adopted], means.talk)
    adoption = adopt(plan.adopted, folder)
    laps.end("adopting")
    left = [shard for shard in plan.assembled if shard.name not in kept]
    cloned_bytes = assemble_shards(plan, left, folder, means)
    laps.end("assembling")
    found = {"adopted_by": adoption.by, "copied_bytes": adoption.copied_bytes, "kept_shards": len(kept)}
    return found | {"cloned_bytes": cloned_bytes}


def _gather(plan: Plan, proof: Proof, folder: Path, means: Means, laps: Laps) -> dict[str, Any]:
    """Take what the parts wrote, all of which must be there: nothing is kept of a merge that was killed."""
    found = tuple(parts.records(folder, plan.digest, check=means.check))
    parts.require(plan, found)
    keep_finished(folder, plan, check=means.check, stay={shard.name for shard in plan.adopted})
    adoption = together(one.adoption for one in found)
    laps.end("gathering")
    return {"adopted_by": adoption.by, "copied_bytes": adoption.copied_bytes}


def _describe(proof: Proof, plan: Plan, report: MergeReport, folder: Path) -> None:
    """Records of our own, the ledger while others wait for the disk; sidecars, config.json, and last the index."""
    records = places.records(folder)
    with ThreadPoolExecutor(1) as thread:
        written = thread.submit(parquet.write, proof.ledger, records / LEDGER)
        durable.write_file(records / PLAN, canonical_json.encode(plan.facts(), indent=2))
        report = replace(report, sidecars=sidecars.copy(proof.reference.path, folder))
        durable.write_file(records / REPORT, canonical_json.encode(report.published(), indent=2))
        declared = json_files.both(proof.quantization, ((one.name, one.shape) for one in proof.expected))
        quantization = json_files.corrected_both(*declared, proof.given)
        hf_metadata.write_config(folder, proof.reference.config, _plain_dtype(proof), quantization)
        correct_config(folder, proof.given)
        if len(plan.shards) > 1:  # else readers take model.safetensors
            sizes = plan.expected.num_elements(), plan.total_bytes
            hf_metadata.write_index(folder, plan.weight_map(), *sizes)
        written.result()


def _plain_dtype(proof: Proof) -> str:
    """The dtype of most bytes: a float32 router bias does not make a float32 checkpoint.

    Beside quantized weights the dtype of the model.
    """
    if proof.quantization is not None:
        return proof.ledger.heads[0].manifest.facts.dtype or ""
    rows, kept = proof.ledger.rows, proof.verdict.kept
    sizes = np.bincount(rows.dtype[kept], weights=(rows.end - rows.begin)[kept], minlength=len(DTYPES))
    return DTYPES[int(np.argmax(sizes))]
