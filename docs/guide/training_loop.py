"""Dumps of a run while it trains: one every N steps, the last K complete ones kept, never removing one that is read.

Copy it into your training code; docs/guide/training.md tells where Megatron-LM's loop calls it. A job that merges one
puts an empty file `step-NNNNNNN.reading-JOB` beside it, then looks whether the dump is there, and removes the file when
it is done. Whoever removes a dump first looks for such files, takes its name away, then looks again, and gives the name
back if there is one: so of both at least one sees the other, and a dump that is being read keeps its name.
"""

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import distributed, nn

from shardmerge.phase1_dump import Dumping, dump_async


@dataclass
class Dumps:
    """The dumps of one run in `folder`, which all ranks see. Every rank calls every method.

    hf_reference: Hugging Face directory with the model's config.json.
    every: after so many steps there is a dump.
    keep: so many complete dumps are kept, besides those that are being read.
    """

    folder: Path
    hf_reference: Path
    run_id: str
    every: int
    keep: int
    dumping: Dumping | None = None

    def __post_init__(self) -> None:
        """Make room for dumps of this job: ranks of the job before it, which was killed, would not fit its own."""
        if distributed.get_rank() == 0:
            remove_unfinished(self.folder)

    def after_step(self, model: Sequence[nn.Module], step: int) -> None:
        """Call it when the optimizer has stepped. `model` are the chunks as Megatron-LM has them, wrapped in DDP."""
        if step % self.every:
            if self.dumping is not None and self.dumping.done():
                self.finish()
            return
        self.finish()
        for chunk in model:
            if getattr(getattr(chunk, "ddp_config", None), "overlap_param_gather", False):
                chunk.start_param_sync(force_sync=True)  # as Megatron-LM does before it saves a checkpoint
        out = self.folder / f"step-{step:07d}"
        self.dumping = dump_async(
            list(model), out, hf_reference=self.hf_reference, run_id=self.run_id, step=step, params_synced=True,
            on_error="record",
        )  # fmt: skip

    def finish(self) -> None:
        """Wait until the last dump is written. Call it before the job ends. A dump that failed ends no training."""
        if self.dumping is None:
            return
        dumping, self.dumping = self.dumping, None
        if dumping.wait() is None:
            print(f"rank {dumping.rank} failed: see {dumping.out}/rank-{dumping.rank:05d}.failed.json")
        elif dumping.rank == 0:
            print(f"{dumping.out}: training stood still for {dumping.seconds_stalled:.2f} s")
            remove_old(self.folder, self.keep, distributed.get_world_size())


def remove_unfinished(folder: Path) -> None:
    """Remove dumps that lack ranks. Call it before the job dumps anything."""
    for dump in filter(Path.is_dir, folder.glob("step-*")):
        manifests = sorted(dump.glob("rank-*/manifest.json"))
        world_size = json.loads(manifests[0].read_bytes())["world_size"] if manifests else None
        if len(manifests) != world_size:
            remove(dump)


def remove_old(folder: Path, keep: int, world_size: int) -> None:
    """Remove complete dumps but the last `keep`, unfinished ones that are older, and none that is being read."""
    for going in folder.glob(".step-*.removing"):  # a job was killed while it removed it
        shutil.rmtree(going, ignore_errors=True)
    dumps = sorted(one for one in folder.iterdir() if re.fullmatch("step-[0-9]+", one.name))
    complete = [one for one in dumps if len(list(one.glob("rank-*/manifest.json"))) == world_size]
    first_kept = complete[-keep] if len(complete) >= keep else folder
    for dump in dumps:
        if dump < first_kept:
            remove(dump)


def remove(dump: Path) -> None:
    """Remove a dump, unless a job says that it is reading it."""
    going = dump.with_name(f".{dump.name}.removing")
    if is_read(dump) or going.exists():
        return
    os.rename(dump, going)
    if is_read(dump):
        os.rename(going, dump)
    else:
        shutil.rmtree(going, ignore_errors=True)  # what is left goes with the next dump


def is_read(dump: Path) -> bool:
    """Whether a job says that it is reading a dump."""
    return any(dump.parent.glob(f"{dump.name}.reading-*"))
