"""The command line of phase two: each command turns its options into one call, and returns the outcome.

What a command calls is imported when it is called, so help imports none of it. Must not decide anything else.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from shardmerge import phase2_merge
from shardmerge.common.command.arguments import DIRECTORY, FILE, SIZE
from shardmerge.common.command.options import ARCHITECTURE, GRAFT, HF_REFERENCE, SET, SET_NEW, TOKENIZER
from shardmerge.common.command.outcome import HELP, Outcome, refuse_unwritable, reported, talk
from shardmerge.common.errors import BadInputError

from .options import ADOPT, ALLOW_CONFIG, ALLOWANCES, LAYOUTS, UNCALIBRATED, VERIFICATIONS
from .shards.dask_cluster import cluster

BREAK_LOCK = click.option(
    "--break-lock",
    is_flag=True,
    help="Take the lock of OUT from commands on other hosts, once they are known to have ended.",
)


def _writable(_: click.Context, parameter: click.Parameter, file: Path | None) -> Path | None:
    """Return the file of an option. Raises click.BadParameter if it surely cannot be written."""
    if file is not None:
        refuse_unwritable(file, parameter.opts[0])
    return file


def _shared(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that check and merge both take."""
    for option in (
        ARCHITECTURE,
        SET_NEW,
        SET,
        GRAFT,
        click.option(
            "--drop-mtp",
            is_flag=True,
            help="Leave out multi-token prediction, and say so in config.json; recorded.",
        ),
        click.option(
            "--allow",
            type=click.Choice(ALLOWANCES),
            multiple=True,
            help="Make a warning of NaN, of replicas that differ, of a config.json that says other than the model "
            "computes, or of a vision tower that it promises and nobody holds; may be given several times.",
        ),
        click.option(
            "--uncalibrated",
            type=click.Choice(UNCALIBRATED),
            default="error",
            show_default=True,
            help="Experts whose inputs calibration never saw: refuse, or take the layer's largest input_scale.",
        ),
        click.option(
            "--verify",
            type=click.Choice(VERIFICATIONS),
            default="full",
            show_default=True,
            help="Read and check every byte, or only sizes and headers.",
        ),
        HF_REFERENCE,
    ):
        command = option(command)
    return command


@click.command(context_settings=HELP)
@click.argument("dumps", metavar="DUMP...", nargs=-1, required=True, type=DIRECTORY)
@_shared
@reported
def check(dumps: tuple[Path, ...], **options: Any) -> Outcome:
    """Prove that DUMP holds every tensor of the model once, undamaged. Writes nothing.

    Several DUMPs, such as node-local disks, are taken together.

    \b
    Example:
      shardmerge check /scratch/run7/dump --hf-reference ~/models/Qwen3-30B-A3B
    """
    return phase2_merge.check(dumps, talk=talk(), **options)


@click.command(context_settings=HELP)
@click.argument("dumps", metavar="DUMP...", nargs=-1, required=True, type=DIRECTORY)
@click.argument("out", metavar="OUT", type=DIRECTORY)
@_shared
@click.option(
    "--layout",
    type=click.Choice(LAYOUTS),
    default=ADOPT,
    show_default=True,
    help="Take files of entire tensors as they are, or write everything in layer order into full shards.",
)
@click.option(
    "--max-shard-size",
    "max_shard_bytes",
    type=SIZE,
    default="5GB",
    show_default=True,
    help="Largest assembled shard, as 5GB or 512MiB.",
)
@click.option(
    "--min-shard-size",
    "min_shard_bytes",
    type=SIZE,
    default=0,
    help="Join files of entire tensors that are smaller, as 512MiB.  [default: none]",
)
@click.option("--workers", type=click.IntRange(1), help="Processes that assemble.  [default: one per core]")
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Assemble on the dask cluster of this scheduler, as tcp://node7:8786, instead of on this host.",
)
@click.option(
    "--part",
    metavar="NUMBER/COUNT",
    help="Write only this part of the shards, from 1/16 to 16/16 in an array of 16 jobs; then --finalize.",
)
@click.option("--finalize", is_flag=True, help="Publish what all parts wrote.")
@TOKENIZER
@click.option("--dry-run", is_flag=True, help="Prove, plan, end as the merge would, and write nothing.")
@BREAK_LOCK
@reported
def merge(
    dumps: tuple[Path, ...],
    out: Path,
    part: str | None,
    scheduler: str | None,
    **options: Any,
) -> Outcome:
    """Publish DUMP as the Hugging Face checkpoint OUT.

    Proves first what `check` proves. Tensors that no rank cut are not copied: their files become shards by hard
    link. OUT appears whole or not at all. If OUT was published from this dump before, only its metadata are written
    again: what earlier commands corrected is kept, unless it is set anew, and so is a tokenizer that they were given.
    Any other OUT that exists is left alone.

    \b
    Example:
      shardmerge merge /scratch/run7/dump /scratch/run7/hf --hf-reference ~/models/Qwen3-30B-A3B
    """
    if part and (options["finalize"] or options["dry_run"]):
        raise BadInputError(
            "--part with --finalize or --dry-run", "Give those two for the whole merge, without a part."
        )
    if scheduler == "":
        raise BadInputError(
            "--scheduler is empty, perhaps because a variable is not set",
            "Give its address, as tcp://node7:8786, or leave it out to assemble on this host.",
        )
    if scheduler and options["workers"]:
        raise BadInputError("--scheduler with --workers", "The cluster decides how many there are.")
    with cluster(scheduler) if scheduler else nullcontext() as executor:
        if part is None:
            return phase2_merge.merge(dumps, out, executor=executor, talk=talk(), **options)
        del options["finalize"], options["dry_run"], options["tokenizer"]  # the last one writes it
        return phase2_merge.merge_part(dumps, out, part, executor=executor, talk=talk(), **options)


@click.command(context_settings=HELP)
@click.argument("out", metavar="OUT", type=DIRECTORY)
@click.option(
    "--hf-reference",
    type=DIRECTORY,
    help="Where config.json and sidecars come from, a directory or an id in the Hub's cache; earlier corrections of "
    "config.json are dropped.  [default: those of OUT stay, as they were corrected or edited]",
)
@TOKENIZER
@SET
@SET_NEW
@ARCHITECTURE
@click.option(
    "--allow",
    type=click.Choice([ALLOW_CONFIG]),
    multiple=True,
    help="Make a warning of a config.json that says other than the model computes.",
)
@BREAK_LOCK
@reported
def metadata(out: Path, **options: Any) -> Outcome:
    """Write config.json, index, tokenizer and report of OUT again, in seconds; shards are not touched.

    For an OUT that shardmerge merge published. What does not fit its tensors is refused, and nothing changes. No dump
    is needed.

    \b
    Example:
      shardmerge metadata /scratch/run7/hf --set config.rope_theta=1000000
      shardmerge metadata /scratch/run7/hf --set-new 'config.eos_token_id=[151645, 151643]'
    """
    return phase2_merge.metadata(out, talk=talk(), **options)


@click.command(context_settings=HELP)
@click.argument("out", metavar="OUT", type=DIRECTORY)
@click.option(
    "--verify",
    "how",
    type=click.Choice(VERIFICATIONS),
    default="full",
    show_default=True,
    help="Read every byte that has a recorded checksum, or only sizes and headers.",
)
@ARCHITECTURE
@click.option("--scan", is_flag=True, help="Look at every number too: NaN, infinities, tensors of zeros.")
@reported
def verify(out: Path, how: Any, *, scan: bool, architecture: str | None) -> Outcome:
    """Check any Hugging Face directory, also one that shardmerge did not write.

    Index against headers and file sizes, total_size, tensors that are dangling or in no index, shapes against
    config.json where the architecture is known, what is declared of a quantization against weights and scales, and
    checksums where shardmerge recorded them; with --scan, numbers.

    \b
    Example:
      shardmerge verify /scratch/run7/hf
    """
    return phase2_merge.verify(out, verify=how, scan=scan, architecture=architecture, talk=talk())


@click.command(context_settings=HELP)
@click.argument("path", metavar="PATH", type=DIRECTORY)
@click.option(
    "--html",
    metavar="FILE",
    type=FILE,
    callback=_writable,
    help="Write a page of it too: the map, sizes, problems, in one file.",
)
@click.option(
    "--exit-code", is_flag=True, help="Exit with 1 if anything is missing or wrong, as far as can be seen."
)
@reported
def inspect(path: Path, html: Path | None, *, exit_code: bool) -> Outcome:
    """Show what PATH holds: a dump, also one in progress, or a Hugging Face directory.

    Ranks done, running and failed, topology, sizes, dtypes, what was dropped, and a map of layers x experts. Reads no
    tensor: that is what `check` and `verify` are for. Exits with 0 whatever it sees, unless a manifest cannot be read.

    \b
    Example:
      shardmerge inspect /scratch/run7/dump --html dump.html
    """
    from .inspection.page import WithPage

    inspection = phase2_merge.inspect(path, exit_code=exit_code)
    return inspection if html is None else WithPage(inspection, html)


@click.command(context_settings=HELP)
@click.argument("a", metavar="A", type=DIRECTORY)
@click.argument("b", metavar="B", type=DIRECTORY)
@click.option("--exit-code", is_flag=True, help="Exit with 1 if anything differs, as git diff does.")
@reported
def diff(a: Path, b: Path, *, exit_code: bool) -> Outcome:
    """Name the tensors that differ between A and B, each a dump or any Hugging Face directory, with a summary by layer.

    By the checksums that were recorded; where there are none of the same pieces, bytes are read. Exits 0 also if they
    differ.

    \b
    Example:
      shardmerge diff /scratch/run7/step-1000 /scratch/run7/step-2000
    """
    return phase2_merge.diff(a, b, exit_code=exit_code, talk=talk())
