"""`make bench`: speeds and memory, each beside its peer in the same run, as a table of ratios and bounds.

Decides only what is printed. What is measured, and how, is in a module for every section.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from . import adopting, assembling, dumping, from_disk, growth, memory, packing, strided
from .line import HEAD, Line, row

LEGEND = """\
Every contestant runs once in each round; seconds are medians of the rounds, ratios are medians of the rounds' ratios.
warm: the input was read just before. cold: it was dropped from the page cache just before, with
posix_fadvise(DONTNEED) after fsync, which needs no privilege. Every contestant ends with its files on the disk (fsync).
Seconds of ours include the start of Python; those of peers that need torch do not. "cpu" are seconds of all processors
together. Memory is VmHWM of each process. BROKEN: a bound is not kept.
"""
Section = Callable[[argparse.Namespace, Path], Iterator[Line]]
SECTIONS: dict[str, Section] = {
    "dump": lambda given, folder: dumping.lines(given.gib, folder, given.device),
    "disk": lambda given, folder: from_disk.lines(given.gib, folder),
    "adopt": lambda given, folder: adopting.lines(given.gib, folder),
    "assemble": lambda given, folder: assembling.lines(given.gib, folder, given.tp),
    "strided": lambda _given, folder: strided.lines(folder),
    "memory": lambda _given, folder: memory.lines(folder),
    "growth": lambda _given, folder: growth.lines(folder),
    "pack": lambda _given, folder: packing.lines(folder),
}


def main() -> int:
    """Generate, measure, print; 1 if a bound is broken."""
    options = parser().parse_args()
    folder = Path(tempfile.mkdtemp(prefix="shardmerge-bench-", dir=options.dir))
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(
        f"{cores} cores, load {load:.1f} before the start; models of about {options.gib:g} GiB in {folder}."
    )
    print(LEGEND, row(HEAD), row(("---",) * len(HEAD)), sep="\n", flush=True)
    broken = 0
    try:
        for name in options.only or SECTIONS:
            for line in SECTIONS[name](options, folder):
                print(line.row(), flush=True)
                broken += not line.kept
    finally:
        shutil.rmtree(folder)
    print(f"\nBounds: {f'{broken} BROKEN' if broken else 'all kept'}")
    return bool(broken)


def parser() -> argparse.ArgumentParser:
    """Arguments of `python -m tests.bench`."""
    found = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    found.add_argument(
        "--only", action="append", choices=SECTIONS, help="a section; may be given several times"
    )
    found.add_argument("--gib", type=float, default=4.5, help="size of the models (default: %(default)s)")
    found.add_argument(
        "--tp",
        type=int,
        action="append",
        help="of what is assembled; may be given several times (default: 2, 8)",
    )
    found.add_argument(
        "--dir", help="where to write; needs three times the size (default: the temporary directory)"
    )
    found.add_argument("--device", default="cpu", help="where the model lies while it is dumped: cpu or cuda")
    return found


if __name__ == "__main__":
    sys.exit(main())
