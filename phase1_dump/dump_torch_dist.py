"""The story of phase one for a checkpoint on disk: plan, take shares, see that nothing changed meanwhile.

Any number of processes may tell it at the same time, on any hosts. Must not know how a checkpoint is read
(`torch_dist/`, `checkpoint/`), nor who takes which share (`shares/`).
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from shardmerge.common import file_systems, places
from shardmerge.common.architectures import Architecture
from shardmerge.common.command.byte_count import show
from shardmerge.common.command.libraries import missing_library
from shardmerge.common.command.progress import Progress
from shardmerge.common.command.talk import say
from shardmerge.common.errors import BadInputError, MissingSharesError, ShardmergeError
from shardmerge.common.errors.several import raise_problems
from shardmerge.common.errors.wording import counted

from .checkpoint.chunk_files import StoredPart
from .checkpoint.packing import Packing
from .checkpoint.plan import Options, Plan, plan_of, read_contents
from .checkpoint.quantizers import Quantizers
from .fragments.attempts import clear_all_ended
from .fragments.rank_directory import refuse_models
from .generation import Generation
from .shares.local_processes import Advance, in_processes
from .shares.read_once import forget, reading_once
from .shares.same_dump import require_same
from .shares.take import Taken, missing, take

SPARE_BYTES = 1 << 26  # of a file system, for manifests and whatever others write
NOT_COMPARED = (
    "Not compared: settings of the model, for {}; shapes were. "
    "So it is not known whether norms are stored minus one (layernorm_zero_centered_gamma): they were taken to be as "
    "readers take them."
)
COMPARED = "Settings of the model that {} records ({}) are compared by check and merge; others are not."


@dataclass(frozen=True, slots=True)
class DumpedCheckpoint:
    """What one call did of a checkpoint's dump.

    Attributes:
        out: The dump.
        num_shares: How many shares there are.
        written: Which of them this call wrote.
        num_bytes: Bytes that it wrote.
        unchecked: Keys of tensors that hold chunks without a CRC-32.
        dry_run: Lines that say which bytes would go where, if nothing was to be written.
        warnings: Signs that files of the checkpoint are of several saves.
        settings: What training recorded of the model beside the checkpoint, None if nothing can be read.
        compared: A sentence that says what of it is compared with config.json.
    """

    out: Path
    num_shares: int
    written: tuple[int, ...]
    num_bytes: int
    unchecked: tuple[str, ...] = ()
    dry_run: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    settings: dict[str, Any] | None = None
    compared: str = ""

    def facts(self) -> dict[str, Any]:
        """Return everything for --json and --report."""
        return {
            "out": str(self.out),
            "shares": self.num_shares,
            "written_shares": list(self.written),
            "written_bytes": self.num_bytes,
            "without_crc32": list(self.unchecked),
            "settings": self.settings,
            "warnings": list(self.warnings),
            "plan": list(self.dry_run),
        }

    def scope(self) -> tuple[list[str], list[str]]:
        """Return what was checked, and what not."""
        checked = [
            "every parameter is claimed by a row of the table, and has the shape that config.json gives it"
        ]
        checked += (
            []
            if self.dry_run
            else ["the CRC-32 of every tensor that was read", "sizes and times of all files"]
        )
        unchecked = [self.compared] if self.settings is None else []
        unchecked += [self._without_crc32()] if self.unchecked else []
        return checked, unchecked

    def _without_crc32(self) -> str:
        """Return what was not checked, as it cannot be."""
        tensors = counted(len(self.unchecked), "tensor")
        return f"{tensors} with chunks without CRC-32, {self.unchecked[0]} first"

    def text(self) -> str:
        """Return what a person wants to know."""
        if self.dry_run:
            return "\n".join((*self.dry_run, self.compared))
        shares = counted(self.num_shares, "share")
        lines = [f"wrote {len(self.written)} of {shares}, {show(self.num_bytes)}. All are in {self.out}."]
        if self.unchecked:
            lines.append(f"not checked: {self._without_crc32()}")
        return "\n".join((*lines, self.compared))


def dump_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    *,
    hf_reference: str | Path,
    run_id: str,
    dtype_from_reference: bool = False,
    drop_mtp: bool = False,
    drop_vision: bool = False,
    experts: str | None = None,
    architecture: str | Architecture | None = None,
    max_share_bytes: int | None = None,
    workers: int = 1,
    process: int = 0,
    processes: int = 1,
    patience: float = 600.0,
    dry_run: bool = False,
    progress_to: TextIO | None = None,
) -> DumpedCheckpoint:
    """Write a torch_dist checkpoint to `out`, a directory `rank-NNNNN` for each share, without torch or a pickle.

    Call it in as many processes as you like, at the same time or one after another: each takes shares that nobody has,
    and returns when all are there.

    Args:
        checkpoint: the folder of an iteration, or the one above it.
        out: directory of the dump.
        hf_reference: Hugging Face directory with the model's config.json; weights there, if any, give dtypes.
        run_id: name of the dump, the same in every call.
        dtype_from_reference: let the reference narrow tensors that are otherwise kept float32 (router biases).
        drop_mtp: leave out multi-token prediction.
        drop_vision: leave out a vision tower: no file says whether training changed it.
        experts: "packed" or "per-expert"; by default as the reference spells routed experts, or published ones do.
        architecture: a table of the caller's own, or `package.module:TABLE`.
        max_share_bytes: size of a share; by default 5 GB, less for small models.
        workers: how many processes of this machine write.
        process: which of the processes that were started together this one is, from 0.
        processes: how many were. They begin at different shares; nothing else depends on it.
        patience: seconds to wait for others without seeing that they write anything.
        dry_run: write nothing, and say which bytes would go where, from which files.
        progress_to: where progress and warnings are shown.

    Returns:
        What was done.

    Raises:
        ShardmergeError: the checkpoint cannot be dumped, is damaged or changed meanwhile; NoRoomError before anything
            is written; MissingSharesError if shares are missing in the end, which others began and did not complete.
        OSError: a file could not be written.
    """
    if workers < 1:
        raise BadInputError(
            f"workers is {workers!r}", "Give the number of processes of this machine, 1 or more."
        )
    folder = Path(out)
    refuse_models(folder)
    Generation(run_id, None, "plan")  # refuses a run id that cannot be
    file_systems.require_writable(folder, folder)
    plan = plan_of(
        Path(checkpoint),
        Path(hf_reference),
        Options(dtype_from_reference, drop_mtp, max_share_bytes, experts, architecture, drop_vision),
        _packing_of,
        read_contents if dry_run else reading_once(folder),
    )
    for warning in plan.warnings:
        say(progress_to, f"Warning: {warning}.")
    if dry_run:
        lines = tuple(_described(plan, folder))
        return DumpedCheckpoint(
            folder,
            len(plan.shares),
            (),
            0,
            dry_run=lines,
            warnings=plan.warnings,
            settings=plan.recorded.settings,
            compared=_compared(plan),
        )
    require_same(folder, run_id, plan.digest, len(plan.shares))
    open_bytes = sum(plan.shares[share].num_bytes for share in missing(folder, len(plan.shares)))
    file_systems.require(folder, open_bytes + SPARE_BYTES if open_bytes else 0)
    progress = Progress("dump", open_bytes, progress_to)
    first = process * len(plan.shares) // max(1, processes)
    work = functools.partial(_take, plan, folder, run_id, first, workers, patience)
    taken = in_processes(work, workers, progress) if workers > 1 else [work(0, progress.advance)]
    progress.close()
    return _outcome(plan, folder, run_id, taken)


def _packing_of(quantizers: Quantizers, parts_of: Callable[[str], Sequence[StoredPart]]) -> Packing:
    """Return what packs the weights of a checkpoint that has quantizers: that alone needs torch and modelopt."""
    try:
        from .quantized_checkpoint.packing import ModeloptPacking
    except ModuleNotFoundError as error:
        raise missing_library("dump of a checkpoint with quantizers", error) from None
    return ModeloptPacking(quantizers, parts_of)


def _take(
    plan: Plan,
    out: Path,
    run_id: str,
    first: int,
    workers: int,
    patience: float,
    number: int,
    advance: Advance,
) -> Taken:
    """Take shares as one of several processes of this machine."""
    begin = first + number * len(plan.shares) // workers
    return take(plan, out, run_id, first=begin, advance=advance, patience=patience)


def _outcome(plan: Plan, out: Path, run_id: str, taken: Sequence[Taken]) -> DumpedCheckpoint:
    """Return what was done. Raises what went wrong with shares, what is missing, and what is of another dump.

    Whether the checkpoint changed is asked at the end of each share, of all files: what is complete now was read from
    one state of it, whatever became of it since.
    """
    problems: dict[int, ShardmergeError] = {}
    for one in taken:
        problems |= one.problems
    raise_problems(problems.values())
    left = missing(out, len(plan.shares))
    if left:
        files = sorted({name for share in left for name in plan.files_of(share)})
        raise MissingSharesError(str(out), left, len(plan.shares), tuple(files))
    clear_all_ended(out)
    forget(out)
    # once more: somebody may have begun when there was nothing to see
    require_same(out, run_id, plan.digest, len(plan.shares))
    return DumpedCheckpoint(
        out,
        len(plan.shares),
        tuple(sorted(share for one in taken for share in one.shares)),
        sum(one.num_bytes for one in taken),
        tuple(sorted({key for one in taken for key in one.unchecked})),
        warnings=plan.warnings,
        settings=plan.recorded.settings,
        compared=_compared(plan),
    )


def _compared(plan: Plan) -> str:
    """Return a sentence that says what is compared with config.json beside shapes."""
    settings = plan.recorded.settings
    if settings is None:
        return NOT_COMPARED.format(plan.recorded.why_not)
    return COMPARED.format(plan.recorded.file, ", ".join(sorted(settings)))


def _described(plan: Plan, out: Path) -> Iterable[str]:
    """Yield a line for each share: how many bytes go where, from which files."""
    there = set(range(len(plan.shares))) - set(missing(out, len(plan.shares)))
    total = sum(share.num_bytes for share in plan.shares)
    tensors, shares = counted(len(plan.table.keys), "tensor"), counted(len(plan.shares), "share")
    yield f"{plan.folder.path}: {tensors} become {show(total)} in {shares}"
    for number, share in enumerate(plan.shares):
        files = plan.files_of(number)
        shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        done = ", which is there" if number in there else ""
        yield f"  {out / places.rank_name(number)}: {show(share.num_bytes)} from {shown}{done}"


def speaks(process: int) -> TextIO | None:
    """Return where a process shows its progress: stderr, for the first of each node."""
    return sys.stderr if os.environ.get("LOCAL_RANK", str(process)) == "0" else None
