"""The command of phase one: dump a model from a provider, or a checkpoint on disk; print and fail as one of many.

Decides what a rank prints and when it may fail. How a rank is written is decided in `dump_model`.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from shardmerge.common import reference
from shardmerge.common.architectures import own
from shardmerge.common.command.arguments import DIRECTORY, SIZE
from shardmerge.common.command.libraries import missing_library
from shardmerge.common.command.options import ARCHITECTURE, EXPERTS, HF_REFERENCE
from shardmerge.common.command.outcome import HELP, CallersError, reported, talk
from shardmerge.common.command.talk import say
from shardmerge.common.errors import BadInputError, ShardmergeError
from shardmerge.common.errors.wording import counted
from shardmerge.common.manifest import Manifest
from shardmerge.common.places import rank_name

from .dump_torch_dist import DumpedCheckpoint, dump_checkpoint, speaks
from .fragments.failed_ranks import forget_failure, record_failure, wait_for_others
from .fragments.rank_directory import refuse_models
from .preflight import require_writable, table_of, warning_of_room

PROVIDER = "It was raised by --model-provider {}, or by what that calls."
RANK_NAMES = ("RANK", "SLURM_PROCID")
SIZE_NAMES = ("WORLD_SIZE", "SLURM_NTASKS")


@dataclass(frozen=True, slots=True)
class Dumped:
    """What one rank did. Only the first rank prints it."""

    manifest: Manifest
    out: Path

    def facts(self) -> dict[str, Any]:
        """Return counts of this rank, for --json and --report."""
        manifest = self.manifest
        counts = {"rank": manifest.rank, "files": len(manifest.files), "rectangles": len(manifest.columns)}
        return (
            counts
            | {"out": str(self.out)}
            | manifest.statistics
            | {"health": manifest.health.as_json(), "drops": manifest.drops}
        )

    def scope(self) -> tuple[list[str], list[str]]:
        """Return what was checked, and what not."""
        checked = [
            "every parameter is claimed by a row of the table, and has the shape that config.json gives it",
            "whether numbers are finite, and tensors more than zeros: health",
        ]
        return checked, ["what other ranks wrote: check and merge do that"]

    def text(self) -> str:
        """Return a line on what was written, which is empty on all ranks but the first."""
        if self.manifest.rank:
            return ""
        size, wrote = self.manifest.world_size, len(self.manifest.columns)
        return f"rank 0 of {size:,} wrote {counted(wrote, 'rectangle')} to {self.out / rank_name(0)}"


def rank_report(path: Path) -> Path:
    """Return FILE for rank 0 and FILE-rank-NNNNN for the others: ranks never write the same file."""
    rank = launched(RANK_NAMES, 0)
    return path if rank == 0 else path.with_name(f"{path.stem}-{rank_name(rank)}{path.suffix}")


@click.command(context_settings=HELP)
@click.option("--model-provider", metavar="MODULE:FUNCTION", help="Function that returns this rank's model.")
@click.option("--checkpoint", type=DIRECTORY, help="torch_dist checkpoint to dump instead of a model.")
@HF_REFERENCE
@click.option(
    "--out",
    required=True,
    type=DIRECTORY,
    help="Directory of the dump, shared by all ranks.",
)
@click.option("--run-id", required=True, help="Name of this dump, the same on every rank.")
@click.option("--step", type=int, help="Training step of the parameters; a checkpoint tells it itself.")
@click.option("--attempt", help="Which attempt this is; default: the launcher's job id and restart count.")
@click.option(
    "--max-fragment-size",
    "max_fragment_bytes",
    type=SIZE,
    help="Of a model: largest fragment file, as 5GB or 512MiB.  [default: 5GB]",
)
@click.option(
    "--max-share-size", "max_share_bytes", type=SIZE, help="Of a checkpoint: size of a share, at most 5GB."
)
@click.option("--dtype-from-reference", is_flag=True, help="Let the reference narrow router biases.")
@click.option("--drop-mtp", is_flag=True, help="Leave out multi-token prediction.")
@click.option("--drop-vision", is_flag=True, help="Leave out a vision tower though it was not frozen.")
@EXPERTS
@ARCHITECTURE
@click.option("--dequantize", is_flag=True, help="Write quantized Transformer Engine parameters as bf16.")
@click.option("--params-synced", is_flag=True, help="Parameters of overlap_param_gather have been gathered.")
@click.option(
    "--check-replicas", is_flag=True, help="Record checksums of replicas, for the merge to compare."
)
@click.option("--workers", type=click.IntRange(1), help="Of a checkpoint: processes on this machine.")
@click.option("--dry-run", is_flag=True, help="Of a checkpoint: say what would be written, from which files.")
@click.option(
    "--wait",
    type=click.FloatRange(0),
    default=600.0,
    show_default=True,
    help="Seconds to wait for the other ranks.",
)
@functools.partial(reported, report_path=rank_report)
def dump(
    model_provider: str | None, checkpoint: Path | None, out: Path, run_id: str, wait: float, **options: Any
) -> Dumped | DumpedCheckpoint:
    """Write what each rank of a Megatron-Core model holds, or a torch_dist checkpoint, for merge.

    Of a model: run it under a launcher, one process a rank. The provider initialises torch.distributed and
    megatron-core, builds the model, loads its weights, and returns the model or the list of its virtual pipeline
    chunks. No collective is entered after it returns.

    Of a checkpoint: neither torch nor a GPU is needed, and no pickle is executed. Any number of processes take shares
    of about 5 GB that nobody has: alone, with --workers, under torchrun or Slurm, again after a failure.

    \b
    Example:
      torchrun --nproc-per-node 8 -m shardmerge.phase1_dump \\
        --model-provider my_job.export:model --hf-reference Qwen3-30B-A3B \\
        --out /shared/dump --run-id pretrain-7 --step 120000
      shardmerge dump --checkpoint /ckpt/iter_0120000 --workers 4 \\
        --hf-reference Qwen3-30B-A3B --out /shared/dump --run-id pretrain-7
    """
    if model_provider is not None and checkpoint is not None:
        raise BadInputError("--model-provider and --checkpoint both name a model", "Give one of them.")
    if model_provider is None and checkpoint is None:
        raise BadInputError("the model is missing", "Give --model-provider or --checkpoint.")
    if checkpoint is not None:
        return _dump_checkpoint(checkpoint, out, run_id, wait, options)
    _refuse(options, OF_CHECKPOINT, "--checkpoint")
    if options["step"] is None:
        raise BadInputError("the training step is missing", "Give --step.")
    of_model = {
        name: value
        for name, value in options.items()
        if name not in OF_CHECKPOINT and (name, value) != ("max_fragment_bytes", None)
    }
    return _dump_model(str(model_provider), out=out, run_id=run_id, wait=wait, **of_model)


OF_CHECKPOINT = ("max_share_bytes", "workers", "dry_run")
OF_MODEL = (
    "step",
    "attempt",
    "max_fragment_bytes",
    "dequantize",
    "params_synced",
    "check_replicas",
)


def _refuse(options: Mapping[str, Any], names: tuple[str, ...], what: str) -> None:
    """Raise BadInputError if options were given that are of the other kind of dump."""
    spelled = {parameter.name: parameter.opts[0] for parameter in dump.params}
    if strange := [spelled[name] for name in names if options[name] not in (None, False)]:
        raise BadInputError(f"{', '.join(strange)} is for {what} alone", "Leave it out.")


def _dump_checkpoint(
    checkpoint: Path, out: Path, run_id: str, wait: float, options: dict[str, Any]
) -> DumpedCheckpoint:
    """Dump a checkpoint as one of however many processes."""
    _refuse(options, OF_MODEL, "--model-provider")
    of_both = ("hf_reference", "dtype_from_reference", "drop_mtp", "drop_vision", "experts", "architecture")
    taken = (*OF_CHECKPOINT, *of_both)
    process = launched(RANK_NAMES, 0)
    try:
        return dump_checkpoint(
            checkpoint,
            out,
            run_id=run_id,
            process=process,
            processes=launched(SIZE_NAMES, 1),
            patience=wait,
            progress_to=speaks(process) if talk() is not None else None,
            **{name: options[name] for name in taken if options[name] is not None},
        )
    except KeyboardInterrupt:
        say(talk(), "What is complete stays: give the same command again to go on.")
        raise


def _dump_model(
    model_provider: str,
    *,
    hf_reference: Path,
    out: Path,
    run_id: str,
    wait: float,
    architecture: str | None,
    **options: Any,
) -> Dumped:
    """Dump what this rank holds of a model."""
    rank, size = launched(RANK_NAMES, 0), launched(SIZE_NAMES, 1)
    refuse_models(out)
    require_writable(out, rank)  # without a wait for others, who could not be told of a failure
    forget_failure(out, rank)
    try:
        table = None if architecture is None else own.named(architecture)  # before a model is built
        known = reference.read(hf_reference)  # once a rank
        bound = table_of(known, table)
        if rank == 0 and (warning := warning_of_room(out, bound)):
            say(talk(), f"Warning: {warning}")
        dump_rank = _dump_rank()
        model = call_provider(model_provider)
        manifest = dump_rank(
            model,
            out,
            hf_reference=known,
            run_id=run_id,
            architecture=table,
            quiet=talk() is None,
            **options,
        )
    except (Exception, SystemExit) as error:  # a provider that parses arguments exits
        fail(out, rank, size, run_id, error, wait)
        raise
    assert manifest is not None  # on_error is "raise"
    return Dumped(manifest, out)


def _dump_rank() -> Callable[..., Manifest | None]:
    """Return the function of the API, which needs torch; help does not. Raises BadInputError if there is no torch."""
    try:
        from .dump_model import dump
    except ModuleNotFoundError as error:
        raise missing_library("dump", error) from error
    return dump


def call_provider(name: str) -> Any:
    """Return what the function `package.module:function` returns.

    Raises BadInputError if there is no such function, CallersError with whatever it raises, or its module.
    """
    module, _, function = name.partition(":")
    try:
        provider = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        if _is_of_the_name(error, module, function):
            raise BadInputError(
                f"--model-provider {name}: {error}", "Give package.module:function, importable here."
            ) from error
        raise CallersError(PROVIDER.format(name)) from error
    except Exception as error:
        raise CallersError(PROVIDER.format(name)) from error
    if not callable(provider):
        raise BadInputError(f"--model-provider {name} is not a function", "Give package.module:function.")
    try:
        return provider()
    except SystemExit as error:
        if error.code:
            raise
        raise BadInputError(
            f"--model-provider {name} ended the process instead of returning a model",
            "What it printed may say why.",
        ) from error
    except (ShardmergeError, KeyboardInterrupt):
        raise
    except BaseException as error:  # torch's CheckpointException is not an Exception
        raise CallersError(PROVIDER.format(name)) from error


def _is_of_the_name(error: Exception, module: str, function: str) -> bool:
    """Whether the name of a provider is wrong, and not what its module does while it is imported."""
    if isinstance(error, ModuleNotFoundError):
        return bool(error.name) and f"{module}.".startswith(f"{error.name}.")
    if isinstance(error, AttributeError):
        return error.name == function and isinstance(error.obj, ModuleType)
    return isinstance(error, ValueError) and not module


def fail(out: Path, rank: int, size: int, run_id: str, error: BaseException, seconds: float) -> None:
    """Record a failure and wait, so that ranks that can finish do.

    Args:
        out: the dump.
        rank: of this process.
        size: how many ranks there are.
        run_id: name of the dump.
        error: what went wrong.
        seconds: how long to wait for the other ranks at most.
    """
    error = error.__cause__ if isinstance(error, CallersError) and error.__cause__ else error
    record_failure(out, rank, run_id, error)
    click.echo(f"rank {rank} failed, waits up to {seconds:.0f} s for the others: {error}", err=True)
    missing = wait_for_others(out, size, seconds)
    if missing:
        click.echo(f"rank {rank}: {counted(len(missing), 'rank')} neither finished nor failed", err=True)


def launched(names: tuple[str, ...], otherwise: int, environment: Mapping[str, str] = os.environ) -> int:
    """Return a number that the launcher gave this process.

    Args:
        names: variables, of which the first that is set decides.
        otherwise: the number if none is set.
        environment: where the variables are looked up.

    Returns:
        The number.

    Raises:
        click.UsageError: What the variable holds is no number.
    """
    for name in names:
        if value := environment.get(name):
            if not value.strip().isdecimal():
                raise click.UsageError(f"the variable {name} is {value!r}, where a launcher sets a number.")
            return int(value)
    return otherwise
