"""The story of `diff`: which tensors differ between two dumps or outputs, by the checksums that were recorded.

A dump and an output have a checksum for every rectangle or tensor, so no byte of a tensor is read. Tensors that the two
hold in other cuts cannot be compared by checksum, and are counted as such, never as equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from shardmerge.common import reference as references
from shardmerge.common.dtypes import DTYPES
from shardmerge.common.errors import SHOWN, BadInputError
from shardmerge.common.places import MANIFESTS

from ..ledger import table
from ..ledger.names import grouped, layer_label, layer_of
from ..ledger.rank_directories import discover
from . import records

# dtype, global_shape, global_offset, local_shape
Place: TypeAlias = tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]
Tensors: TypeAlias = Mapping[str, frozenset[tuple[Place, str]]]


@dataclass(frozen=True, slots=True)
class Difference:
    """How the tensors of A and B differ, by name. `recut`: same dtype and shape, in other pieces."""

    a: str
    b: str
    equal: int
    differing: tuple[str, ...]
    retyped: tuple[str, ...]
    recut: tuple[str, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]

    @property
    def by_layer(self) -> dict[str, int]:
        """Differing tensors by layer, "none" for those of no layer."""
        counts = Counter(layer_of(name) for name in self.differing)
        order = sorted(counts, key=lambda layer: (layer is None, layer or 0))
        return {"none" if layer is None else layer_label(layer): counts[layer] for layer in order}

    def facts(self) -> dict[str, Any]:
        return asdict(self) | {"by_layer": self.by_layer}

    def text(self) -> str:
        kinds = (
            ("differ in bytes", self.differing),
            ("differ in dtype or shape", self.retyped),
            ("are cut otherwise and were not compared", self.recut),
            (f"are only in {self.a}", self.only_a),
            (f"are only in {self.b}", self.only_b),
        )
        lines = [f"{self.equal:,} tensors have the same bytes."]
        for what, names in kinds:
            lines += _lines(what, names)
        layers = ", ".join(f"{layer}: {count:,}" for layer, count in self.by_layer.items())
        return "\n".join([*lines, *([f"Differing tensors by layer: {layers}."] if layers else [])])


def diff(a: str | Path, b: str | Path) -> Difference:
    """Compare two dumps, two outputs, or one with the other.

    Raises BadInputError for what is neither or has no recorded checksums, and what reading it raises.
    """
    in_a, in_b = tensors_of(Path(a)), tensors_of(Path(b))
    common = sorted(in_a.keys() & in_b.keys())
    kinds = {name: _kind(in_a[name], in_b[name]) for name in common}
    chosen = {
        kind: tuple(n for n in common if kinds[n] == kind) for kind in ("differing", "retyped", "recut")
    }
    return Difference(
        a=str(a),
        b=str(b),
        equal=sum(kind == "equal" for kind in kinds.values()),
        only_a=tuple(sorted(in_a.keys() - in_b.keys())),
        only_b=tuple(sorted(in_b.keys() - in_a.keys())),
        **chosen,
    )


def _kind(a: frozenset[tuple[Place, str]], b: frozenset[tuple[Place, str]]) -> str:
    """Return how two records of a tensor differ: "equal", "differing", "retyped" or "recut"."""
    if a == b:
        return "equal"
    if {place[:2] for place, _ in a} != {place[:2] for place, _ in b}:
        return "retyped"
    return "differing" if {place for place, _ in a} == {place for place, _ in b} else "recut"


def tensors_of(path: Path) -> Tensors:
    """Return what a dump or an output recorded of every tensor. Raises BadInputError for anything else."""
    if path.is_dir() and any(path.glob(MANIFESTS)):
        return _of_dump(path)
    if not records.are_there(path):
        raise BadInputError(
            f"{path} has no recorded checksums",
            "Give a dump, or a directory that shardmerge merge published.",
        )
    return _of_output(path)


def _of_dump(path: Path) -> Tensors:
    ledger = table.read(discover([path]))
    rows = ledger.rows
    tensors: dict[str, set[tuple[Place, str]]] = {}
    for row in rows.written.nonzero()[0].tolist():
        place = (DTYPES[rows.dtype[row]], rows.global_of(row), *rows.box(row))
        tensors.setdefault(ledger.names[rows.name[row]], set()).add((place, rows.checksum(row)))
    return {name: frozenset(cells) for name, cells in tensors.items()}


def _of_output(path: Path) -> Tensors:
    shards = {file.name: references.read_header(file, path) for file in references.weight_files(path)}
    known = records.checksums(path, shards)
    tensors: dict[str, frozenset[tuple[Place, str]]] = {}
    for file, header in shards.items():
        for entry in header.entries:
            if entry.name not in known[file]:
                raise BadInputError(
                    f"{path / file} has no recorded checksum of {entry.name}", "Merge it again."
                )
            place = (entry.dtype, entry.shape, (0,) * len(entry.shape), entry.shape)
            tensors[entry.name] = frozenset({(place, known[file][entry.name])})
    return tensors


def _lines(what: str, names: Iterable[str]) -> list[str]:
    all_names = list(names)
    if not all_names:
        return []
    lines = grouped(all_names)
    more = len(lines) - SHOWN
    shown = [f"  {line}" for line in lines[:SHOWN]]
    rest = [f"  ... and {more} more lines (--report FILE holds all names)"] if more > 0 else []
    return [f"{len(all_names):,} tensors {what}:", *shown, *rest]
