"""What runs in a process that has Transformer Engine's classes: dumps of models with its quantized parameters."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from megatron.core.models.gpt.gpt_model import GPTModel

from shardmerge.common.errors import ShardmergeError
from tests.worlds import te_weights
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import Family
from tests.worlds.filling import fill
from tests.worlds.topology import SINGLE, Topology

KINDS: dict[str, Any] = {
    "plain": lambda model: None,
    "blockwise": partial(te_weights.replace_all, make=te_weights.blockwise),
    "rowwise blocks": partial(
        te_weights.replace_all, make=partial(te_weights.blockwise, two_dimensional=False)
    ),
    "microscaled": partial(te_weights.replace_all, make=te_weights.microscaled),
    "swizzled": partial(te_weights.replace_all, make=partial(te_weights.microscaled, swizzled=True)),
    "tensorwise": partial(te_weights.replace_all, make=te_weights.tensorwise),
    "nvfp4": partial(te_weights.replace_all, make=te_weights.nvfp4),
    "grouped": te_weights.group_experts,
}


def dump_kind(
    kind: str, family: Family, topology: Topology, out: Path, reference: Path, dequantize: bool
) -> None:
    """Dump all ranks of a world whose weights are of one kind, experts one by one, as packed numbers must be."""
    from transformer_engine.pytorch.tensor.mxfp8_tensor import MXFP8Tensor

    from tests.phase1_dump.dumped import dumped

    for rank in range(topology.world_size):
        kernel = mock.patch.object(MXFP8Tensor, "dequantize", te_weights.multiplied_out)
        with fake_world(topology, rank), kernel:
            models = model_of(kind, family, topology, rank)
            dumped(models, out, reference, dequantize=dequantize, experts="per-expert")


def refusal_of(kind: str, family: Family, topology: Topology, out: Path, reference: Path) -> tuple[str, str]:
    """Class name and message of what rank 0's dump raises."""
    from tests.phase1_dump.dumped import dumped

    with fake_world(topology, 0):
        try:
            dumped(model_of(kind, family, topology, 0), out, reference)
        except ShardmergeError as error:
            return type(error).__name__, error.message()
    raise AssertionError("the dump was not refused")


def dump_with_scale(
    value: float, on: int, topology: Topology, family: Family, out: Path, reference: Path
) -> None:
    """Dump all ranks, after one element of one expert's block scales was set on rank `on`."""
    from tests.phase1_dump.dumped import dumped

    for rank in range(topology.world_size):
        with fake_world(topology, rank):
            models = model_of("blockwise", family, topology, rank)
            if rank == on:
                expert = models[0].decoder.layers[1].mlp.experts.linear_fc2.weight1
                expert.get_metadata()["rowwise_scale_inv"][0, 1] = value
            dumped(models, out, reference)


def freed_refusal(family: Family, out: Path, reference: Path) -> tuple[str, str]:
    """The same for a parameter whose raw data somebody has freed."""
    from tests.phase1_dump.dumped import dumped

    with fake_world(SINGLE, 0):
        models = model_of("blockwise", family, SINGLE, 0)
        models[0].decoder.layers[0].self_attention.linear_proj.weight.clear()
        try:
            dumped(models, out, reference)
        except ShardmergeError as error:
            return type(error).__name__, error.message()
    raise AssertionError("the dump was not refused")


def model_of(kind: str, family: Family, topology: Topology, rank: int) -> list[GPTModel]:
    """This rank's chunks, filled from names and places, then quantized."""
    chunks = build_model(family, topology, te=True)
    fill(chunks, family, topology, rank)
    for chunk in chunks:
        KINDS[kind](chunk)
    return chunks
