"""What megatron-core asks of CUDA while a model is only built, sharded, saved or run in float32 on a CPU.

Decides which CUDA entries of torch are answered and how; must not know models, topologies or shardmerge.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Patch:
    """One attribute of torch that is answered by a CPU stand-in, and the caller that makes it necessary."""

    owner: Any
    name: str
    stand_in: Callable[..., Any]
    reason: str


def _cpu_device() -> torch.device:
    return torch.device("cpu")


def _no_wait(*_args: object, **_kwargs: object) -> None:
    return None


def _no_choice(*_args: object, **_kwargs: object) -> None:
    return None  # a function of its own: torch._dynamo refuses one object under two names of torch


def _same_tensor(tensor: torch.Tensor, *_args: object, **_kwargs: object) -> torch.Tensor:
    return tensor


def patches() -> tuple[Patch, ...]:
    """Every patch that `prepare` applies, in order."""
    return (
        Patch(
            torch.cuda, "current_device", _cpu_device, "router, Mamba mixer and memory buffer allocate there"
        ),
        Patch(torch.cuda, "synchronize", _no_wait, "dist_checkpointing and TE's get_extra_state wait for it"),
        Patch(
            torch.cuda,
            "set_device",
            _no_choice,
            "the checkpoint writer pins its worker to the current device",
        ),
        Patch(torch.Tensor, "cuda", _same_tensor, "tied and MTP embeddings at PP > 1 are moved before a sum"),
    )


def prepare() -> None:
    """Apply all patches to this process. Calling it again changes nothing."""
    for patch in patches():
        setattr(patch.owner, patch.name, patch.stand_in)
    # 0.19 warns at every construction that GPTModel is deprecated: thousands of lines in a test run
    logging.getLogger("megatron.core.models.gpt.gpt_model").setLevel(logging.ERROR)
