"""A provider of Megatron-LM's arguments on a GPU: Transformer Engine's modules, grouped experts, two ranks.

The checkpoint is the one that `tests.phase1_dump.megatron_lm` saves. Without a GPU a CPU's arguments are taken, for
rehearsals.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from shardmerge.phase1_dump import providers
from tests.phase1_dump import megatron_lm as on_a_cpu

CUT = "--tensor-model-parallel-size 2 --expert-model-parallel-size 2 --expert-tensor-parallel-size 1"
# a fused accumulation of gradients needs apex
ON_A_GPU = """
--transformer-impl transformer_engine --moe-grouped-gemm --sequence-parallel --no-gradient-accumulation-fusion
"""


def model() -> Any:
    """This rank's chunks."""
    load = f"--load {os.environ[on_a_cpu.CHECKPOINT]}"
    if torch.cuda.is_available():
        return providers.megatron_lm(f"{on_a_cpu.MODEL} {ON_A_GPU} {CUT} {load}")
    return on_a_cpu.provided(f"{on_a_cpu.MODEL} {on_a_cpu.ON_A_CPU} {CUT}")
