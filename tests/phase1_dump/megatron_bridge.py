"""A checkpoint that Megatron-Bridge saved of a Hugging Face one, and the provider that loads it.

Run as a program it imports and saves, or is the command.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from tests.worlds.te_stub import install

install(str(Path(sys.prefix) / "te-python"))  # before anything imports megatron-core

import torch  # noqa: E402

from shardmerge.common.command.group import main  # noqa: E402
from shardmerge.phase1_dump import providers  # noqa: E402
from tests.oracles.bridge import stand_in  # noqa: E402
from tests.worlds.fake import leave_model_parallel  # noqa: E402

CHECKPOINT = "MEGATRON_BRIDGE_CHECKPOINT"


def model() -> Any:
    """The provider of a rank, as the guide has it."""
    stand_in()
    return providers.megatron_bridge(os.environ[CHECKPOINT], expert_model_parallel_size=2)


def save(reference: Path, folder: Path) -> None:
    """Import a Hugging Face checkpoint and save it, by Megatron-Bridge alone."""
    from megatron.bridge import AutoBridge

    stand_in()
    providers.initialize()
    bridge: Any = AutoBridge.from_hf_pretrained(str(reference), dtype=torch.bfloat16)
    described = bridge.to_megatron_provider()
    described.moe_token_dispatcher_type = "allgather"  # the other allocates on a GPU
    described.gradient_accumulation_fusion = False  # needs a kernel
    described.finalize()
    made = described.provide_distributed_model(wrap_with_ddp=False, use_cpu_initialization=True)
    with mock.patch.object(torch.cuda, "get_rng_state", torch.get_rng_state):
        bridge.save_megatron_model(made, folder)
    leave_model_parallel()


if __name__ == "__main__":
    if sys.argv[1] == "dump":  # with the stub of Transformer Engine, which must come first
        main()
    save(Path(sys.argv[1]), Path(sys.argv[2]))
