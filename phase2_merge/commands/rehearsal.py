"""What `merge --dry-run` finds out beyond proof and plan: how the merge would end with what is on disk. Writes nothing.

No lock is taken either: who writes just now may have ended when the merge is run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from shardmerge.common.command.talk import say
from shardmerge.common.errors import OutputExistsError

from ..ledger import published
from ..options import ALLOW_CONFIG
from ..output import journal
from ..output.publish import refuse_published
from ..proof.prove import Proof
from ..shards import final_proof, parts, resume
from ..shards.assembly_options import AssemblyOptions
from ..shards.plan import Plan
from .metadata import _difference, _read
from .rewritten_files import decide


def require_ready(plan: Plan, partial: Path, options: AssemblyOptions, *, finalize: bool) -> None:
    """Raise what a merge would raise of its OUT.partial.

    Args:
        plan: What would be published.
        partial: OUT.partial, which need not be there.
        options: Whether bytes would be compared with their checksums.
        finalize: Whether all parts are to be there. Their shards are looked at, and not read.

    Raises:
        OutputExistsError: It is a published checkpoint, or holds weights that no merge put there.
        MissingPartsError: A part is missing, or a shard is not what its part recorded.
        CorruptFileError: The record of a part cannot be read.
        OSError: Reading fails.
    """
    refuse_published(partial)
    if os.path.lexists(partial):
        resume.refuse_foreign_shards(partial)
    if not finalize:
        return
    recorded = tuple(parts.records(partial, plan, check=options.check))
    parts.require(plan, recorded)
    found = final_proof.look(plan, plan.shards, partial, checked=options.check)
    by_name = {name: seen for record in recorded for name, seen in record.shards.items()}
    parts.require(plan, recorded, found.wrong or parts.unlike(found.seen, by_name))


def rewritten(
    out: Path, plan: Plan, proof: Proof, beside: Mapping[str, bytes], talk: TextIO | None
) -> tuple[str, ...]:
    """Find what `republish` would write again.

    Args:
        out: What was published before.
        plan: As for `republish`.
        proof: Likewise.
        beside: Likewise.
        talk: Where to say that files of `out` are to be finished first.

    Returns:
        The names of the files that would change.

    Raises:
        OutputExistsError: `out` is anything else.
        ShardsChangedError: Its shards are not all there, or have other sizes or headers.
        ShardmergeError, OSError: As for `metadata`.
    """
    for warning in journal.interrupted(out):
        say(talk, f"Warning: {warning}")
    before = published.read_plan(out)
    if before.facts != plan.facts():
        raise OutputExistsError(str(out), _difference(before, plan.facts()))
    records = published.read(out)
    final_proof.require(plan, out)
    records = replace(records, report=records.report.choosing(proof.mtp))
    present = _read(out, proof.reference.path, beside)
    decided = decide(records, present, proof.changes, (), [ALLOW_CONFIG], proof.blueprint.architecture)
    changed, deleted = journal.changes(out, decided.files, decided.gone)
    return (*changed, *deleted)
