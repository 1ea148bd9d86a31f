"""One rank of a measurement: builds the model, and runs what `python -m tests.gpu` asks for. Started by torchrun.

Every figure is the slowest rank's. The first rank prints lines that begin with FIGURE and hold JSON. megatron-core is
imported late: a rehearsal puts a stub in its way first. Must not judge.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .contestants import Floor, bare_copy, blocks_of
from .models import SMALL, Size, build, of_bytes, train_step, write_reference

SEQUENCE = 2048  # tokens
STALLS, WARM_UP_STEPS, QUIET_STEPS, MOST_STEPS, CYCLES = 8, 12, 8, 60, 4


@dataclass(slots=True)
class Bench:
    """What all measurements of a rank use."""

    model: Any
    size: Size
    device: torch.device
    reference: Path
    places: dict[str, Path]
    rounds: int
    batch: tuple[int, int]  # sequences, and tokens of each
    owned_bytes: int = 0
    count: int = 0

    def tell(self, **facts: Any) -> None:
        if dist.get_rank() == 0:
            print("FIGURE " + json.dumps({"ranks": dist.get_world_size(), **facts}), flush=True)

    def timed(self, work: Callable[[], Any]) -> float:
        """Seconds of the slowest rank; all begin together."""
        dist.barrier()
        began = time.perf_counter()
        work()
        return self.slowest(time.perf_counter() - began)

    def slowest(self, number: float) -> float:
        held = torch.tensor([number], dtype=torch.float64, device=self.device)
        dist.all_reduce(held, dist.ReduceOp.MAX)
        return float(held)

    def fresh(self, place: str) -> Path:
        """A folder of this name that nobody has used; all ranks get the same."""
        self.count += 1
        return self.places[place] / f"run-{self.count}"

    def clear(self, folder: Path) -> None:
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
            os.sync()
        dist.barrier()

    def dump(self, out: Path) -> Any:
        from shardmerge.phase1_dump import dump

        return dump(self.model, out, hf_reference=self.reference, run_id="bench", step=1, attempt="0")

    def dump_async(self, out: Path) -> Any:
        from shardmerge.phase1_dump import dump_async

        return dump_async(self.model, out, hf_reference=self.reference, run_id="bench", step=1, attempt="0")


def learn_owned(bench: Bench) -> None:
    """A first dump warms up, and says how many bytes this rank owns; host memory is watched meanwhile."""
    from .memory import Watched

    out = bench.fresh("fast")
    with Watched() as watched:
        manifest = bench.dump(out)
        bench.owned_bytes = int(manifest.statistics["written_bytes"])
    bench.tell(
        what="memory", GB=bench.owned_bytes / 1e9, above_MB=bench.slowest(watched.above) / 1e6,
        kept_MB=bench.slowest(watched.kept) / 1e6, files=len(manifest.files),
    )  # fmt: skip
    bench.clear(out)


def floors(bench: Bench, places: list[str], writers: list[int]) -> None:
    """Floors and the dump in turns, on every place."""
    blocks = blocks_of(list(bench.model.parameters()), bench.owned_bytes)
    by_writers = {number: Floor(number, bench.device) for number in writers}
    for place in places:
        names = [*map(str, writers), "dump"]
        for number in range(bench.rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                out = bench.fresh(place)
                if name == "dump":
                    seconds = bench.timed(lambda out=out: bench.dump(out))  # type: ignore[misc]
                else:
                    out.mkdir(parents=True, exist_ok=True)
                    floor, label = by_writers[int(name)], f"rank{dist.get_rank()}"
                    seconds = bench.timed(lambda f=floor, o=out, n=label: f.write(blocks, o, n))  # type: ignore[misc]
                bench.tell(what="floor", place=place, by=name, round=number, seconds=round(seconds, 4))
                bench.clear(out)


def stalls(bench: Bench, places: list[str]) -> None:
    """How long `dump_async` keeps its caller, beside a bare copy of as many bytes to the same memory."""
    from shardmerge.phase1_dump import prepare
    from shardmerge.phase1_dump.dump_in_background import background_of

    preparing = bench.timed(lambda: prepare(bench.owned_bytes))
    bench.tell(what="preparing", seconds=round(preparing, 3), GB=bench.owned_bytes / 1e9)
    pinned = background_of(os.getpid()).pinned
    assert pinned is not None
    copy = bare_copy(blocks_of(list(bench.model.parameters()), bench.owned_bytes), pinned.tensor)
    for number in range(STALLS):
        place = places[number % len(places)]
        bare, out = bench.timed(copy), bench.fresh(place)
        dist.barrier()
        began = time.perf_counter()
        dumping = bench.dump_async(out)
        call = bench.slowest(time.perf_counter() - began)
        told = bench.slowest(dumping.seconds_stalled)
        dumping.wait()
        whole = bench.slowest(time.perf_counter() - began)
        bench.tell(
            what="stall", number=number, place=place, bare=round(bare, 4),
            call=round(call, 4), told=round(told, 4), whole=round(whole, 3),
        )  # fmt: skip
        bench.clear(out)


def steps(bench: Bench, place: str, streams: list[int]) -> None:
    """Seconds of training steps while the child writes, with so many threads, and while nothing is written.

    Quiet steps stand on both sides, as a machine becomes faster or slower. As many steps again, beside which nothing is
    written, stand between quiet ones too: how far their ratio is from 1 tells what a measurement of this kind can see.
    """
    from shardmerge.phase1_dump import dump_in_background

    tokens = torch.randint(0, bench.size.vocab, bench.batch, device=bench.device)

    def step() -> float:
        began = time.perf_counter()
        train_step(bench.model, tokens)
        return bench.slowest(time.perf_counter() - began)

    def several(number: int) -> list[float]:
        return [step() for _ in range(number)]

    several(WARM_UP_STEPS)
    for cycle in range(CYCLES):
        for number in streams:
            dump_in_background.STREAMS = number or dump_in_background.STREAMS
            out, quiet, busy = bench.fresh(place), several(QUIET_STEPS), list[float]()
            began, dumping = time.perf_counter(), bench.dump_async(out)
            while len(busy) < MOST_STEPS and not bench.slowest(float(dumping.done())):
                busy.append(step())
            writing = time.perf_counter() - began
            dumping.wait()
            bench.clear(out)
            between = several(QUIET_STEPS)
            idle, after = several(len(busy)), several(QUIET_STEPS)
            bench.tell(
                what="steps", place=place, streams=dump_in_background.STREAMS, cycle=cycle, writing=round(writing, 2),
                busy=busy, beside_busy=quiet + between, idle=idle, beside_idle=between + after,
            )  # fmt: skip


def modelopt(bench: Bench) -> None:
    """Model-Optimizer's export of the same model, beside dump and memory."""
    from modelopt.torch.export import export_mcore_gpt_to_hf

    from .memory import Watched

    for name in ("modelopt", "dump", "dump_async"):
        out = bench.fresh("disk")
        with Watched() as watched:
            if name == "modelopt":
                seconds = bench.timed(lambda out=out: export_mcore_gpt_to_hf(  # type: ignore[misc]
                    bench.model, str(bench.reference), dtype=torch.bfloat16, export_dir=str(out)))  # fmt: skip
            elif name == "dump":
                seconds = bench.timed(lambda out=out: bench.dump(out))  # type: ignore[misc]
            else:
                seconds = bench.timed(lambda out=out: bench.dump_async(out).wait())  # type: ignore[misc]
        written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        bench.tell(
            what="peer", by=name, seconds=round(seconds, 2), GB=written / 1e9,
            above_MB=bench.slowest(watched.above) / 1e6,
        )  # fmt: skip
        bench.clear(out)


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gb", type=float, default=22.8)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--disk", type=Path, required=True)
    parser.add_argument("--fast", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="floors,stalls,steps")
    parser.add_argument("--writers", default="1,2,4,8", help="of a floor, in turns")
    parser.add_argument("--places", default="fast,disk", help="of floors and steps")
    parser.add_argument(
        "--streams", default="0", help="threads of the child beside steps, in turns; 0: as always"
    )
    parser.add_argument("--sequences", type=int, default=8, help="of a training step")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    given = parsed(arguments)
    from .worlds import world

    with world() as device:
        size = SMALL if given.small else of_bytes(given.gb * 1e9)
        reference = write_reference(size, given.disk / f"reference-{os.getpid()}")
        model = build(size, dist.get_world_size(), device)
        where = {"fast": given.fast, "disk": given.disk}
        batch = (given.sequences, min(SEQUENCE, size.vocab))
        bench = Bench(model, size, device, reference, where, given.rounds, batch)
        learn_owned(bench)
        todo, places = given.only.split(","), given.places.split(",")
        if "floors" in todo:
            floors(bench, places, [int(one) for one in given.writers.split(",")])
        if "stalls" in todo:
            stalls(bench, places)
        if "steps" in todo:
            for place in places:
                steps(bench, place, [int(one) for one in given.streams.split(",")])
        if "modelopt" in todo:
            modelopt(bench)


if __name__ == "__main__":
    main(sys.argv[1:])
