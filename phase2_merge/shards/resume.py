"""What a killed merge left in OUT.partial: finished shards and foreign files stay, other files of ours go.

A shard that is assembled is finished if its receipt, which is written last, belongs to the same plan, its size is
right, and its pieces were compared with their checksums if this merge asks for that. Its bytes are not read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from shardmerge.common import durable, places
from shardmerge.common.errors import CorruptFileError

from ..output import receipts
from .plan import Adopted, Assembled, Plan

JSON_FILES = {places.CONFIG, places.HF_QUANT_CONFIG, places.INDEX}
RECORDS = {places.LEDGER, places.PLAN, places.REPORT}


def clear(folder: Path, plan: Plan, *, keep_adopted: bool = False) -> None:
    """Remove from OUT.partial what another merge or an earlier attempt left, and no shard that `plan` assembles.

    Removes files only, and only these names, which a merge creates (`common/places`):

    - in OUT.partial: `*.safetensors`, the temporary files `.NAME.PID.tmp`, config.json, hf_quant_config.json, the
      index, and what a reference's sidecars can be called (`places.is_sidecar`);
    - in OUT.partial/.shardmerge: ledger.parquet, plan.json, report.json and temporary files;
    - in OUT.partial/.shardmerge/receipts: `*.safetensors.json`, `part-*.json` and temporary files.

    Shards of the plan and their receipts stay, finished or not. Writing a shard replaces it by a rename, after its
    receipt is gone (`forget`): a receipt never stands beside a shard of another plan.

    Args:
        folder: OUT.partial, locked by the caller.
        plan: What is published.
        keep_adopted: Whether adopted shards are there already, because the parts of a merge put them there.

    Raises:
        OSError: A file cannot be removed.
    """
    assembled = {shard.name for shard in plan.assembled}
    stay = assembled | {shard.name for shard in plan.adopted if keep_adopted}
    receipts_stay = {places.receipt(folder, name).name for name in assembled}
    _remove(folder, lambda name: name not in stay and _is_beside_records(name))
    _remove(places.records(folder), RECORDS.__contains__)
    _remove(places.receipts(folder), lambda name: name not in receipts_stay and _is_receipt(name))


def is_finished(folder: Path, shard: str, plan_digest: str, *, check: bool) -> bool:
    """Whether a shard is complete.

    Args:
        folder: OUT.partial.
        shard: Name of an assembled shard.
        plan_digest: Of the plan that the shard must be of.
        check: Whether its pieces must have been compared with their checksums.

    Returns:
        True if the shard and a receipt that fits it lie in `folder`.
    """
    try:
        receipt = receipts.read(folder, shard)
        size = (folder / shard).stat().st_size
    except (CorruptFileError, FileNotFoundError):
        return False
    if receipt is None or (check and not receipt.checked):
        return False
    return receipt.plan_digest == plan_digest and receipt.num_bytes == size


def is_adopted(folder: Path, shard: Adopted) -> bool:
    """Whether a file of the right size lies where an adopted shard belongs."""
    path = folder / shard.name
    return path.is_file() and path.stat().st_size == shard.fragment.file.num_bytes


def complete_shards(folder: Path, plan: Plan, *, check: bool) -> frozenset[str]:
    """Return the names of the plan's shards that need not be written again, for a merge whose parts wrote them.

    Args:
        folder: OUT.partial.
        plan: What is published.
        check: Whether pieces of assembled shards must have been compared with their checksums.

    Returns:
        Assembled shards that are finished, and adopted ones that lie there.
    """
    adopted = {shard.name for shard in plan.adopted if is_adopted(folder, shard)}
    return frozenset(
        adopted.union(
            shard.name
            for shard in plan.assembled
            if is_finished(folder, shard.name, plan.digest, check=check)
        )
    )


def forget(folder: Path, shards: Iterable[Assembled]) -> None:
    """Remove, durably, receipts of shards that are about to be written again. Raises OSError."""
    stale = [path for shard in shards if (path := places.receipt(folder, shard.name)).exists()]
    for path in stale:
        path.unlink()
    if stale:
        durable.sync_folder(places.receipts(folder))


def _is_beside_records(name: str) -> bool:
    return fnmatchcase(name, places.SHARDS) or name in JSON_FILES or places.is_sidecar(name)


def _is_receipt(name: str) -> bool:
    return fnmatchcase(name, f"{places.SHARDS}.json") or fnmatchcase(name, places.PART_RECORDS)


def _remove(folder: Path, is_stale: Callable[[str], bool]) -> None:
    """Remove temporary files, and files whose name is stale. Folders stay."""
    for path in sorted(folder.iterdir()):
        name = path.name
        if (is_stale(name) or places.TEMPORARY.fullmatch(name)) and (path.is_symlink() or not path.is_dir()):
            path.unlink()
