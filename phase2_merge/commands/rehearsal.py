"""What `merge --dry-run` finds out beyond proof and plan of an output that is not there yet. Writes nothing.

No lock is taken either: who writes just now may have ended when the merge is run.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..output.publish import refuse_published
from ..shards import final_proof, parts, resume
from ..shards.assembly_options import AssemblyOptions
from ..shards.plan import Plan


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
