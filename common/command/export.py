"""The command `export`: both phases on one machine, from a checkpoint on disk to a Hugging Face directory.

The dump lies in a folder beside the output, so that the same command goes on after a failure, and is removed when the
output is published. Both phases are called by name: this module imports neither.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from .. import places
from ..errors import OutputExistsError
from .arguments import DIRECTORY
from .outcome import HELP, Outcome, reported, talk
from .talk import say

RUN_ID = "export"


@dataclass(frozen=True, slots=True)
class Exported:
    """What both phases did."""

    dumped: Outcome
    merged: Outcome

    def facts(self) -> dict[str, Any]:
        """Return the facts of both, for --json and --report."""
        return {"dump": self.dumped.facts(), "merge": self.merged.facts()}

    def text(self) -> str:
        """Return what the merge says."""
        return self.merged.text()


@click.command(context_settings=HELP)
@click.argument("out", metavar="OUT", type=DIRECTORY)
@click.option("--checkpoint", required=True, type=DIRECTORY, help="torch_dist checkpoint.")
@click.option(
    "--hf-reference",
    required=True,
    type=DIRECTORY,
    help="Hugging Face directory of the same model: config.json and tokenizer, weights optional.",
)
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: one per core]")
@click.option("--drop-mtp", is_flag=True, help="Leave out multi-token prediction, and say so in config.json.")
@click.option("--dtype-from-reference", is_flag=True, help="Let the reference narrow router biases.")
@click.option(
    "--verify",
    type=click.Choice(["full", "size"]),
    default="full",
    show_default=True,
    help="Read and check every byte that was dumped, or only sizes and headers.",
)
@reported
def export(
    out: Path,
    checkpoint: Path,
    hf_reference: Path,
    workers: int | None,
    drop_mtp: bool,
    dtype_from_reference: bool,
    verify: str,
) -> Outcome:
    """Turn a torch_dist checkpoint into the Hugging Face checkpoint OUT, on this machine.

    Needs neither torch nor a GPU, and executes no pickle. What was done is kept in OUT.dump until OUT is published:
    the same command goes on from there.

    \b
    Example:
      shardmerge export Qwen3-30B-A3B-run7 --checkpoint /ckpt/iter_0120000 --hf-reference Qwen3-30B-A3B
    """
    out = Path(os.path.abspath(out))
    dump, processes = places.dump_of_export(out), workers or len(os.sched_getaffinity(0))
    if os.path.lexists(out) and not dump.is_dir():
        raise OutputExistsError(str(out))
    try:
        dumped = import_module("shardmerge.phase1_dump").dump_checkpoint(
            checkpoint,
            dump,
            hf_reference=hf_reference,
            run_id=RUN_ID,
            drop_mtp=drop_mtp,
            dtype_from_reference=dtype_from_reference,
            workers=processes,
            progress_to=talk(),
        )
        merged = import_module("shardmerge.phase2_merge").merge(
            [dump],
            out,
            hf_reference=hf_reference,
            drop_mtp=drop_mtp,
            verify=verify,
            workers=processes,
            talk=talk(),
        )
    except KeyboardInterrupt:
        say(talk(), "What is done stays: give the same command again to go on.")
        raise
    _remove(dump)
    return Exported(dumped, merged)


def _remove(dump: Path) -> None:
    """Remove a dump: files that phase one can have written, and the folders that are empty then."""
    try:
        for folder in [path for path in dump.iterdir() if places.RANK.fullmatch(path.name) and path.is_dir()]:
            for path in folder.iterdir():
                if places.is_of_rank(path.name):
                    path.unlink()
            folder.rmdir()
        dump.rmdir()
    except OSError as error:
        say(talk(), f"{dump} is not needed any more and could not be removed: {error}")
