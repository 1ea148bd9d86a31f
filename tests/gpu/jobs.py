"""What the ranks of a test do: build, fill, train, stop, dump. Started by torchrun; every job is a function of `JOBS`.

A job returns what it saw, which every rank prints as a line that begins with SEEN. Must not judge what was dumped.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed as dist

from tests.worlds.topology import Topology

from .fp8 import fp8
from .worlds import world

Facts: TypeAlias = dict[str, Any]
RUN: Facts = {"run_id": "gpu", "step": 1, "attempt": "0"}


def model_from(name: str, topology: Topology, device: torch.device, folder: Path) -> list[Any]:
    """This rank's chunks of a family, filled from what Model-Optimizer imported (`oracle`)."""
    from safetensors.torch import load_file

    from tests.worlds.fake import build_model
    from tests.worlds.families import by_name
    from tests.worlds.filling import fill_from

    family = by_name(name)
    chunks = build_model(family, topology, te=True, device=str(device))
    fill_from(load_file(folder / "whole.safetensors"), chunks, family, topology, dist.get_rank())
    return chunks


def checksums(manifest: Any) -> list[tuple[str, str]]:
    return sorted((str(placed.rectangle), placed.xxh3_128) for placed in manifest.placed())


def both(chunks: Any, folder: Path, reference: Path, **options: Any) -> tuple[Any, Any]:
    """Dump beside training and at once; the manifests of both. Weights are spoiled before the first is written."""
    from shardmerge.phase1_dump import dump, dump_async

    given = RUN | {"hf_reference": reference, "check_replicas": True} | options
    there = dump(chunks, folder / "there", **given)
    dumping = dump_async(chunks, folder / "here", **given)
    for chunk in chunks:
        for parameter in chunk.parameters():
            if type(parameter) is torch.nn.Parameter:
                parameter.data.fill_(7.0)
    return there, dumping.wait()


def whole(device: torch.device, topology: Topology, folder: Path, name: str) -> Facts:
    """A family at a topology, dumped twice; NCCL's flight recorder before and after."""
    chunks = model_from(name, topology, device, folder)
    dist.barrier()
    before = recorded()
    there, here = both(chunks, folder / topology.name, folder / "config")
    after = recorded()
    experts = {type(m).__name__ for chunk in chunks for m in chunk.modules() if "MLP" in type(m).__name__}
    return {
        "same": checksums(there) == checksums(here), "before": before, "after": after, "mlps": sorted(experts),
        "device": next(chunks[0].parameters()).device.type, "stalled": here.statistics["seconds_stalled"],
    }  # fmt: skip


def recorded() -> int | None:
    """How many collectives NCCL's flight recorder has seen; None where there is none."""
    dump_trace = getattr(torch._C._distributed_c10d, "_dump_nccl_trace", None)
    if dump_trace is None or dist.get_backend() != "nccl":
        return None
    torch.cuda.synchronize()
    return len(pickle.loads(dump_trace()).get("entries", ()))


def stopped(device: torch.device, topology: Topology, folder: Path, name: str) -> Facts:
    """The last rank is stopped, as by Ctrl-Z, while the others dump; then it goes on."""
    from shardmerge.phase1_dump import dump_async

    chunks = model_from(name, topology, device, folder)
    rank, last, out = dist.get_rank(), dist.get_world_size() - 1, folder / "stopped"
    note = folder / "process-of-the-last"
    if rank == last:
        note.write_text(str(os.getpid()))
    dist.barrier()
    if rank == last:
        os.kill(os.getpid(), signal.SIGSTOP)
    elif rank == 0:
        _wait_until_stopped(int(note.read_text()))
    manifest: Any = dump_async(chunks, out, hf_reference=folder / "config", **RUN).wait()
    facts: Facts = {"wrote": len(manifest.columns)}
    if rank == 0:
        facts["still_stopped"] = _state(int(note.read_text())) == "T"
        os.kill(int(note.read_text()), signal.SIGCONT)
    dist.barrier()
    return facts


def _wait_until_stopped(process: int) -> None:
    while _state(process) != "T":
        time.sleep(0.01)


def _state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def trained(device: torch.device, topology: Topology, folder: Path, how: str) -> Facts:
    """Two steps, a dump beside training (or none), three more steps at once; losses, and whether values were right."""
    from shardmerge.phase1_dump import dump, dump_async

    from .training import begun, deterministic

    deterministic()
    training = begun(topology, device)
    given = RUN | {"hf_reference": folder / "config", "params_synced": True}
    losses = [training.step() for _ in range(2)]
    training.gather()
    if how == "dumped":
        there = dump(training.model, folder / "there", **given)
        dumping = dump_async(training.model, folder / "here", **given)
    losses += [training.step() for _ in range(3)]
    facts: Facts = {"losses": losses}
    if how == "dumped":
        here = dumping.wait()
        training.gather()
        after = dump(training.model, folder / "after", **given)
        facts |= {"same": checksums(here) == checksums(there), "moved": checksums(after) != checksums(there)}
    return facts


JOBS: dict[str, Callable[..., Facts]] = {"whole": whole, "stopped": stopped, "trained": trained, "fp8": fp8}


def main(job: str, folder: str, topology: str, *more: str) -> None:
    """Run a job. `topology` is the JSON of a Topology's fields."""
    given = Topology(**json.loads(topology))
    assert {field.name for field in fields(Topology)} >= json.loads(topology).keys()
    parallel = {
        "tensor_model_parallel_size": given.tp, "pipeline_model_parallel_size": given.pp,
        "expert_model_parallel_size": given.ep, "expert_tensor_parallel_size": given.etp,
        "context_parallel_size": given.cp,
    }  # fmt: skip
    with world(**parallel) as device:
        facts = JOBS[job](device, given, Path(folder), *more)
        print("SEEN " + json.dumps({"rank": dist.get_rank(), **facts}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
