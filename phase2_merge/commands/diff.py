"""The story of `diff`: which tensors differ between any two of dump, output and Hugging Face directory.

Where both sides recorded checksums of the same pieces, no byte of a tensor is read. Otherwise those of that tensor
are: of what shardmerge did not write, and of dumps that hold a tensor in other pieces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from shardmerge.common.command.byte_count import show
from shardmerge.common.command.progress import Progress
from shardmerge.common.errors import SHOWN
from shardmerge.common.errors.wording import counted

from ..ledger.names import grouped, layer_label, layer_of
from .tensor_cells import Tensor, read

DIFFERENT = 1  # the exit code of --exit-code, as git's


@dataclass(frozen=True, slots=True)
class Difference:
    """How the tensors of A and B differ, by name.

    Attributes:
        a, b: What was compared.
        equal: How many have the same bytes.
        differing: Names of those that have not.
        retyped: Of those with another dtype or shape.
        partial: Of those of which one side holds a part only.
        only_a, only_b: Of those that one side does not have.
        by_checksums: Of how many tensors a recorded checksum of one side or both was taken for their bytes.
        read_bytes: How many bytes were read, because no checksums were recorded of the same pieces.
        exit_code: 1 if they differ and the caller asked for that.
    """

    a: str
    b: str
    equal: int
    differing: tuple[str, ...]
    retyped: tuple[str, ...]
    partial: tuple[str, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    by_checksums: int
    read_bytes: int
    exit_code: int = 0

    @property
    def by_layer(self) -> dict[str, int]:
        """Differing tensors by layer, "none" for those of no layer."""
        counts = Counter(layer_of(name) for name in self.differing)
        order = sorted(counts, key=lambda layer: (layer is None, layer or 0))
        return {"none" if layer is None else layer_label(layer): counts[layer] for layer in order}

    def facts(self) -> dict[str, Any]:
        return asdict(self) | {"by_layer": self.by_layer}

    def scope(self) -> tuple[list[str], list[str]]:
        """Return what was compared, and what not."""
        now = "whether recorded checksums are those of the bytes that are there now (check, verify)"
        return [self._how()], [now] if self.by_checksums else []

    def text(self) -> str:
        kinds = (
            ("Differ in bytes", self.differing),
            ("Differ in dtype or shape", self.retyped),
            ("In part on one side, not compared", self.partial),
            (f"Only in {self.a}", self.only_a),
            (f"Only in {self.b}", self.only_b),
        )
        _, unchecked = self.scope()
        lines = [f"Same bytes: {self.equal:,}. Compared by {self._how()}."]
        lines += [f"NOT checked: {text}." for text in unchecked]
        for what, names in kinds:
            lines += _lines(what, names)
        layers = ", ".join(f"{layer}: {count:,}" for layer, count in self.by_layer.items())
        return "\n".join([*lines, *([f"Differing tensors by layer: {layers}."] if layers else [])])

    def _how(self) -> str:
        """Return in words by what tensors were compared."""
        recorded = f"recorded checksums of {counted(self.by_checksums, 'tensor')}"
        read = f"{show(self.read_bytes)} that were read"
        if self.by_checksums and self.read_bytes:
            return f"{recorded}, and {read} where no checksums of the same pieces are recorded"
        return read if self.read_bytes else recorded


def diff(a: str | Path, b: str | Path, *, exit_code: bool = False, talk: TextIO | None = None) -> Difference:
    """Compare any two of dump, output and Hugging Face directory.

    Args:
        a: One of them.
        b: The other.
        exit_code: Let the outcome say 1 if anything differs.
        talk: Progress goes here.

    Returns:
        How they differ.

    Raises:
        BadInputError: One is neither a dump nor a directory with weights.
        ShardmergeError: What reading manifests, headers and records raises.
        OSError: Reading fails.
    """
    in_a, in_b = read(Path(a)), read(Path(b))
    common = sorted(in_a.keys() & in_b.keys())
    progress = Progress("comparing", sum(in_a[name].num_bytes() for name in common), talk)
    kinds: dict[str, str] = {}
    by_checksums = read_bytes = 0
    for name in common:
        kinds[name], count = _kind(in_a[name], in_b[name])
        read_bytes += count
        all_bytes = in_a[name].num_bytes() + in_b[name].num_bytes()
        by_checksums += kinds[name] in {"equal", "differing"} and count < all_bytes
        progress.advance(in_a[name].num_bytes())
    progress.close()
    chosen = {
        kind: tuple(name for name in common if kinds[name] == kind)
        for kind in ("differing", "retyped", "partial")
    }
    only_a, only_b = tuple(sorted(in_a.keys() - in_b.keys())), tuple(sorted(in_b.keys() - in_a.keys()))
    differ = any(chosen.values()) or only_a or only_b
    return Difference(
        a=str(a),
        b=str(b),
        equal=sum(kind == "equal" for kind in kinds.values()),
        only_a=only_a,
        only_b=only_b,
        by_checksums=by_checksums,
        read_bytes=read_bytes,
        exit_code=DIFFERENT if exit_code and differ else 0,
        **chosen,
    )


def _kind(a: Tensor, b: Tensor) -> tuple[str, int]:
    """Return how two tensors differ: "equal", "differing", "retyped" or "partial"; and how many bytes were read."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return "retyped", 0
    recorded = all(cell.xxh3_128 is not None for cell in (*a.cells, *b.cells))
    if recorded and a.cuts() == b.cuts():
        return ("equal" if a.checksums() == b.checksums() else "differing"), 0
    if not (a.is_whole() and b.is_whole()):
        return "partial", 0
    (digest_a, read_a), (digest_b, read_b) = a.digest(), b.digest()
    return ("equal" if digest_a == digest_b else "differing"), read_a + read_b


def _lines(what: str, names: Iterable[str]) -> list[str]:
    all_names = list(names)
    if not all_names:
        return []
    lines = grouped(all_names)
    more = len(lines) - SHOWN
    shown = [f"  {line}" for line in lines[:SHOWN]]
    rest = [f"  ... and {more} more lines (--report FILE holds all names)"] if more > 0 else []
    return [f"{what}: {len(all_names):,}.", *shown, *rest]
