"""What a merge is compared with: `cp`, `cat`, torch.distributed.checkpoint, and load + torch.cat + save_file.

Two more say what the machine can do at most: two threads that read, and two that copy past the page cache.

Every one leaves its files durable, as a merge does: an fsync of each file follows. Those that need torch run in a
process of their own and tell seconds without their start-up; `python -m tests.bench.peers NAME PIECES SHARDS OUT` is
that process. PIECES is what `pieces.convert` wrote, SHARDS a JSON of tensor name to number of the shard, from 1.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from shardmerge.common.durable import PAGE

from .rounds import files, sync
from .watching import Ran, ran

THREADS = 2
READ_BYTES = 1 << 20
CP = "cp"
CAT = "cat > /dev/null"
COPY_BYTES = 16 << 20
CONSOLIDATE = "torch.distributed.checkpoint's consolidate_safetensors_files"
CONCATENATE = "load + torch.cat + save_file"
READ = "two threads that read"
UNCACHED = "two threads that copy past the page cache"
Peer = Callable[[Path, dict[str, int], Path], Callable[[], None]]


def copied(source: Path, out: Path) -> Ran:
    """`cp -r`, and no sharing of blocks: bytes are moved."""
    began = time.perf_counter()
    cpu = ran(["cp", "-r", "--reflink=never", source, out]).cpu_s
    sync(out)
    return Ran(time.perf_counter() - began, cpu)


def read_by_cat(folder: Path, _out: Path) -> Ran:
    """`cat` of every file, to nowhere."""
    return ran(["sh", "-c", 'cat "$@" > /dev/null', "cat", *files(folder)])


def read_once(folder: Path, _out: Path) -> Ran:
    """preadv of every file from front to end, files dealt out to two threads."""
    return _in_threads(_read, list(files(folder)))


def copied_past_the_cache(folder: Path, out: Path) -> Ran:
    """The fastest copy that is known here: O_DIRECT, 16 MiB at a time, durable at the end; nothing is looked at."""
    out.mkdir()
    return _in_threads(partial(_copy, out), list(files(folder)))


def _in_threads(work: Callable[[list[Path]], None], every: list[Path]) -> Ran:
    began = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, (every[n::THREADS] for n in range(THREADS))))
    return Ran(time.perf_counter() - began)


def _copy(out: Path, every: list[Path]) -> None:
    buffer = mmap.mmap(-1, COPY_BYTES)  # begins on a page, as O_DIRECT wants it
    for path in every:
        new = os.open(out / f"{path.parent.name}-{path.name}", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                os.write(new, memoryview(buffer)[: -(-count // PAGE) * PAGE])
            os.ftruncate(new, file.tell())
        os.fsync(new)
        os.close(new)


def _read(every: list[Path]) -> None:
    buffer = bytearray(READ_BYTES)
    for path in every:
        with open(path, "rb", buffering=0) as file:
            at = 0
            while count := os.preadv(file.fileno(), [buffer], at):
                at += count


def in_own_process(name: str, pieces: Path, shards: Path, out: Path) -> Ran:
    """One of those that need torch."""
    out.mkdir()
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.peers", name, pieces, shards, out]
    told = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    seconds, cpu = map(float, told.stdout.split()[-2:])
    return Ran(seconds, cpu)


consolidated = partial(in_own_process, "consolidate")
concatenated = partial(in_own_process, "concatenate")


def consolidate(pieces: Path, shards: dict[str, int], out: Path) -> Callable[[], None]:
    """With as many threads as a merge gets workers."""
    from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files

    return partial(consolidate_safetensors_files, str(pieces), str(out), shards, THREADS)


def concatenate(pieces: Path, shards: dict[str, int], out: Path) -> Callable[[], None]:
    """As one would write it: a shard at a time, torch with its two threads."""
    import safetensors.torch
    import torch

    torch.set_num_threads(THREADS)

    def work() -> None:
        with ExitStack() as stack:
            opened = [
                stack.enter_context(safetensors.safe_open(path, "pt")) for path in sorted(pieces.iterdir())
            ]
            held = _holders(opened)
            for number in sorted(set(shards.values())):
                names = [name for name, shard in shards.items() if shard == number]
                tensors = {name: _joined(name, held[name]) for name in names}
                path = out / f"model-{number:05d}.safetensors"
                safetensors.torch.save_file(tensors, path, {"format": "pt"})

    return work


def _holders(opened: list[Any]) -> dict[str, list[tuple[list[int], Any]]]:
    """By tensor: the offset and the file of each piece, ascending."""
    found: dict[str, list[tuple[list[int], Any]]] = defaultdict(list)
    for file in opened:
        for name, info in json.loads(file.metadata()["DCP_SHARDING_INFO"]).items():
            found[name].append((info["saved_offsets"], file))
    return {name: sorted(of, key=lambda one: one[0]) for name, of in found.items()}


def _joined(name: str, holders: list[tuple[list[int], Any]]) -> Any:
    import torch

    parts = [file.get_tensor(name) for _, file in holders]
    if len(parts) == 1:
        return parts[0]
    last = holders[-1][0]
    return torch.cat(parts, dim=next(dim for dim, at in enumerate(last) if at))


def main(name: str, pieces: Path, shards: Path, out: Path) -> None:
    """Print seconds by the clock and of the processor."""
    known: dict[str, Peer] = {"consolidate": consolidate, "concatenate": concatenate}
    work = known[name](pieces, json.loads(shards.read_text()), out)
    began, cpu = time.perf_counter(), time.process_time()
    work()
    sync(out)
    print(time.perf_counter() - began, time.process_time() - cpu)


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
