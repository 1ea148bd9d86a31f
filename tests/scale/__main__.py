"""`make scale`: what check and planning cost for real models, for ten million rectangles, and how that grows.

Decides only what is printed. Dumps are sparse, the check is --verify size.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from . import rerun
from .generate import generate
from .measure import Cost
from .models import AS_PUBLISHED, GROWTH, LARGEST, REAL, Case, Published, World

BOUND_S, BOUND_BYTES = 60, 8 << 30
HEAD = f"{'model':<18}{'ranks':>8}{'rectangles':>13}{'check':>10}{'cpu':>9}{'plan':>8}{'peak':>10}"


def cost(case: Case, folder: Path) -> Cost:
    """Generate, measure in a process of its own, remove. Raises CalledProcessError if the check refuses."""
    try:
        generate(case, folder)
        command = [sys.executable, "-m", "tests.scale.measure", str(folder)]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Cost(**json.loads(found.stdout))


def line(name: str, of: Cost) -> str:
    """One row of the table."""
    seconds = f"{of.check_s:>8.1f} s{of.check_cpu_s:>7.1f} s{of.plan_s:>6.1f} s"
    return f"{name:<18}{of.ranks:>8,}{of.rectangles:>13,}{seconds}{of.peak_bytes / 2**30:>6.2f} GiB"


def show(title: str, cases: Iterable[Case], folder: Path) -> bool:
    """Print a table; whether every row keeps the bounds."""
    print(f"\n{title}\n{HEAD}", flush=True)
    kept = True
    for case in cases:
        found = cost(case, folder / "case")
        kept &= found.check_cpu_s < BOUND_S and found.peak_bytes < BOUND_BYTES
        print(line(case.name, found), flush=True)
    return kept


def show_published(folder: Path) -> bool:
    """Print what is planned for models whose published checkpoints others counted; whether both are the same."""
    print(
        "\nPublished checkpoints\nmodel                tensors           values               bytes",
        flush=True,
    )
    kept = True
    for name, (config, published) in AS_PUBLISHED.items():
        found = cost(Case(name, config, World(pp=9, ep=8, etp=1, tp=1), as_published=True), folder / "case")
        planned = Published(found.tensors, found.values, found.num_bytes)
        kept &= planned == published
        told = "as published" if planned == published else f"published: {published}"
        print(f"{name:<18}{found.tensors:>10,}{found.values:>17,}{found.num_bytes:>20,}  {told}", flush=True)
    return kept


def show_rerun(folder: Path) -> bool:
    """Print what a metadata rerun costs; whether it keeps its bound."""
    found = rerun.measure(folder / "rerun")
    seconds = " and ".join(f"{each:.1f}" for each in found.seconds)
    print(f"\nshardmerge metadata, start-up included: {seconds} s for {found.tensors:,} tensors", flush=True)
    return max(found.seconds) < rerun.BOUND_S


def main() -> int:
    """Print four tables; 1 if a bound is broken."""
    load = os.getloadavg()[0]
    print(f"{len(os.sched_getaffinity(0))} cores, load {load:.1f} before the start. check is --verify size.")
    with tempfile.TemporaryDirectory(prefix="shardmerge-scale-") as name:
        tables = (("As trained", REAL), ("Ten million rectangles", LARGEST), ("Growth", GROWTH[:-1]))
        kept = [show(title, cases, Path(name)) for title, cases in tables]
        kept.append(show_published(Path(name)))
        kept.append(show_rerun(Path(name)))
    told = f"check: {BOUND_S} s of processor time and 8 GiB; metadata: {rerun.BOUND_S} s"
    print(f"\nBounds ({told}): {'kept' if all(kept) else 'BROKEN'}")
    return not all(kept)


if __name__ == "__main__":
    sys.exit(main())
