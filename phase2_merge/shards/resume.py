"""What a merge that was killed left in OUT.partial: finished shards stay, everything else goes.

A shard is finished if its receipt, which is written last, belongs to the same plan, its size is right, and its pieces
were compared with their checksums if this merge asks for that. Its bytes are not read again.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from shardmerge.common import places
from shardmerge.common.errors import CorruptFileError
from shardmerge.common.places import LOCK, RECEIPTS, RECORDS

from ..output import receipts
from .plan import Plan


def keep_finished(folder: Path, plan: Plan, *, check: bool, stay: Collection[str] = ()) -> frozenset[str]:
    """The assembled shards that need not be written again; nothing else stays beside them but the lock and `stay`."""
    digest = plan.digest
    kept = frozenset(
        shard.name for shard in plan.assembled if is_finished(folder, shard.name, digest, check=check)
    )
    _clear(folder, {*kept, *stay, RECORDS})
    _clear(places.records(folder), {LOCK, RECEIPTS})
    _clear(places.receipts(folder), {f"{name}.json" for name in kept})
    return kept


def is_finished(folder: Path, shard: str, plan_digest: str, *, check: bool) -> bool:
    """Whether a shard and a receipt that fits lie in `folder`."""
    try:
        receipt = receipts.read(folder, shard)
        size = (folder / shard).stat().st_size
    except (CorruptFileError, FileNotFoundError):
        return False
    if receipt is None or (check and not receipt.checked):
        return False
    return receipt.plan_digest == plan_digest and receipt.num_bytes == size


def _clear(folder: Path, stay: set[str]) -> None:
    for entry in folder.iterdir():
        if entry.name in stay:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
