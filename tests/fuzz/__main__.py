"""`python -m tests.fuzz`: fuzz all readers for a time, and print what was done and found. `make fuzz` calls it."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from .campaign import Campaign, Done
from .targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
MEMORY = Path("/dev/shm")
HEAD = (
    f"{'target':22}{'executions':>12}{'CPU s':>9}{'edges':>8}{'CPU s since a new edge':>24}{'findings':>10}"
)


def main() -> int:
    """Fuzz. Returns 1 if there are findings."""
    given = _arguments()
    if find_spec("atheris") is None:
        print("atheris is not installed here: make fuzz installs it.", file=sys.stderr)
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    scratch = given.scratch or (MEMORY if os.access(MEMORY, os.W_OK) else None)
    campaign = Campaign(
        given.out.resolve(),
        given.corpus.resolve(),
        given.seconds,
        given.jobs,
        given.target or list(TARGETS),
        scratch,
    )
    done = campaign.run()
    found = {target: campaign.findings(target) for target in done}
    print("\n".join(_table(done, found)))
    return 1 if any(found.values()) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=600, help="by the clock, for all targets together")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at the same time")
    parser.add_argument("--target", action="append", choices=TARGETS, help="instead of all; may be repeated")
    parser.add_argument(
        "--corpus", type=Path, default=CORPUS, help="inputs to begin with, a folder for each target"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/fuzz"), help="corpus, findings and state, which grow"
    )
    parser.add_argument("--scratch", type=Path, help="a folder for small files; in memory if it is not given")
    return parser.parse_args()


def _table(done: dict[str, Done], found: dict[str, list[Path]]) -> list[str]:
    """Return the lines to print: a row for each target, their sum, and every finding."""
    rows = [_row(target, one, len(found[target])) for target, one in done.items()]
    total = Done(
        sum(one.executions for one in done.values()),
        sum(one.seconds for one in done.values()),
        sum(one.edges for one in done.values()),
        min(one.seconds_since_new_edge for one in done.values()),
    )
    findings = [
        f"{path}: {path.with_suffix('.txt').read_text(errors='replace').splitlines()[0]}"
        for paths in found.values()
        for path in paths
        if path.with_suffix(".txt").exists()
    ]
    return [HEAD, *rows, _row("all (since: the least)", total, sum(map(len, found.values()))), *findings]


def _row(name: str, done: Done, findings: int) -> str:
    return (
        f"{name:22}{done.executions:>12,}{done.seconds:>9,.0f}{done.edges:>8,}"
        f"{done.seconds_since_new_edge:>24,.0f}{findings:>10}"
    )


if __name__ == "__main__":
    sys.exit(main())
