"""`python -m tests.gpu`: dumps on this machine's GPUs beside floors, bare copies and Model-Optimizer, as a table.

Needs one to four GPUs, megatron-core 0.19 and Transformer Engine; without a GPU it rehearses on a small model. Judges
what `measuring` saw.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median
from threading import Timer
from typing import Any, TypeAlias

Figure: TypeAlias = dict[str, Any]
FLOOR_BOUND, STEP_BOUND, STALL_FACTOR, STALL_S, MEMORY_MB = 1.10, 1.02, 1.1, 0.3, 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", default="1,2", help="how many, one after the other")
    parser.add_argument("--limit", type=float, default=3000, help="seconds after which nothing new is begun")
    parser.add_argument("--disk", type=Path, required=True, help="a folder on a disk")
    parser.add_argument("--fast", type=Path, required=True, help="a folder on fast storage, such as a tmpfs")
    parser.add_argument("--log", type=Path, help="where all lines go")
    given, more = parser.parse_known_args()
    figures, ends = list[Figure](), time.monotonic() + given.limit
    for gpus in map(int, given.gpus.split(",")):
        found = run(
            gpus, [*more, "--disk", str(given.disk), "--fast", str(given.fast)], ends - time.monotonic()
        )
        figures += found
    if given.log:
        given.log.write_text("".join(json.dumps(figure) + "\n" for figure in figures))
    print("\n".join(table(figures)))


def run(gpus: int, options: Sequence[str], limit: float) -> list[Figure]:
    """Run the ranks; what they saw until the end, or until time was up."""
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={gpus}", "-m", "tests.gpu.measuring", *options]
    figures = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        alarm = Timer(max(limit, 0), process.terminate)
        alarm.start()
        for line in process.stdout:
            print(line, end="", flush=True)
            if "FIGURE " in line:
                figures.append(json.loads(line.split("FIGURE ", 1)[1]))
        alarm.cancel()
    return figures


def table(figures: Sequence[Figure]) -> Iterator[str]:
    """A line for each thing that has a bound, for every number of GPUs."""
    yield "| GPUs | what | beside | ratio or value | bound |"
    yield "|---|---|---|---|---|"
    for gpus in sorted({int(one["ranks"]) for one in figures}):
        own = [one for one in figures if one["ranks"] == gpus]
        for kind in (of_memory, of_floors, of_stalls, of_steps, of_peers):
            for what, beside, value, bound in kind(own):
                yield f"| {gpus} | {what} | {beside} | {value} | {bound} |"


Lines: TypeAlias = Iterator[tuple[str, str, str, str]]


def of_kind(figures: Sequence[Figure], what: str) -> list[Figure]:
    return [one for one in figures if one["what"] == what]


def of_memory(figures: Sequence[Figure]) -> Lines:
    for one in of_kind(figures, "memory"):
        yield (
            f"host memory of a dump, {one['GB']:.1f} GB a rank in {one['files']} files", "the model",
            f"{one['above_MB']:.0f} MB above it, {one['kept_MB']:.0f} MB kept", f"{MEMORY_MB} MB",
        )  # fmt: skip


def of_floors(figures: Sequence[Figure]) -> Lines:
    by_place: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in of_kind(figures, "floor"):
        by_place[one["place"]][str(one["by"])].append(one["seconds"])
    for place, contestants in by_place.items():
        dumps = contestants.pop("dump", [])
        best = min(contestants, key=lambda name: median(contestants[name]), default=None)
        for name, seconds in contestants.items():
            yield f"{place}: floor, {name} writers a rank", "", _spread(seconds), ""
        if best is not None and dumps:
            value = median(dumps) / median(contestants[best])
            beside = f"the floor of {best} writers"
            yield f"{place}: dump {_spread(dumps)}", beside, f"{value:.2f} of its time", str(FLOOR_BOUND)


def of_stalls(figures: Sequence[Figure]) -> Lines:
    for one in of_kind(figures, "preparing"):
        yield f"memory of {one['GB']:.1f} GB a rank and the child", "", f"{one['seconds']:.1f} s, once", ""
    later = [one for one in of_kind(figures, "stall") if one["number"]]
    if later:
        bare, call = median(one["bare"] for one in later), [one["call"] for one in later]
        over = max(one["call"] - STALL_FACTOR * one["bare"] for one in later)
        told = f"{_spread(call)}; at most {STALL_FACTOR} x bare + {over:.2f} s"
        yield "dump_async keeps its caller", f"bare copy: {bare:.2f} s", told, f"+ {STALL_S} s"


def of_steps(figures: Sequence[Figure]) -> Lines:
    found = [one for one in of_kind(figures, "steps") if one["busy"]]
    for place, streams in sorted({(one["place"], one["streams"]) for one in found}):
        own = [one for one in found if (one["place"], one["streams"]) == (place, streams)]
        quiet = median(step for one in own for step in one["beside_busy"])
        count = sum(len(one["busy"]) for one in own)
        for name, what in (
            (
                "busy",
                f"training step while the child writes to {place} with {streams} threads, {count} steps",
            ),
            ("idle", f"the same, while nothing is written, {count} steps"),
        ):
            ratios = [median(one[name]) / median(one[f"beside_{name}"]) for one in own]
            means = [mean(one[name]) / mean(one[f"beside_{name}"]) for one in own]
            told = f"{_ratio(ratios)}; of means {_ratio(means)}"
            yield what, f"without: {quiet * 1000:.0f} ms", told, str(STEP_BOUND) if name == "busy" else ""


def of_peers(figures: Sequence[Figure]) -> Lines:
    found = {one["by"]: one for one in of_kind(figures, "peer")}
    for name, one in found.items():
        beside = f"{found['modelopt']['seconds'] / one['seconds']:.1f} times as fast as Model-Optimizer"
        what = f"{name}, {one['GB']:.1f} GB written by all ranks"
        yield what, beside, f"{one['seconds']:.1f} s, {one['above_MB']:.0f} MB of host memory a rank", ""


def _ratio(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def _spread(seconds: Sequence[float]) -> str:
    return f"{median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


if __name__ == "__main__":
    main()
