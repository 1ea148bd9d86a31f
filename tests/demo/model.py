"""The demo's model: a small random Qwen3-MoE, its torch_dist checkpoint, and the provider that loads it.

Run as a program it makes the two checkpoints; imported by a launcher, `load` is the model provider of one rank.
"""

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch.distributed as dist

from shardmerge.phase1_dump import providers
from tests.worlds.cpu import prepare
from tests.worlds.fake import join_model_parallel, leave_model_parallel
from tests.worlds.families import by_name
from tests.worlds.topology import SINGLE, Topology

FAMILY = by_name("qwen3_moe")
TOPOLOGY = Topology(tp=2, pp=2, ep=2, dp=2)
CHECKPOINT = "SHARDMERGE_DEMO_CHECKPOINT"


def make_reference(folder: Path) -> None:
    """A Hugging Face checkpoint with random weights, written by transformers."""
    from tests.worlds.checkpoints import write_hf_checkpoint

    write_hf_checkpoint(FAMILY, folder)


def make_megatron(reference: Path, folder: Path) -> None:
    """The same weights as a Megatron torch_dist checkpoint, by Model-Optimizer's importer and megatron-core."""
    from tests.worlds.oracle import import_and_save

    prepare()
    with tempfile.TemporaryDirectory() as store:
        dist.init_process_group("gloo", init_method=f"file://{store}/store", rank=0, world_size=1)
        try:
            join_model_parallel(SINGLE)
            import_and_save(0, FAMILY, reference, folder)
        finally:
            leave_model_parallel()


def load() -> list[Any]:
    """This rank's chunks, as a training job would hold them. The launcher set RANK and WORLD_SIZE."""
    from tests.worlds.fake import build_model

    prepare()
    return providers.torch_dist(
        lambda: build_model(FAMILY, TOPOLOGY),
        os.environ[CHECKPOINT],
        metadata={"non_homogeneous_layers": True, "singleton_local_shards": True},
        tensor_model_parallel_size=TOPOLOGY.tp,
        pipeline_model_parallel_size=TOPOLOGY.pp,
        expert_model_parallel_size=TOPOLOGY.ep,
        expert_tensor_parallel_size=TOPOLOGY.etp,
    )


if __name__ == "__main__":
    make_reference(Path(sys.argv[1]))
    with contextlib.redirect_stderr(io.StringIO()):  # bars of progress; an error is printed after the block
        make_megatron(Path(sys.argv[1]), Path(sys.argv[2]))
