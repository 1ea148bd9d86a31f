"""Which architecture was tested at which topology, and how: the record behind the README's table.

Decides how the record is spelled, drawn and compared: `python -m tests.matrix [--whole] TESTED DOCUMENTED`. Must not
know how tests run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

PROPERTY = "shardmerge-tested"
HOW = {
    "bytes": "real ranks, every byte equal to the checkpoint that transformers wrote",
    "logits": "real ranks or one, logits equal to transformers'",
    "coverage": "every rank in turn in a fake world, every tensor tiled exactly once",
}
SIGNS = {"bytes": "B", "logits": "L", "coverage": "c"}
Record = dict[str, dict[str, list[str]]]


def cell(architecture: str, topology: str, how: str) -> str:
    """One passed comparison as a line. Raises ValueError for an unknown `how`."""
    if how not in HOW:
        raise ValueError(f"{how!r} is none of {', '.join(HOW)}")
    return f"{architecture}|{topology}|{how}"


def collect(cells: Iterable[str]) -> Record:
    """topology -> architecture -> sorted list of how."""
    record: Record = {}
    for line in sorted(set(cells)):
        architecture, topology, how = line.split("|")
        record.setdefault(topology, {}).setdefault(architecture, []).append(how)
    return record


def draw(record: Record) -> str:
    """The record as a Markdown table, a row per topology."""
    architectures = sorted({name for row in record.values() for name in row})
    short = [name.removesuffix("ForCausalLM") for name in architectures]
    lines = [f"| topology | {' | '.join(short)} |", f"|---|{'---|' * len(short)}"]
    for topology, row in sorted(record.items(), key=lambda item: (item[0] != "single", item[0])):
        signs = ["".join(SIGNS[how] for how in HOW if how in row.get(name, ())) for name in architectures]
        lines.append(f"| {topology} | {' | '.join(signs)} |")
    return "\n".join(lines)


def unlike(tested: Record, documented: Record, *, whole: bool) -> list[str]:
    """Return what was tested and is not documented; of a run of the whole matrix also the reverse."""
    one, other = ({*_cells(record)} for record in (tested, documented))
    return sorted(one ^ other if whole else one - other)


def _cells(record: Record) -> Iterable[str]:
    for topology, row in record.items():
        for architecture, every in row.items():
            yield from (cell(architecture, topology, how) for how in every)


def main(arguments: list[str]) -> int:
    """Compare two records. Returns the exit code."""
    whole = "--whole" in arguments
    tested, documented = (json.loads(Path(one).read_text()) for one in arguments if one != "--whole")
    wrong = unlike(tested, documented, whole=whole)
    if wrong:
        print(
            f"The README's table shows something else than was tested just now: {wrong[:9]}", file=sys.stderr
        )
        print("Run make test-all, then make docs.", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
