"""One rank of the bench's model in a process of its own: its dump, and the same bytes written plainly.

Both write to the same disk, in turns, and fsync. Prints a line of JSON. Start it with
`python -m tests.bench.dumping`; `measure` does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self
from unittest import mock

from tests.worlds.checkpoints import config_json
from tests.worlds.families import Family
from tests.worlds.topology import Topology
from tests.worlds.widths import Experts

from .line import Bound, Line, mib

ROUNDS = 5
PLAIN_BLOCK_BYTES = 256 << 10  # larger calls make the kernel look for large folios, which takes longer
WHOLE, SPLIT = Topology(ep=2, dp=2), Topology(tp=2, etp=2)
BOUND = Bound(0.9, "at least 0.9", at_least=True)
KINDS = {"whole": "nothing split (EP 2)", "split": "everything split (TP 2, ETP 2)"}


@dataclass(frozen=True, slots=True)
class Dumping:
    """Bytes a second of each round, and bytes of host memory above the model while dumping."""

    num_bytes: int
    dump_rates: list[float]
    plain_rates: list[float]
    extra_bytes: int


def lines(gib: float, folder: Path, device: str) -> Iterator[Line]:
    """Dump against writing the same bytes plainly, of every rank in turn."""
    reference = folder / "reference"
    write_reference(bench_family(gib), reference)
    for kind, told in KINDS.items():
        for rank in range(2):
            found = measure(gib, kind, rank, device, reference, folder / kind)
            yield _line(f"dump, {told}, rank {rank}, {found.num_bytes / 1e9:.2f} GB", found)
        shutil.rmtree(folder / kind)


def _line(what: str, found: Dumping) -> Line:
    ours, theirs = median(found.dump_rates), median(found.plain_rates)
    pairs = zip(found.dump_rates, found.plain_rates, strict=True)
    value = median(dump / plain for dump, plain in pairs)
    peer, memory = f"plain write: {theirs / 1e9:.2f} GB/s", f"{mib(found.extra_bytes)} above the model"
    return Line(what, "", f"{ours / 1e9:.2f} GB/s", peer, f"{value:.2f} x its speed", value, BOUND, memory)


def bench_family(gib: float) -> Family:
    """A Qwen3-MoE of about `gib` GiB in bfloat16."""
    layers = max(1, round(gib * (1 << 30) / (32 * 3 * 2048 * 1024 * 2 + 12 * 2048 * 2048 * 2)))
    experts = Experts(num_experts=32, width=1024)
    return Family(
        "bench",
        "Qwen3MoeForCausalLM",
        qk_norm=True,
        layers=layers,
        hidden=2048,
        heads=32,
        groups=4,
        head_channels=128,
        vocab=32_001,
        experts=experts,
    )


def write_reference(family: Family, folder: Path) -> None:
    """config.json only: names and dimensions."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_json(family)
    (folder / "config.json").write_text(json.dumps(config))


def measure(gib: float, kind: str, rank: int, device: str, reference: Path, out: Path) -> Dumping:
    """Run one rank in a fresh process. `kind` is "whole" or "split"; `device` is where the model lies."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.dumping", str(gib), kind, str(rank), device]
    result = subprocess.run(
        [*command, str(reference), str(out)], stdout=subprocess.PIPE, check=True, text=True
    )
    return Dumping(**json.loads(result.stdout.splitlines()[-1]))


class Anonymous:
    """Samples this process's anonymous and shared memory; page cache of written files does not count."""

    def __init__(self) -> None:
        self.before = self.peak = anonymous_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, anonymous_bytes())


def anonymous_bytes() -> int:
    """RssAnon and RssShmem of this process: what is pinned is shared memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem")))


def plain_write(tensors: list[Any], path: Path) -> float:
    """Bytes a second of writing the tensors' bytes to one file, with fsync: nothing else is done."""
    os.sync()
    began = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for data in tensors:
            for at in range(0, len(data), PLAIN_BLOCK_BYTES):
                file.write(data[at : at + PLAIN_BLOCK_BYTES])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return sum(map(len, tensors)) / seconds


def run(gib: float, kind: str, rank: int, device: str, reference: Path, out: Path) -> Dumping:
    """Build the model of one rank, then dump and write plainly in turns. The last dump stays."""
    from tests.worlds.fake import fake_world

    topology = WHOLE if kind == "whole" else SPLIT
    with fake_world(topology, rank):
        model = cheap_model(bench_family(gib), topology, device)
        rounds = [one_round(model, rank, reference, out) for _ in range(ROUNDS)]
    num_bytes, dumps, plains, extras = zip(*rounds, strict=True)
    return Dumping(num_bytes[0], list(dumps), list(plains), max(extras))


def cheap_model(family: Family, topology: Topology, device: str) -> Any:
    """The rank's chunks without megatron's random initialisation, which would take longer than all rounds.

    Weights of norms are above zero, as trained ones are.
    """
    import torch

    from tests.worlds.fake import build_model

    with mock.patch.object(torch.nn.init, "normal_", lambda tensor, *_args, **_kwargs: tensor):
        chunks = build_model(family, topology, device=device)
    pattern = torch.randn(1 << 20, device=device)
    for name, parameter in chunks[0].named_parameters():
        flat, values = parameter.data.view(-1), pattern.abs() + 0.5 if "norm" in name else pattern
        for at in range(0, flat.numel(), values.numel()):
            flat[at : at + values.numel()].copy_(values[: flat.numel() - at])
    return chunks


def one_round(model: Any, rank: int, reference: Path, out: Path) -> tuple[int, float, float, int]:
    """(bytes dumped, dump's bytes a second, plain bytes a second, bytes of memory above the model)."""
    import torch

    from shardmerge.phase1_dump import dump

    tensors: list[Any] = [
        p.detach().cpu().view(torch.uint8).reshape(-1).numpy() for p in model[0].parameters()
    ]
    plain = plain_write(tensors, out.parent / "plain")
    del tensors
    shutil.rmtree(out / f"rank-{rank:05d}", ignore_errors=True)
    os.sync()
    with Anonymous() as memory:
        began = time.perf_counter()
        found = dump(model, out, hf_reference=reference, run_id="bench", step=1, attempt="0")
        seconds = time.perf_counter() - began
    assert found is not None
    num_bytes = int(found.statistics["written_bytes"])
    return num_bytes, num_bytes / seconds, plain, memory.peak - memory.before


if __name__ == "__main__":
    gib, kind, rank, device, reference, out = sys.argv[1:]
    print(json.dumps(asdict(run(float(gib), kind, int(rank), device, Path(reference), Path(out)))))
