"""What runs in a process that has Transformer Engine's classes: dumps of its models, and of an FP8 parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.filling import fill
from tests.worlds.topology import SINGLE, Topology


def dump_filled(name: str, topology: Topology, out: Path, reference: Path, te: bool) -> list[str]:
    """Dump all ranks with weights that are a function of name and place; class names of the experts met."""
    from tests.phase1_dump.dumped import dumped

    met: set[str] = set()
    for rank in range(topology.world_size):
        with fake_world(topology, rank):
            chunks = build_model(by_name(name), topology, te=te)
            fill(chunks, by_name(name), topology, rank)
            dumped(chunks, out, reference)
            met |= {
                type(module.experts).__name__ for module in chunks[0].modules() if hasattr(module, "experts")
            }
    return sorted(met)


def dump_permuted(out: Path, reference: Path) -> tuple[str, str]:
    """Dump grouped experts whose layer says another order; class name and message of what is raised."""
    with fake_world(SINGLE, 0):
        model = build_model(by_name("qwen3_moe"), SINGLE, te=True)[0]
        model.decoder.layers[1].mlp.local_expert_indices = [1, 0, *range(2, 8)]
        return refusal(model, out, reference)


def dump_float8(out: Path, reference: Path) -> tuple[str, str]:
    """Dump a model one of whose weights is a Float8Tensor; class name and message of what is raised."""
    with fake_world(SINGLE, 0):
        model = build_model(by_name("qwen3_moe"), SINGLE, te=True)[0]
        linear = model.decoder.layers[2].mlp.experts.linear_fc2
        weight = nn.Parameter(float8(linear.weight5.detach()), requires_grad=False)
        del linear.weight5
        linear.weight5 = weight
        return refusal(model, out, reference)


def dump_full_query(out: Path, reference: Path) -> tuple[bool, str, str]:
    """Dump latent attention without a low-rank query: whether megatron put a norm before it, and what is raised."""
    with fake_world(SINGLE, 0):
        model = build_model(by_name("deepseek_v3_full_query"), SINGLE, te=True)[0]
        normed = any(name.endswith("linear_q_proj.layer_norm_weight") for name, _ in model.named_parameters())
        return normed, *refusal(model, out, reference)


def refusal(model: Any, out: Path, reference: Path) -> tuple[str, str]:
    """Class name and message of what a dump raises."""
    from shardmerge.common.errors import ShardmergeError
    from tests.phase1_dump.dumped import dumped

    try:
        dumped(model, out, reference)
    except ShardmergeError as error:
        return type(error).__name__, str(error)
    return "nothing", ""


def float8(weight: torch.Tensor) -> torch.Tensor:
    """Transformer Engine's own class, with data quantized here: its kernels are absent."""
    from transformer_engine.pytorch.tensor.float8_tensor import Float8CurrentScalingQuantizer, Float8Tensor
    from transformer_engine_torch import DType

    scale = 448.0 / weight.float().abs().max()
    made: torch.Tensor = Float8Tensor(
        shape=weight.shape,
        dtype=weight.dtype,
        data=(weight.float() * scale).to(torch.float8_e4m3fn).view(torch.uint8),
        fp8_scale_inv=scale.reciprocal().reshape(1),
        fp8_dtype=DType.kFloat8E4M3,
        quantizer=Float8CurrentScalingQuantizer(fp8_dtype=DType.kFloat8E4M3, device="cpu"),
        device="cpu",
        requires_grad=False,
    )
    return made
