"""Training of a small Qwen3-MoE as in Megatron-LM: DDP, distributed optimizer, parameters gathered in the next forward.

On a GPU with Transformer Engine in bfloat16, on a CPU with megatron's own layers in float32. The same seeds give the
same run, bit for bit. Must not know what is done between its steps.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from tests.worlds.families import Family, by_name
from tests.worlds.topology import Topology

LENGTH, BATCH = 16, 2


def family() -> Family:
    return by_name("qwen3_moe")


@dataclass(slots=True)
class Training:
    """A wrapped model and its optimizer. `count`: steps done, from which the tokens of a step follow."""

    model: Any
    optimizer: Any
    device: torch.device
    count: int = 0

    def step(self) -> float:
        """One step; the loss of this rank's tokens before it."""
        from megatron.core.distributed.finalize_model_grads import finalize_model_grads

        self.count += 1
        generator = torch.Generator().manual_seed(1000 * self.count + dist.get_rank())
        tokens = torch.randint(0, family().vocab, (BATCH, LENGTH), generator=generator).to(self.device)
        positions = torch.arange(LENGTH, device=self.device).expand_as(tokens)
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        loss = self.model(tokens, positions, None).float().logsumexp(-1).mean()
        loss.backward()
        finalize_model_grads([self.model])
        self.optimizer.step()
        return float(loss)

    def gather(self) -> None:
        """Gather what `overlap_param_gather` would gather in the next forward, as Megatron-LM does before it saves."""
        self.model.start_param_sync(force_sync=True)


def begun(topology: Topology, device: torch.device) -> Training:
    """A fresh training; parallel groups must stand."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    from tests.worlds.fake import build_model
    from tests.worlds.filling import fill

    gpu = device.type == "cuda"
    dtype = torch.bfloat16 if gpu else torch.float32
    chunks = build_model(family(), topology, te=gpu, device=str(device), dtype=dtype)
    fill(chunks, family(), topology, dist.get_rank())
    with torch.no_grad():
        for parameter in chunks[0].parameters():
            parameter.mul_(0.02)
    config = DistributedDataParallelConfig(
        use_distributed_optimizer=True,
        overlap_grad_reduce=True,
        overlap_param_gather=True,
        bucket_size=20_000,
    )
    model = DistributedDataParallel(chunks[0].config, config, chunks[0])
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam", lr=1e-2, bf16=gpu, params_dtype=dtype, use_distributed_optimizer=True, clip_grad=0.0,
            overlap_param_gather=True,
        ),
        [model],
        use_gloo_process_groups=False,
    )  # fmt: skip
    return Training(model, optimizer, device)


def deterministic() -> None:
    """Ask torch and Transformer Engine for kernels that give the same result twice."""
    os.environ |= {"NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    torch.use_deterministic_algorithms(True, warn_only=True)
