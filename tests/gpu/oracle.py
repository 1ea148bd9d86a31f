"""A Hugging Face checkpoint, and the same as whole tensors of Megatron, made by Model-Optimizer's importer on the CPU.

`python -m tests.gpu.oracle FAMILY FOLDER`, in a process that sees no GPU: what a model on a GPU is filled from.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch._C._distributed_c10d import HashStore


def main(name: str, folder: Path) -> None:
    """Write `hf` (the checkpoint), `config` (its config.json alone) and `whole.safetensors` into the folder."""
    from tests.worlds.checkpoints import write_hf_checkpoint
    from tests.worlds.cpu import prepare
    from tests.worlds.fake import join_model_parallel, leave_model_parallel
    from tests.worlds.families import by_name
    from tests.worlds.filling import holdings
    from tests.worlds.oracle import import_whole
    from tests.worlds.topology import SINGLE

    prepare()
    family = by_name(name)
    write_hf_checkpoint(family, folder / "hf")
    (folder / "config").mkdir()
    shutil.copy(folder / "hf" / "config.json", folder / "config" / "config.json")
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    join_model_parallel(SINGLE)
    try:
        model = import_whole(family, folder / "hf", torch.bfloat16)
        held = {one.identity: one.tensor.detach().clone() for one in holdings([model], family, SINGLE, 0)}
        save_file(held, folder / "whole.safetensors")
    finally:
        leave_model_parallel()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
