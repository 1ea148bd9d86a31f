"""torch_dist checkpoints of models as they stand on their ranks, in every spelling that megatron-core has for keys.

Decides how `sharded_state_dict` is asked and what else is saved beside the model. Must not import shardmerge.

Functions whose first parameter is a rank run inside a `GlooRanks` pool.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer import OptimizerConfig
from megatron.core.optimizer.optimizer import FP32Optimizer

from tests.worlds.fake import build_model
from tests.worlds.families import Family
from tests.worlds.filling import fill
from tests.worlds.topology import Topology


@dataclass(frozen=True, slots=True)
class Spelling:
    """How keys are spelt, and what is saved beside the model.

    layers: those of all layers are one tensor [L, ...] where megatron-core allows it.
    experts: those of all experts of a layer are one tensor [E, ...], gate and up rows of one.
    optimizer: state of Adam, random numbers and a number are saved too.
    prefix: what stands before every key, as NeMo has it.
    """

    layers: bool = False
    experts: bool = False
    optimizer: bool = False
    prefix: str = ""

    @property
    def name(self) -> str:
        """A test id."""
        words = [word for word in ("layers", "experts", "optimizer") if getattr(self, word)]
        return "-".join([*words, *(["prefix"] if self.prefix else [])]) or "alone"


def filled(rank: int, family: Family, topology: Topology) -> list[GPTModel]:
    """Return this rank's chunks, filled by identity."""
    chunks = build_model(family, topology)
    fill(chunks, family, topology, rank)
    lift_norms(chunks)
    return chunks


def lift_norms(chunks: list[GPTModel]) -> None:
    """Make the weights of norms larger than zero, as those are that are not stored minus one."""
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            if name.endswith("weight") and parameter.ndim == 1:
                parameter.data.abs_().add_(2**-7)


def save_filled(rank: int, family: Family, topology: Topology, out: Path, spelling: Spelling) -> None:
    """Save this rank's filled chunks. All ranks of the world call it."""
    save(filled(rank, family, topology), out, spelling)


def save(chunks: list[GPTModel], out: Path, spelling: Spelling) -> None:
    """Save this rank's chunks under `out`. All ranks of the world call it."""
    out.mkdir(parents=True, exist_ok=True)
    state = described(chunks, spelling)
    if spelling.optimizer:
        state |= {"optimizer": _optimizer(chunks, state), **beside()}
    dist_checkpointing.save(state, str(out))


def described(chunks: Sequence[GPTModel], spelling: Spelling) -> dict[str, Any]:
    """Return the sharded state of a rank's chunks."""
    return {f"model{number}": _described(chunk, spelling) for number, chunk in enumerate(chunks)}


def beside() -> dict[str, Any]:
    """Return what training saves beside model and optimizer: random numbers, and the step."""
    numbers = [{"torch_rng_state": torch.get_rng_state()}]
    return {
        "rng_state": ShardedObject("rng_state", numbers, (1,), (0,), torch.distributed.get_rank()),
        "iteration": 7,
    }


def _described(chunk: GPTModel, spelling: Spelling) -> Any:
    """Return the sharded state of a chunk."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    asked = {
        "dp_cp_group": group,
        "non_homogeneous_layers": not spelling.layers,
        "singleton_local_shards": not (spelling.layers or spelling.experts),
    }
    frequency = chunk.config.moe_layer_freq
    if spelling.layers and isinstance(frequency, list) and all(frequency):
        chunk.config.moe_layer_freq = 1  # with a list megatron-core takes layers for unlike
    try:
        return chunk.sharded_state_dict(prefix=spelling.prefix, metadata=asked)
    finally:
        chunk.config.moe_layer_freq = frequency


def _optimizer(chunks: list[GPTModel], state: Mapping[str, Any]) -> Any:
    """Return the sharded state of Adam after a step that moved nothing."""
    parameters = [parameter for chunk in chunks for parameter in chunk.parameters()]
    adam = torch.optim.Adam(parameters, lr=0.0)
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 0.5)
    adam.step()
    for parameter in parameters:
        parameter.grad = None
    with mock.patch.object(torch, "tensor", on_cpu(torch.tensor)):
        optimizer = FP32Optimizer(adam, OptimizerConfig(optimizer="adam", lr=0.0), lambda *_: None)
    of_chunks = {  # virtual stages use the same names
        f"{chunk}.{key}": value for chunk, held in state.items() for key, value in held.items()
    }
    return optimizer.sharded_state_dict(of_chunks)


def on_cpu(make: Any) -> Any:
    """Return torch.tensor without its argument `device`: optimizers ask for CUDA."""

    def tensor(*values: Any, device: object = None, **others: Any) -> Any:
        return make(*values, **others)

    return tensor
