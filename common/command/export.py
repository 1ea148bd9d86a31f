"""The command `export`: both phases on one machine, from a checkpoint on disk to a Hugging Face directory.

The dump lies in a folder beside the output, so that the same command goes on after a failure, and is removed when the
output is published. Both phases are called by name: this module imports neither.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from .. import places
from ..errors import OutputExistsError, ShardmergeError
from .arguments import DIRECTORY, SIZE
from .options import ARCHITECTURE, EXPERTS, GRAFT, HF_REFERENCE, SET, SET_NEW, TOKENIZER
from .outcome import HELP, Outcome, OutcomeWithScope, reported, talk
from .talk import say

RUN_ID = "made by shardmerge export"  # no user names a run so: export removes its dump in the end
OF_DUMP_ALONE = ("dtype_from_reference", "drop_vision", "experts")
OF_DUMP = (*OF_DUMP_ALONE, "hf_reference", "drop_mtp", "architecture")  # the last three are of the merge too
NOT_OF_THE_PROOF = (*OF_DUMP_ALONE, "tokenizer", "verify")
ALLOWANCES = ("nan", "config", "vision")  # a checkpoint has no replicas that could differ


@dataclass(frozen=True, slots=True)
class Exported:
    """What both phases did."""

    dumped: OutcomeWithScope
    merged: OutcomeWithScope

    def facts(self) -> dict[str, Any]:
        """Return the facts of both, for --json and --report."""
        return {"dump": self.dumped.facts(), "merge": self.merged.facts()}

    def scope(self) -> tuple[list[str], list[str]]:
        """Return what both checked, and what either did not."""
        (dumped, left), (merged, open_) = self.dumped.scope(), self.merged.scope()
        return [*dumped, *merged], [*left, *open_]

    def text(self) -> str:
        """Return what the merge says, and then what the dump did not check."""
        return "\n".join([self.merged.text(), *self.dumped.scope()[1]])


@click.command(context_settings=HELP)
@click.argument("out", metavar="OUT", type=DIRECTORY)
@click.option("--checkpoint", required=True, type=DIRECTORY, help="torch_dist checkpoint.")
@HF_REFERENCE
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: one per core]")
@click.option("--drop-mtp", is_flag=True, help="Leave out multi-token prediction, and say so in config.json.")
@click.option(
    "--drop-vision", is_flag=True, help="Leave out a vision tower, which training may have changed."
)
@click.option("--dtype-from-reference", is_flag=True, help="Let the reference narrow router biases.")
@EXPERTS
@ARCHITECTURE
@TOKENIZER
@GRAFT
@SET
@SET_NEW
@click.option(
    "--allow",
    type=click.Choice(ALLOWANCES),
    multiple=True,
    help="Make a warning of NaN, of a config.json that says other than the model computes, or of a vision tower that "
    "it promises and the checkpoint lacks; may be given several times.",
)
@click.option(
    "--max-shard-size",
    "max_shard_bytes",
    type=SIZE,
    help="Largest shard, as 2GB, unless a tensor is larger.  [default: 5GB, less for small models]",
)
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
    workers: int | None,
    max_shard_bytes: int | None,
    **options: Any,
) -> Outcome:
    """Turn a torch_dist checkpoint into the Hugging Face checkpoint OUT, on this machine.

    Needs neither torch nor a GPU, and executes no pickle. OUT must not exist, or be an empty folder. What was done is
    kept in OUT.dump until OUT is published: the same command goes on from there.

    \b
    Example:
      shardmerge export Qwen3-30B-A3B-run7 --checkpoint /ckpt/iter_0120000 --hf-reference Qwen3-30B-A3B
    """
    out = Path(os.path.abspath(out))
    dump, processes = places.dump_of_export(out), workers or len(os.sched_getaffinity(0))
    is_taken = import_module("shardmerge.phase2_merge.output.publish").is_taken
    if (was_taken := is_taken(out)) and not dump.is_dir():
        raise OutputExistsError(str(out))
    _require_sound(dump, options)
    size = {} if max_shard_bytes is None else {"max_shard_bytes": max_shard_bytes}
    try:
        dumped = import_module("shardmerge.phase1_dump").dump_checkpoint(
            checkpoint,
            dump,
            run_id=RUN_ID,
            max_share_bytes=max_shard_bytes,
            workers=processes,
            progress_to=talk(),
            **{name: options[name] for name in OF_DUMP},
        )
        merged = import_module("shardmerge.phase2_merge").merge(
            [dump],
            out,
            workers=processes,
            talk=talk(),
            **size,
            **{name: value for name, value in options.items() if name not in OF_DUMP_ALONE},
        )
    except KeyboardInterrupt:
        say(talk(), "What is done stays: give the same command again to go on.")
        raise
    except (OSError, ShardmergeError) as error:
        if was_taken or not is_taken(out) or dump.is_dir():  # who published also removes the dump
            raise
        raise OutputExistsError(str(out), "another export published it meanwhile") from error
    _remove(dump)
    return Exported(dumped, merged)


def _require_sound(dump: Path, options: Mapping[str, Any]) -> None:
    """Raise what the merge would raise of its options, before a dump takes an hour."""
    shared = {name: value for name, value in options.items() if name not in NOT_OF_THE_PROOF}
    asked = import_module("shardmerge.phase2_merge.options").Asked(dump, **shared)
    import_module("shardmerge.phase2_merge.commands.merge").require_sound(asked, options["tokenizer"])


def _remove(dump: Path) -> None:
    """Remove the dump, and say if that is not possible: the output is published all the same."""
    try:
        import_module("shardmerge.phase1_dump.shares.remove").remove(dump)
    except OSError as error:
        say(talk(), f"{dump} is not needed any more and could not be removed: {error}")
