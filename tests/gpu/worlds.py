"""Real ranks under torchrun: NCCL and CUDA where each has a device, else gloo; without any, Transformer Engine's stub.

NCCL lets no two ranks use one device, gloo does. The stub is for rehearsals. Must not know models.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode


class OnCpu(TorchFunctionMode):
    """Makes on the CPU what asks for a device "cuda", and gives types of tensors the names that they have there.

    megatron-core's optimizer puts a few scalars on a GPU, and refuses parameters whose type is not one of a GPU.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if str(given.get("device", "")).startswith("cuda"):
            given["device"] = "cpu"
        found = func(*args, **given)
        return found.replace("torch.", "torch.cuda.") if isinstance(found, str) and len(args) == 1 else found


@contextmanager
def on_cpu() -> Iterator[None]:
    """Let megatron-core train on the CPU. Its optimizer asks for a current stream, which nothing is put on."""
    with OnCpu(), mock.patch.object(torch.cuda, "current_stream", return_value=None):
        yield


@contextmanager
def world(**parallel: Any) -> Iterator[torch.device]:
    """Join all ranks of the launcher; by default they are all expert parallel. Yields the device of this one."""
    device = _begin()
    from megatron.core import parallel_state

    sizes = parallel or {"expert_model_parallel_size": dist.get_world_size()}
    parallel_state.initialize_model_parallel(**sizes)
    if device.type == "cuda":
        from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

        model_parallel_cuda_manual_seed(7)
    try:
        with nullcontext() if device.type == "cuda" else on_cpu():
            yield device
    finally:
        dist.barrier()
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def _begin() -> torch.device:
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        device = torch.device("cuda", local % torch.cuda.device_count())
        torch.cuda.set_device(device)
        if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > torch.cuda.device_count():
            dist.init_process_group("gloo")
        else:
            dist.init_process_group("nccl", device_id=device)
        return device
    if folder := os.environ.get("TE_PATH"):
        from tests.worlds.te_stub import install

        install(folder)
    from tests.worlds.cpu import prepare

    prepare()
    dist.init_process_group("gloo")
    return torch.device("cpu")
