"""The commands that look at what is there and judge nothing."""

from __future__ import annotations

from pathlib import Path

import click

from shardmerge.common import durable
from shardmerge.common.outcome import HELP, Outcome, reported

from . import compare, inspect_path
from .inspection.page import page

DIRECTORY = click.Path(path_type=Path)


@click.command(context_settings=HELP)
@click.argument("path", metavar="PATH", type=DIRECTORY)
@click.option(
    "--html",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page of it too: the map, sizes, problems, in one file.",
)
@reported
def inspect(path: Path, html: Path | None) -> Outcome:
    """Show what PATH holds: a dump, also one in progress, or a Hugging Face directory.

    Ranks done, running and failed, topology, sizes, dtypes, what was dropped, and a map of layers x experts. Judges
    nothing: that is what `check` and `verify` are for.

    \b
    Example:
      shardmerge inspect /scratch/run7/dump --html dump.html
    """
    found = inspect_path.inspect(path)
    if html is not None:
        durable.write_file(html, page(found).encode())
    return found


@click.command(context_settings=HELP)
@click.argument("a", metavar="A", type=DIRECTORY)
@click.argument("b", metavar="B", type=DIRECTORY)
@reported
def diff(a: Path, b: Path) -> Outcome:
    """Name the tensors that differ between A and B, each a dump or an output of shardmerge, with a summary by layer.

    By the checksums that were recorded: no tensor is read. Exits 0 also if they differ.

    \b
    Example:
      shardmerge diff /scratch/run7/step-1000 /scratch/run7/step-2000
    """
    return compare.diff(a, b)
