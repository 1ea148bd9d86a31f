"""The story of `merge`: prove, plan, adopt, assemble, describe, publish."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import numpy as np

from shardmerge.common import canonical_json, durable, file_systems, places
from shardmerge.common.architectures import Architecture
from shardmerge.common.command.talk import say
from shardmerge.common.dtypes import DTYPES
from shardmerge.common.errors import ShardsChangedError
from shardmerge.common.places import LEDGER, PLAN, REPORT
from shardmerge.common.processes import owner

from ..assembly.assemble import STAGING_BYTES
from ..hf_files import config_json, index_json, sidecars
from ..ledger import parquet
from ..options import ADOPT, Asked, Uncalibrated, Verification, refuse_nested, refuse_unknown_verification
from ..output.lock import Lock
from ..output.publish import building, commit, is_taken, refuse_existing, refuse_foreign
from ..proof import given
from ..proof.prove import Proof, prove
from ..quantization import json_files
from ..shards import final_proof, parts, resume, run, space
from ..shards.adopt import together
from ..shards.assembly_options import AssemblyOptions
from ..shards.final_proof import Reread
from ..shards.plan import MAX_SHARD_BYTES, Plan, plan_shards
from ..shards.run import Written
from . import rehearsal
from .metadata import Republished, refuse_other, republish
from .report import MergeReport, Stages, check_report, finished, merge_report
from .rewritten_files import final_config


def merge(
    dumps: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    hf_reference: str | Path,
    tokenizer: str | Path | None = None,
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
    finalize: bool = False,
    dry_run: bool = False,
    break_lock: bool = False,
    executor: Executor | None = None,
    staging_bytes: int = STAGING_BYTES,
    talk: TextIO | None = None,
) -> MergeReport:
    """Publish `dumps`, together, as the Hugging Face checkpoint `out`, which must not exist or be an empty folder.

    If it exists, from the same dump in the same shards, its metadata are written again and no shard is touched. What
    earlier commands corrected there stays, and a tokenizer that they were given, unless this call says otherwise.

    Args:
        dumps, hf_reference, verify, allow, uncalibrated, corrections, new_corrections, grafts, drop_mtp: As for
            `check`.
        architecture, talk: As for `check`.
        out: Where the checkpoint appears, whole or not at all.
        tokenizer: Directory where the files of the tokenizer come from, instead of the reference.
        max_shard_bytes: Bytes of data in a shard that is assembled. Adopted shards are as the dump made them.
        min_shard_bytes: Fragments with fewer bytes are joined.
        layout: "adopt", or "canonical" to assemble all tensors in the order of layers.
        workers: Processes that assemble, by default one per core. They do not import the main module of the caller.
        finalize: Publish what `merge_part` wrote, all parts of it.
        dry_run: Prove (without reading bytes), plan, and look at what is there; write nothing, and end as the merge
            would.
        break_lock: Take the lock of the output from commands on other hosts, which are known to have ended.
        executor: Used instead of a pool of our own, and left running.
        staging_bytes: Memory for data, in bytes, per worker.

    Returns:
        What was published and how, or with `dry_run` planned.

    Raises:
        ShardmergeError: Any of the tree. `out` then does not exist, or is as it was. What was written stays beside
            it, and the same call goes on from there.
        OSError: Likewise.
    """
    stages, out = Stages(), Path(os.path.abspath(out))
    refuse_unknown_verification(verify)
    refuse_nested(dumps, out)
    exists = _was_published(out)
    asked = Asked(
        dumps, hf_reference, allow, uncalibrated, corrections, grafts, drop_mtp, new_corrections, architecture
    )
    proof = prove(asked)
    plan = plan_shards(proof, max_shard_bytes, min_shard_bytes, layout)
    options = AssemblyOptions(workers, executor, staging_bytes, verify == "full", talk)
    beside = sidecars.gather(proof.reference.path, Path(tokenizer) if tokenizer else None)
    checked = check_report(proof, "size" if dry_run or exists else verify, beside)
    report = replace(
        merge_report(plan, checked, str(out), tuple(beside), dry_run=dry_run),
        tokenizer_files=sidecars.tokenizer_names(Path(tokenizer)) if tokenizer else (),
    )
    stages.end("proof")
    if exists:
        files = report.tokenizer_files
        again = republish(
            out, plan, proof, asked, beside, files, talk, break_lock=break_lock, dry_run=dry_run
        )
        return finished(_rewritten(report, proof, again), stages)
    report = _prepared(report, plan, out, options, finalize=finalize)
    if dry_run:
        return finished(report, stages)
    me = owner.here("a merge" if not finalize else "a merge with --finalize")
    with building(out, me, talk, break_lock=break_lock) as held:
        written = (_gather if finalize else _write)(plan, held, options, stages)
        report = _with_shards(report, written)
        _describe(proof, plan, report, beside, held.folder)
        resume.forget_temporary(held)
        report = replace(report, reread=written.reread + _prove(plan, held.folder, written, options))
        warnings = commit(held, out, {"schema_version": 1, "plan_digest": plan.digest})
        report = replace(report, late_warnings=warnings)
    stages.end("publishing")
    return finished(report, stages)


def require_sound(asked: Asked, tokenizer: Path | None) -> None:
    """Raise what a merge will raise of what it is given beside a dump. It may be called before there is a dump.

    Args:
        asked: The options. Nothing is read of `asked.dumps`.
        tokenizer: Where files of the tokenizer come from, None for the reference.

    Raises:
        BadInputError: An option makes no sense for this reference, or there is no tokenizer.
        ShardmergeError: The reference cannot be read; any of the tree.
        OSError: A file cannot be read.
    """
    sidecars.gather(given.read(asked).reference.path, tokenizer)


def _was_published(out: Path) -> bool:
    """Whether shardmerge published `out` before. Raises OutputExistsError, or BadInputError if nothing can be there."""
    if is_taken(out):
        refuse_other(out)
        return True
    file_systems.require_writable(out, places.partial(out))
    return False


def _write(plan: Plan, held: Lock, options: AssemblyOptions, stages: Stages) -> Written:
    """Write all shards but those that an earlier attempt finished."""
    resume.clear(held, plan)
    return run.write(plan, plan.shards, held, options, stages.end)


def _gather(plan: Plan, held: Lock, options: AssemblyOptions, stages: Stages) -> Written:
    """Take the shards that the parts of a merge wrote. Raises MissingPartsError unless all are there and right.

    Assembled shards were written by other processes, and are read again. Adopted ones are files of the dump, which a
    part verified: they are read again if they changed since.
    """
    recorded = tuple(parts.records(held.folder, plan, check=options.check))
    parts.require(plan, recorded)
    resume.clear(held, plan, keep_parts=True)
    adopted = {shard.name for shard in plan.adopted}
    by_name = {name: seen for record in recorded for name, seen in record.shards.items()}
    verified = {name: seen for name, seen in by_name.items() if name in adopted}
    proven = final_proof.prove(plan, held.folder, verified, options)
    parts.require(plan, recorded, proven.wrong or parts.unlike(proven.seen, by_name))
    stages.end("gathering")
    adoption = together(record.adoption for record in recorded)
    return Written(adoption, kept_shards=0, cloned_bytes=0, seen=proven.seen, reread=proven.reread)


def _prove(plan: Plan, folder: Path, written: Written, options: AssemblyOptions) -> Reread:
    """Prove, last of all, that exactly the planned shards are there. Raises ShardsChangedError."""
    proven = final_proof.prove(plan, folder, written.seen, options)
    if proven.wrong:
        raise ShardsChangedError(str(folder), proven.wrong, published=False)
    return proven.reread


def _prepared(
    report: MergeReport, plan: Plan, out: Path, options: AssemblyOptions, *, finalize: bool
) -> MergeReport:
    """Look at OUT.partial before anything is made there. Returns the report, with the room that is needed.

    Raises OutputExistsError, MissingPartsError, NoRoomError.
    """
    partial = places.partial(out)
    refuse_foreign(partial)
    if finalize and not places.receipts(partial).exists():
        refuse_existing(out)  # another merge may have published it while the dump was proved
        parts.require(plan, ())  # no part was ever begun
    if report.dry_run:
        rehearsal.require_ready(plan, partial, options, finalize=finalize)
    return report if finalize else _with_room(report, plan, out, options.talk)


def _with_room(report: MergeReport, plan: Plan, out: Path, talk: TextIO | None) -> MergeReport:
    """Add the room that the merge needs, and tell what will be copied. Raises NoRoomError."""
    room = space.required(plan, plan.shards, places.partial(out))
    for line in () if report.dry_run else room.copies():
        say(talk, line)
    return replace(report, space=room, copied_bytes=sum(room.copied_bytes.values()))


def _rewritten(report: MergeReport, proof: Proof, again: Republished) -> MergeReport:
    """Add what was written again, what earlier commands had corrected, and the warnings about all of it."""
    wrote, checked = again.metadata, check_report(proof, "size", again.beside)
    warnings = tuple(dict.fromkeys((*checked.warnings, *wrote.warnings)))
    return replace(
        report,
        check=replace(checked, corrections=wrote.corrections, warnings=warnings),
        sidecars=tuple(again.beside),
        rewritten=wrote.changed,
        removed=wrote.removed,
        kept_corrections=tuple(sorted(wrote.corrections.keys() - proof.corrections.keys())),
        kept_tokenizer=again.kept_tokenizer,
        dropped=wrote.dropped,
    )


def _with_shards(report: MergeReport, written: Written) -> MergeReport:
    return replace(
        report,
        adopted_by=written.adoption.by,
        copied_bytes=written.adoption.copied_bytes,
        cloned_bytes=written.cloned_bytes,
        kept_shards=written.kept_shards,
    )


def _describe(
    proof: Proof, plan: Plan, report: MergeReport, beside: Mapping[str, bytes], folder: Path
) -> None:
    """Write what stands beside the shards, the index last. The ledger is written while the rest waits for the disk."""
    records = places.records(folder)
    with ThreadPoolExecutor(1) as thread:
        written = thread.submit(parquet.write, proof.ledger, records / LEDGER)
        durable.write_file(records / PLAN, canonical_json.encode(plan.facts(), indent=2))
        sidecars.write(beside, folder)
        durable.write_file(records / REPORT, canonical_json.encode(report.published(), indent=2))
        weights = ((tensor.name, tensor.shape) for tensor in proof.expected)
        both = json_files.both(proof.quantization, weights)
        hf_quant_config, declared = json_files.corrected_both(*both, proof.changes)
        config = final_config(
            proof.reference.config,
            _plain_dtype(proof),
            declared,
            proof.changes,
            mtp=proof.mtp,
            table=proof.blueprint.architecture,
        )
        config_json.write(folder, config, hf_quant_config)
        if len(plan.shards) > 1:
            index_json.write(folder, plan.weight_map(), plan.expected.num_elements(), plan.total_bytes)
        written.result()


def _plain_dtype(proof: Proof) -> str:
    """Return the dtype of plain weights: beside quantized ones the dtype of the model, else that of most bytes.

    A float32 router bias does not make a float32 checkpoint.
    """
    if proof.quantization is not None:
        return proof.ledger.heads[0].manifest.facts.dtype or ""
    rows, kept = proof.ledger.rows, proof.verdict.kept
    num_bytes = np.bincount(rows.dtype[kept], weights=(rows.end - rows.begin)[kept], minlength=len(DTYPES))
    return DTYPES[int(np.argmax(num_bytes))]
