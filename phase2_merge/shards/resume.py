"""What an earlier attempt left in OUT.partial: shards of the plan and foreign files stay, other files of ours go.

Must not know whether a shard that stays is finished: `final_proof` decides that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from shardmerge.common import durable, places
from shardmerge.common.errors import OutputExistsError

from ..output.lock import Lock
from .plan import Assembled, Plan

RECORDS = {places.LEDGER, places.PLAN, places.REPORT}


def clear(held: Lock, plan: Plan, *, keep_parts: bool = False) -> None:
    """Remove from OUT.partial what another merge or an earlier attempt left, and no shard of `plan`.

    Removes files only, and only these names, which a merge creates (`common/places`):

    - in OUT.partial: `model*.safetensors`, the temporary files `.NAME.TOKEN.tmp`, config.json,
      hf_quant_config.json, the index, and what a reference's sidecars can be called (`places.is_sidecar`), chat
      templates in their folder too;
    - in OUT.partial/.shardmerge: ledger.parquet, plan.json, report.json and temporary files;
    - in OUT.partial/.shardmerge/receipts: `*.safetensors.json`, `part-*.json` and temporary files.

    Shards of the plan and their receipts stay, finished or not. Writing a shard replaces it by a rename, after its
    receipt is gone (`forget`): a receipt never stands beside a shard of another plan.

    Args:
        held: The lock of OUT.partial.
        plan: What is published.
        keep_parts: Whether the records of the parts of a merge stay: they are wanted until it is published.

    Raises:
        OutputExistsError: It holds weights that no merge put there, which readers would load too.
        LockLostError: The lock was taken away.
        OSError: A file cannot be removed.
    """
    folder = held.folder
    refuse_foreign_shards(folder)
    held.confirm()
    stay = {shard.name for shard in plan.shards}
    receipts_stay = {places.receipt(folder, shard.name).name for shard in plan.assembled}
    if keep_parts:
        receipts_stay |= {path.name for path in places.receipts(folder).glob(places.PART_RECORDS)}
    _remove(folder, lambda name: name not in stay and _is_beside_records(name))
    if (folder / places.TEMPLATES).is_dir() and not (folder / places.TEMPLATES).is_symlink():
        _remove(folder / places.TEMPLATES, lambda name: places.is_sidecar(f"{places.TEMPLATES}/{name}"))
    _remove(places.records(folder), RECORDS.__contains__)
    _remove(places.receipts(folder), lambda name: name not in receipts_stay and _is_receipt(name))


def forget_temporary(held: Lock) -> None:
    """Remove files that never got their names, because whoever wrote them was killed. Raises LockLostError, OSError."""
    held.confirm()
    for folder in (held.folder, places.records(held.folder), places.receipts(held.folder)):
        _remove(folder, lambda _name: False)


def forget(held: Lock, shards: Iterable[Assembled]) -> None:
    """Remove, durably, receipts of shards that are about to be written again. Raises LockLostError, OSError."""
    folder = held.folder
    stale = [path for shard in shards if (path := places.receipt(folder, shard.name)).exists()]
    if stale:
        held.confirm()
        for path in stale:
            path.unlink(missing_ok=True)  # the same part may run twice
        durable.sync_folder(places.receipts(folder))


def refuse_foreign_shards(folder: Path) -> None:
    """Raise OutputExistsError if a folder holds weights that no merge calls so."""
    for path in sorted(folder.glob(places.SHARDS)):
        if places.SHARD.fullmatch(path.name) is None:
            raise OutputExistsError(str(folder), f"it holds {path.name}, which no merge of shardmerge made")


def _is_beside_records(name: str) -> bool:
    return places.SHARD.fullmatch(name) is not None or name in places.JSON_FILES or places.is_sidecar(name)


def _is_receipt(name: str) -> bool:
    return fnmatchcase(name, f"{places.SHARDS}.json") or fnmatchcase(name, places.PART_RECORDS)


def _remove(folder: Path, is_stale: Callable[[str], bool]) -> None:
    """Remove temporary files, and files whose name is stale. Folders stay."""
    for path in sorted(folder.iterdir()):
        name = path.name
        if (is_stale(name) or places.TEMPORARY.fullmatch(name)) and (path.is_symlink() or not path.is_dir()):
            path.unlink()
