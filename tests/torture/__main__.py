"""`python -m tests.torture`: tries points, keeps results of one commit, prints their sum. `make torture` calls it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from . import shim

FOLDER = Path("build/torture")


def main() -> int:
    """Return the exit code: 0 if everything held."""
    asked = _parser().parse_args()
    library = shim.build(FOLDER).resolve()
    if os.environ.get("LD_PRELOAD") != str(library):
        os.environ["LD_PRELOAD"] = str(library)
        os.execv(sys.executable, [sys.executable, "-m", "tests.torture", *sys.argv[1:]])
    from .campaign import run  # imports what is tortured, below the library

    shim.require_layout(library)
    return run(asked, library, FOLDER)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument(
        "--only",
        nargs="*",
        default=[],
        help="points, tried in any case, or beginnings of names, as merge-adopt:",
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="points that are tried at the same time"
    )
    parser.add_argument("--seconds", type=float, help="stop after so long")
    parser.add_argument(
        "--seed", type=int, help="of the sample or of random points; printed if it is not given"
    )
    parser.add_argument(
        "--random", action="store_true", help="try chains of points on random scenes, not the fixed sweep"
    )
    parser.add_argument(
        "--sample", type=int, help="try so many points of the fixed sweep, chosen by the seed"
    )
    parser.add_argument(
        "--power", choices=("ext4", "xfs"), nargs="*", default=[], help="cut the power of these"
    )
    parser.add_argument("--again", action="store_true", help="try points too that were tried at this commit")
    parser.add_argument("--work", type=Path, help="folder for what is tortured  [default: one in /dev/shm]")
    parser.add_argument(
        "--live", action="store_true", help="dump a real model too; needs torch and megatron-core"
    )
    parser.add_argument("--results", type=Path, help="file of results  [default: build/torture/COMMIT.jsonl]")
    parser.add_argument("--defect", help="put back a defect of `defects.py` first: it must be found")
    parser.add_argument("--sum", action="store_true", help="only print the sum of this commit's results")
    return parser


if __name__ == "__main__":
    sys.exit(main())
