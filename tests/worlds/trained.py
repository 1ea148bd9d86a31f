"""Models after a step of training with megatron-core's DistributedOptimizer, and its state as checkpoints hold it.

Decides how a model is wrapped, stepped and described. The optimizer's state is cut over the data-parallel ranks. Must
not import shardmerge. To be called where `tests.gpu.worlds.on_cpu` answers for CUDA.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

from tests.worlds.saving import Spelling, beside, described

BUCKET_ELEMENTS = 20_000  # several buckets a buffer, so that a format that keeps buckets has many tensors


@dataclass(frozen=True, slots=True)
class Trained:
    """Chunks, each in its wrapper, and the optimizer of all of them."""

    wrapped: tuple[DistributedDataParallel, ...]
    optimizer: Any


def stepped(chunks: Sequence[GPTModel]) -> Trained:
    """Wrap a rank's chunks and take one step, whose gradients are the same on every rank that holds a parameter.

    Args:
        chunks: Of this rank, in bfloat16; their parameters move to the buffers of the wrappers.

    Returns:
        The chunks and their optimizer, which holds parameters and two moments in float32.
    """
    config = DistributedDataParallelConfig(
        use_distributed_optimizer=True,
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=True,  # else each buffer is one bucket
        bucket_size=BUCKET_ELEMENTS,
    )
    wrapped = [DistributedDataParallel(chunk.config, config, chunk) for chunk in chunks]
    adam = OptimizerConfig(
        optimizer="adam",
        lr=2**-6,
        weight_decay=0.0,
        bf16=True,
        params_dtype=torch.bfloat16,
        use_distributed_optimizer=True,
        clip_grad=0.0,
    )
    optimizer = get_megatron_optimizer(adam, wrapped, use_gloo_process_groups=False)
    for model in wrapped:
        for parameter in model.parameters():
            parameter.main_grad.fill_(0.5)
    for model in wrapped:
        model.start_grad_sync()
        model.finish_grad_sync()
    optimizer.step()
    return Trained(tuple(wrapped), optimizer)


def save_trained(
    trained: Trained, chunks: Sequence[GPTModel], out: Path, spelling: Spelling, form: str
) -> None:
    """Save chunks and their optimizer's state as training does. All ranks of the world call it.

    Args:
        trained: What `stepped` returned for these chunks.
        chunks: Of this rank, without wrappers.
        out: Folder of the iteration.
        spelling: How keys of the model are spelt, and whether random numbers are saved too.
        form: `fully_reshardable` (a tensor for each parameter and moment) or `dp_reshardable` (one for each bucket).
    """
    out.mkdir(parents=True, exist_ok=True)
    state = described(chunks, spelling)
    asked = {"distrib_optim_sharding_type": form, "chained_optim_avoid_prefix": True}
    optimizer = trained.optimizer.sharded_state_dict(state, metadata=asked)
    dist_checkpointing.save({**state, **beside(), "optimizer": optimizer}, str(out))
