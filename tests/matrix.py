"""Which architecture was tested at which topology, and how: the record behind the README's table.

Decides how the record is spelled and drawn. Must not know how tests run.
"""

from __future__ import annotations

from collections.abc import Iterable

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
