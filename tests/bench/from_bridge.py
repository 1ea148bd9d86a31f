"""Megatron-Bridge's export of a checkpoint on disk, as one process on a CPU: load all, convert, save.

Run where `make test-oracles` has put Megatron-Bridge: `python -m tests.bench.from_bridge GIB CHECKPOINT OUT`. The model
is built without random values, its checkpoint is loaded by megatron-core, tensors come from `export_hf_weights` and
are saved by safetensors, a file for each 5 GB.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from tests.oracles.bridge import stand_in

import torch  # isort: skip
import torch.distributed as dist  # isort: skip

FILE_BYTES = 5_000_000_000


def main(gib: float, checkpoint: Path, out: Path) -> None:
    from megatron.core import dist_checkpointing

    from tests.bench.dumping import bench_family
    from tests.worlds.checkpoints import write_config
    from tests.worlds.fake import build_model, join_model_parallel, leave_model_parallel
    from tests.worlds.saving import Spelling, described
    from tests.worlds.topology import SINGLE

    stand_in()
    family = bench_family(gib)
    store: Any = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", rank=0, world_size=1, store=store)
    join_model_parallel(SINGLE)
    try:
        with mock.patch.object(torch.nn.init, "normal_", lambda tensor, *_args, **_kwargs: tensor):
            chunks = build_model(family, SINGLE)
        state = dist_checkpointing.load(described(chunks, Spelling()), str(checkpoint))
        chunks[0].load_state_dict(state["model0"], strict=False)
        with tempfile.TemporaryDirectory() as folder:
            reference = write_config(family, Path(folder))
            save(converted(family.architecture, reference, chunks), out)
    finally:
        leave_model_parallel()


def converted(architecture: str, reference: Path, chunks: Any) -> Any:
    """What Bridge makes of the model: names and tensors, one after another."""
    import transformers
    from megatron.bridge import AutoBridge

    config = transformers.AutoConfig.from_pretrained(reference)
    config.architectures = [architecture]
    bridge: Any = AutoBridge.from_hf_config(config)
    return bridge.export_hf_weights(chunks, cpu=True, show_progress=False)


def save(tensors: Any, out: Path) -> None:
    """Save tensors as they come, and make them durable."""
    from safetensors.torch import save_file

    out.mkdir()
    held: dict[str, torch.Tensor] = {}
    count = num_bytes = 0

    def flush() -> None:
        nonlocal count
        count += 1
        save_file(held, out / f"model-{count:05}.safetensors")
        held.clear()

    for item in tensors:
        held[item[0]] = item[1].contiguous()
        num_bytes += item[1].nbytes
        if num_bytes > FILE_BYTES:
            flush()
            num_bytes = 0
    flush()
    for path in out.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.close(file)


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
