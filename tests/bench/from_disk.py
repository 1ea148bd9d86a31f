"""A checkpoint on disk: its dump beside cp, its export beside those of others, and the memory of all.

What needs torch or many megabytes runs in a process of its own: `python -m tests.bench.from_disk NAME ARGUMENTS`.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from shardmerge.common import durable
from tests.worlds.families import Experts, Family

from .dumping import bench_family, cheap_model, write_reference
from .line import MIB, Bound, Line, at_least, mib, of_time, times_as_fast
from .peers import copied
from .rounds import COLD, ROUNDS, WARM, Contestant, remove, sync, take_turns
from .watching import SHARDMERGE, Ran, high_water_bytes

WORKERS = "2"
OURS, CP, DCP = "ours", "cp", "torch.distributed.checkpoint's load and save_file"
BRIDGE, PLAIN = "Megatron-Bridge's export", "two processes that only write as much"
WAIT = """
import json, os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
process.returncode = os.waitstatus_to_exitcode(status)
print(json.dumps([time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss]))
sys.exit(process.returncode)
"""
ROOT = Path(__file__).parents[2]
# where make test-oracles puts it, and what it runs in
BRIDGE_PYTHON, BRIDGE_PACKAGES = ROOT / ".venv-peers" / "bin" / "python", ROOT / "build" / "bridge"
TIME = Bound(1.1, "at most 1.1")
MEMORY = Bound(500 * MIB, "under 500 MiB")
FASTER = 2.0
A_TENTH = Bound(0.1, "at most 0.1")
MANY = Family(
    "many",
    "Qwen3MoeForCausalLM",
    qk_norm=True,
    layers=48,
    hidden=2200,
    heads=22,
    groups=2,
    head_channels=100,
    experts=Experts(num_experts=128, width=440),
)
RANKS, PER_TENSOR = 256, 55
CHUNKS = 48 * 128 * 3 * PER_TENSOR
LARGE_GIB = 12.0  # whose dump may take no more memory, and beside which the start of Python does not count


def lines(gib: float, folder: Path) -> Iterator[Line]:
    """Dump and export of one checkpoint, dump of one that is larger, and a million chunks."""
    here = folder / "from-disk"
    for size in (gib, LARGE_GIB):
        made = here / f"{size:g}"
        _own("make", str(size), str(made))
        yield from _against_cp(made, size)
        if size == gib:
            yield from _against_exports(made, gib)
        remove(made)
    yield from _many_chunks(here)
    remove(here)


def _against_cp(made: Path, gib: float) -> Iterator[Line]:
    """Beside cp and beside what the disk takes, which is not always less. The bound is that of a large checkpoint.

    It is a bound on what grows with the bytes: without the start of Python and the plan.
    """
    works = {OURS: partial(_dumped, made), CP: partial(copied, made / "iter_0000001")}
    works[PLAIN] = partial(_plainly_written, sum(path.stat().st_size for path in made.rglob("*.distcp")))
    contestants = {name: Contestant(made / "iter_0000001", work) for name, work in works.items()}
    start = median(_dumped(made, made / "nothing", "--dry-run").seconds for _ in range(ROUNDS))
    for cache in (WARM, COLD):
        turns = take_turns(cache, made, contestants)
        value = turns.ratio(OURS, CP)
        what = f"dump from disk, {gib:g} GiB, {WORKERS} processes"
        bound, peak = TIME if gib >= LARGE_GIB else None, mib(turns.parent_peak(OURS))
        yield Line(what, cache, turns.told(OURS), f"cp: {turns.told(CP)}", of_time(value), memory=peak)
        value = turns.ratio(OURS, PLAIN)
        yield Line(what, cache, turns.told(OURS), f"{PLAIN}: {turns.told(PLAIN)}", of_time(value))
        rounds = zip(turns.runs[OURS], turns.runs[CP], turns.runs[PLAIN], strict=True)
        value = median((ours.seconds - start) / max(cp.seconds, plain.seconds) for ours, cp, plain in rounds)
        told = f"without {start:.2f} s of start and plan: the slower of these"
        yield Line(what, cache, "", told, of_time(value), value, bound)
        yield _memory(what, turns.runs[OURS][0], cache)


def _against_exports(made: Path, gib: float) -> Iterator[Line]:
    copy = partial(copied, made / "iter_0000001")
    works = {OURS: partial(_exported, made), CP: copy, DCP: partial(_loaded, made)}
    if (BRIDGE_PACKAGES / ".installed").exists():
        works[BRIDGE] = partial(_bridged, gib, made)
    else:
        yield Line("export", peer=f"{BRIDGE}: not run, as make test-oracles installs it")
    contestants = {name: Contestant(made / "iter_0000001", work) for name, work in works.items()}
    for cache in (WARM, COLD):
        turns = take_turns(cache, made, contestants)
        yield Line("export", cache, turns.told(OURS), f"cp: {turns.told(CP)}", of_time(turns.ratio(OURS, CP)))
        for peer in [name for name in contestants if name not in (OURS, CP)]:
            value, told = 1 / turns.ratio(OURS, peer), f"{peer}: {turns.told(peer)}"
            bound = at_least(FASTER, 1 / turns.ratio(CP, peer))
            yield Line("export", cache, turns.told(OURS), told, times_as_fast(value), value, bound)
            ours, theirs = turns.parent_peak(OURS), turns.parent_peak(peer)
            share = f"{ours / theirs:.2f} x its memory"
            yield Line("export", cache, mib(ours), f"{peer}: {mib(theirs)}", share, ours / theirs, A_TENTH)


def _memory(what: str, run: Ran, cache: str = "") -> Line:
    peak = run.parent_peak_bytes
    return Line(what, cache, mib(peak), "largest process", "", peak, MEMORY, mib(peak))


def _many_chunks(here: Path) -> Iterator[Line]:
    """The process that reads the description, and one that is started apart and reads what the first wrote down."""
    made = here / "many"
    _own("many", str(made))
    size = (made / "iter_0000001" / ".metadata").stat().st_size / 1e6
    for who in ("the first process", "another process"):
        began = time.perf_counter()
        own, child, worker = json.loads(_own("plan", str(made), str(here / "planned")))
        what, took = f"plan of {CHUNKS:,} chunks, {who}", f"{time.perf_counter() - began:.0f} s"
        yield Line(what, "", mib(own), f".metadata: {size:.0f} MB, {took}", "", own, MEMORY, mib(own))
        yield Line(what, "", mib(worker), "a worker that it forks", "", worker, MEMORY, mib(worker))
        if child:
            yield Line(what, "", mib(child), "its child, which reads .metadata", "", child, None, mib(child))
    remove(made)
    remove(here / "planned")


def _dumped(made: Path, out: Path, *more: str) -> Ran:
    given = ("--checkpoint", str(made / "iter_0000001"), "--hf-reference", str(made / "hf"), *more)
    return _watched([*SHARDMERGE, "dump", *given, "--out", str(out), "--run-id", "b", "--workers", WORKERS])


def _plainly_written(num_bytes: int, out: Path) -> Ran:
    return Ran(float(_own("plain", str(num_bytes), str(out))))


def _exported(made: Path, out: Path) -> Ran:
    given = ("--checkpoint", str(made / "iter_0000001"), "--hf-reference", str(made / "hf"))
    return _watched([*SHARDMERGE, "export", str(out), *given, "--workers", WORKERS])


def _loaded(made: Path, out: Path) -> Ran:
    """Its files are made durable, and the start of torch counts, as that of Python does for ours."""
    checkpoint = str(made / "iter_0000001")
    run = _watched(
        [sys.executable, "-W", "ignore", "-m", "tests.bench.from_disk", "dcp", checkpoint, str(out)]
    )
    began = time.perf_counter()
    sync(out)
    return Ran(run.seconds + time.perf_counter() - began, run.cpu_s, run.parent_peak_bytes)


def _bridged(gib: float, made: Path, out: Path) -> Ran:
    command = [str(BRIDGE_PYTHON), "-W", "ignore", "-m", "tests.bench.from_bridge", str(gib)]
    path = os.pathsep.join((".ns", ".", str(BRIDGE_PACKAGES)))
    return _watched(["env", f"PYTHONPATH={path}", *command, str(made / "iter_0000001"), str(out)])


def _watched(command: list[str]) -> Ran:
    """Run to the end. Memory is that of the largest process of all, also of one that was forked.

    A small process starts it and waits: the peak that `wait4` reports includes what the parent held at the start.
    """
    waiting = [sys.executable, "-I", "-S", "-c", WAIT, *command]
    ended = subprocess.run(waiting, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        raise subprocess.CalledProcessError(ended.returncode, command)
    seconds, cpu, peak = json.loads(ended.stdout)
    return Ran(seconds, cpu, peak * 1024)


def _own(*arguments: str) -> str:
    """Run a function below in a process of its own. Returns what it prints."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.from_disk", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


# ---- what runs in a process of its own ----------------------------------------------------------------------------


def make(gib: str, folder: str) -> None:
    """Save a model of so many GiB, as one rank."""
    import tempfile

    import torch.distributed as dist

    from tests.worlds.cpu import prepare
    from tests.worlds.fake import join_model_parallel, leave_model_parallel
    from tests.worlds.saving import Spelling, save
    from tests.worlds.topology import SINGLE

    family = bench_family(float(gib))
    write_reference(family, Path(folder) / "hf")
    prepare()
    with tempfile.TemporaryDirectory() as store:
        dist.init_process_group("gloo", init_method=f"file://{store}/store", rank=0, world_size=1)
        try:
            join_model_parallel(SINGLE)
            save(cheap_model(family, SINGLE, "cpu"), Path(folder) / "iter_0000001", Spelling())
        finally:
            leave_model_parallel()


def plain(num_bytes: str, folder: str) -> None:
    """Write so many bytes, half of them in a child: eight files, whose writing begins early, and which are durable.

    Prints the seconds that it took, without the start of Python.
    """
    block, each = memoryview(os.urandom(1 << 20) * 8), int(num_bytes) // 8
    Path(folder).mkdir()
    began = time.perf_counter()
    child = os.fork()
    for number in range(4):
        with open(Path(folder) / f"{bool(child):d}-{number}", "xb", buffering=0) as file:
            end = durable.Appending(file.fileno())
            for at in range(0, each, len(block)):
                end.write(block[: each - at])
            os.fsync(file.fileno())
    if not child:
        os._exit(0)  # a process with torch takes its time to end
    assert not os.waitpid(child, 0)[1]
    print(time.perf_counter() - began)


def dcp(checkpoint: str, out: str) -> None:
    """Load everything with torch's own loader, and save it with safetensors' own."""
    import torch
    from safetensors.torch import save_file
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    state: dict[str, object] = {}
    reader = FileSystemReader(checkpoint)
    _load_state_dict(state, reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    Path(out).mkdir()
    save_file(tensors, Path(out) / "model.safetensors")


def many(folder: str) -> None:
    """Describe a checkpoint of a million chunks with torch's own classes. Its files have no bytes but their sizes."""
    import torch
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    write_reference(MANY, Path(folder) / "hf")
    checkpoint = Path(folder) / "iter_0000001"
    checkpoint.mkdir()
    (checkpoint / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    storage, tensors = {}, dict[str, Any]()
    ends = dict.fromkeys((f"__{rank}_0.distcp" for rank in range(RANKS)), 0)
    for number, (key, (rows, columns)) in enumerate(_routed(MANY)):
        chunks, part = [], rows // PER_TENSOR
        for row in range(PER_TENSOR):
            offset = torch.Size([part * row, 0])
            chunks.append(ChunkStorageMetadata(offset, torch.Size([part, columns])))
            path, length = f"__{(number + row) % RANKS}_0.distcp", 2 * part * columns + 1200
            storage[MetadataIndex(key, offset)] = _StorageInfo(path, ends[path], length)
            ends[path] += length
        properties = TensorProperties(dtype=torch.bfloat16)
        tensors[key] = TensorStorageMetadata(properties, torch.Size([rows, columns]), chunks)
    for path, end in ends.items():
        with open(checkpoint / path, "wb") as file:
            file.truncate(end)
    with open(checkpoint / ".metadata", "wb") as file:
        pickle.dump(Metadata(tensors, storage_data=storage), file)
    assert len(storage) == CHUNKS


def _routed(family: Family) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the weights of routed experts, and their shapes."""
    assert family.experts is not None
    width, hidden = family.experts.width, family.hidden
    for layer in range(family.layers):
        for expert in range(family.experts.num_experts):
            begin = f"decoder.layers.{layer}.mlp.experts.experts.{expert}."
            yield f"{begin}linear_fc1.weight_w", (width, hidden)
            yield f"{begin}linear_fc1.weight_v", (width, hidden)
            yield f"{begin}linear_fc2.weight", (hidden, width)


def plan(made: str, out: str) -> None:
    """Plan the dump of a checkpoint as every process does, and describe a share in each of two workers.

    Prints the peak memory of this process, of the child that read the description, and of the larger worker.
    """
    from shardmerge.common.command.progress import Progress
    from shardmerge.phase1_dump.checkpoint.plan import Options, plan_of
    from shardmerge.phase1_dump.shares.local_processes import in_processes
    from shardmerge.phase1_dump.shares.read_once import reading_once

    planned = plan_of(
        Path(made) / "iter_0000001", Path(made) / "hf", Options(), None, reading_once(Path(out))
    )
    assert sum(1 for _ in planned.parameters(0)) > 0
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    used = [high_water_bytes(os.getpid()), child]
    workers = in_processes(partial(_described, planned), 2, Progress("", 0, None))
    print(json.dumps([*used, max(workers)]))


def _described(planned: Any, number: int, _advance: Callable[[int], None]) -> int:
    """Describe a share. Returns the peak memory of this process."""
    from shardmerge.phase1_dump.checkpoint.share import share_of

    assert share_of(planned, number, "b").holdings
    return high_water_bytes(os.getpid())


if __name__ == "__main__":
    known: dict[str, Callable[..., None]] = {
        "make": make, "dcp": dcp, "many": many, "plan": plan, "plain": plain,
    }  # fmt: skip
    known[sys.argv[1]](*sys.argv[2:])
