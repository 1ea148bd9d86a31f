"""`make bench`: one generated model, dumped and merged, each beside its peer in the same run, as a table of ratios."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from tests.bench import packing
from tests.bench.dumping import Dumping, bench_family, measure, write_reference
from tests.bench.merging import Ran, copied, merged, rounds

MIB = 1 << 20
PACKED_GIB = 0.3  # before packing; a CPU packs some ten MB a second
KINDS = {"whole": "nothing split (EP 2)", "split": "everything split (TP 2, ETP 2)"}
Line = tuple[str, str, str, str, str]


def main() -> None:
    """Generate, measure, print."""
    options = parser().parse_args()
    folder = Path(tempfile.mkdtemp(prefix="shardmerge-bench-", dir=options.dir))
    try:
        print(f"A Qwen3-MoE of about {options.gib:g} GiB in {folder}; medians of several rounds.", flush=True)
        write_reference(bench_family(options.gib), folder / "reference")
        print(row(("what", "data", "peer", "ratio", "peak memory")), row(("---",) * 5), sep="\n", flush=True)
        for kind in KINDS:
            for line in of_kind(kind, options.gib, options.device, folder):
                print(row(line), flush=True)
        for name in packing.RECIPES if packing.is_possible() else ():
            print(row(packing_line(name, packing.measure(PACKED_GIB, name, folder / name))), flush=True)
    finally:
        shutil.rmtree(folder)


def parser() -> argparse.ArgumentParser:
    """Arguments of `python -m tests.bench`."""
    found = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    found.add_argument("--gib", type=float, default=4.5, help="size of the model (default: %(default)s)")
    found.add_argument(
        "--dir", help="where to write; needs three times the size (default: the temporary directory)"
    )
    found.add_argument("--device", default="cpu", help="where the model lies while it is dumped: cpu or cuda")
    return found


def of_kind(kind: str, gib: float, device: str, folder: Path) -> Iterator[Line]:
    """The lines of one way to cut the model; its files are removed at the end."""
    dump, reference = folder / kind, folder / "reference"
    for rank in range(2):
        yield dump_line(kind, rank, measure(gib, kind, rank, device, reference, dump))
    copies = rounds(partial(copied, dump), folder)
    for options in (["--verify", "full"], ["--verify", "size"]):
        runs = rounds(lambda out, given=options: merged(dump, out, reference, *given), folder)  # type: ignore[misc]
        yield merge_line(kind, " ".join(options), runs, copies)
    shutil.rmtree(dump)


def dump_line(kind: str, rank: int, found: Dumping) -> Line:
    """Dump against writing the same bytes plainly."""
    ratio = median(found.dump_rates) / median(found.plain_rates)
    size = f"{found.num_bytes / 1e9:.2f} GB"
    return (
        f"dump, {KINDS[kind]}, rank {rank}",
        size,
        "plain write",
        f"{ratio:.2f} x its speed",
        memory(found.extra_bytes),
    )


def packing_line(name: str, found: packing.Packing) -> Line:
    """Packing and dumping one rank against Model-Optimizer's export of it."""
    ratio = median(found.dump_seconds) / median(found.export_seconds)
    size = f"{found.num_bytes / 1e9:.2f} GB"
    return (
        f"dump, {name}, one rank",
        size,
        "modelopt's export",
        f"{ratio:.2f} x its time",
        memory(found.extra_bytes),
    )


def merge_line(kind: str, options: str, runs: Sequence[Ran], copies: Sequence[Ran]) -> Line:
    """Merge against cp."""
    ratio = median(run.seconds for run in runs) / median(copy.seconds for copy in copies)
    peak = max(run.peak_bytes for run in runs)
    return f"merge {options}, {KINDS[kind]}", "", "cp", f"{ratio:.2f} x its time", memory(peak)


def memory(num_bytes: int) -> str:
    """MiB: above the model for a dump, of the largest process for a merge."""
    return f"{num_bytes / MIB:.0f} MiB"


def row(line: Line) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(line)} |"


if __name__ == "__main__":
    main()
