"""Packing a quantized model, beside Model-Optimizer's own export of the same model in the same process.

Both write to the same disk, in turns; ours is the dump. Prints a line of JSON. Start it with
`python -m tests.bench.packing GIB RECIPE FOLDER`; `measure` does. Model-Optimizer's exporter needs a megatron-core
newer than 0.16.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.dumping import Anonymous, bench_family, cheap_model
from tests.worlds.checkpoints import config_json
from tests.worlds.families import Family
from tests.worlds.topology import SINGLE

from .line import Bound, Line, mib, of_time, seconds

ROUNDS = 5
GIB = {"FP8": 1.5, "NVFP4": 0.3}  # before packing; a CPU packs some ten MB a second into NVFP4
NO_SLOWER = Bound(1.0, "no slower")


@dataclass(frozen=True, slots=True)
class Packing:
    """Seconds of each round, and bytes of host memory above the model while dumping."""

    num_bytes: int
    dump_seconds: list[float]
    export_seconds: list[float]
    extra_bytes: int


def lines(folder: Path) -> Iterator[Line]:
    """A line for every recipe, or one that says why there is none."""
    if not is_possible():
        yield Line(
            "dump, quantized", peer="Model-Optimizer exports beside megatron-core 0.17: VENV=.venv-peers"
        )
        return
    for name, gib in GIB.items():
        found = measure(gib, name, folder / name)
        ours, theirs = median(found.dump_seconds), median(found.export_seconds)
        pairs = zip(found.dump_seconds, found.export_seconds, strict=True)
        value = median(dump / export for dump, export in pairs)
        what, memory = f"dump, {name}, one rank, {found.num_bytes / 1e9:.2f} GB", mib(found.extra_bytes)
        peer = f"modelopt's export: {seconds(theirs)}"
        yield Line(
            what, "", seconds(ours), peer, of_time(value), value, NO_SLOWER, f"{memory} above the model"
        )


def is_possible() -> bool:
    """Whether Model-Optimizer's exporter works with the installed megatron-core."""
    from megatron.core import package_info

    return (package_info.MAJOR, package_info.MINOR) >= (0, 17)


def measure(gib: float, recipe_name: str, folder: Path) -> Packing:
    """Run in a fresh process."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.bench.packing",
        str(gib),
        recipe_name,
        str(folder),
    ]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return Packing(**json.loads(result.stdout.splitlines()[-1]))


def run(gib: float, recipe_name: str, folder: Path) -> Packing:
    """Quantize the model of one rank, then dump and export in turns."""
    from torch import distributed
    from torch._C._distributed_c10d import HashStore

    from tests.worlds.cpu import prepare
    from tests.worlds.fake import join_model_parallel, leave_model_parallel
    from tests.worlds.quantizing import quantize, recipe

    family = bench_family(gib)
    write_reference(family, folder / "reference")
    prepare()
    distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    join_model_parallel(SINGLE)
    try:
        model = cheap_model(family, SINGLE, "cpu")
        for parameter in model[0].parameters():
            parameter.data.mul_(0.25)  # inside the range that they are calibrated to
        quantize(model, family, SINGLE, 0, recipe(recipe_name))
        rounds = [one_round(model, folder) for _ in range(ROUNDS)]
    finally:
        leave_model_parallel()
    num_bytes, dumps, exports, extras = zip(*rounds, strict=True)
    return Packing(num_bytes[0], list(dumps), list(exports), max(extras))


def write_reference(family: Family, folder: Path) -> None:
    """A config.json that transformers can read too."""
    folder.mkdir(parents=True)
    config = config_json(family)
    (folder / "config.json").write_text(json.dumps(config))


def one_round(model: Any, folder: Path) -> tuple[int, float, float, int]:
    """(bytes dumped, seconds of the dump, seconds of the export, bytes of memory above the model)."""
    import torch
    from modelopt.torch.export import export_mcore_gpt_to_hf

    from shardmerge.phase1_dump import dump

    out, theirs, reference = folder / "dump", folder / "modelopt", folder / "reference"
    for path in (out, theirs):
        shutil.rmtree(path, ignore_errors=True)
    os.sync()
    with Anonymous() as memory:
        began = time.perf_counter()
        found = dump(model, out, hf_reference=reference, run_id="bench", step=1, attempt="0")
        dumped = time.perf_counter() - began
    assert found is not None
    os.sync()
    began = time.perf_counter()
    export_mcore_gpt_to_hf(model[0], str(reference), dtype=torch.bfloat16, export_dir=str(theirs))
    for file in theirs.iterdir():
        with open(file, "rb") as written:
            os.fsync(written.fileno())  # as a dump does
    exported = time.perf_counter() - began
    return int(found.statistics["written_bytes"]), dumped, exported, memory.peak - memory.before


if __name__ == "__main__":
    print(json.dumps(asdict(run(float(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))))
