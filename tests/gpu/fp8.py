"""Families whose weights Transformer Engine holds in FP8, dumped, and the same weights as it dequantizes them, dumped.

On a CPU, for rehearsals, parameters are made of raw data that `te_weights` rounds. Must not judge what was dumped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tests.worlds.families import Family, by_name
from tests.worlds.topology import Topology
from tests.worlds.widths import Experts, Latent, Mamba

RUN: dict[str, Any] = {"run_id": "gpu", "step": 1, "attempt": "0", "check_replicas": True}
RECIPES = {"delayed": "hybrid", "tensorwise": "hybrid", "blockwise": "e4m3"}  # and the format of each
IN_BLOCKS = "blockwise"  # the only one that is also written as it is
RAW = ("_data", "_rowwise_data")  # of a parameter: what may be spoiled when it has been copied

# Both sides of every matrix divide into blocks of 128, which is all that Transformer Engine quantizes in blocks.
_QWEN, _DEEPSEEK, _NEMOTRON = by_name("qwen3_moe"), by_name("deepseek_v3"), by_name("nemotron_h")
FAMILIES: dict[str, Family] = {
    "qwen3_moe": replace(
        _QWEN,
        layers=2,
        hidden=384,
        heads=4,
        head_channels=128,
        dense_width=512,
        experts=replace(_QWEN.experts or Experts(), num_experts=4, width=256),
    ),
    "deepseek_v3": replace(
        _DEEPSEEK,
        layers=2,
        hidden=384,
        heads=4,
        groups=4,
        dense_width=640,
        experts=replace(_DEEPSEEK.experts or Experts(), num_experts=4, width=256, shared_width=512),
        latent=Latent(256, 384, nope_channels=128, rope_channels=128, value_channels=256),
    ),
    "nemotron_h": replace(
        _NEMOTRON,
        hidden=384,
        heads=4,
        groups=2,
        head_channels=128,
        dense_width=512,
        experts=replace(_NEMOTRON.experts or Experts(), num_experts=4, width=256, shared_width=640),
        mamba=Mamba("*E-E"),
    ),
}


def fp8(device: torch.device, topology: Topology, folder: Path, name: str) -> dict[str, Any]:
    """A family in every recipe: `RECIPE/dequantized` and `RECIPE/plain`, in blocks `RECIPE/numbers` too.

    The first is dumped beside training, and the raw numbers are spoiled before it is written.
    """
    from shardmerge.phase1_dump import dump, dump_async

    family, given = FAMILIES[name], RUN | {"hf_reference": folder / "config"}
    classes: dict[str, dict[str, int]] = {}
    for recipe in RECIPES:
        chunks, plain = both_models(recipe, family, topology, device)
        parameters = [parameter for chunk in chunks for parameter in chunk.parameters()]
        classes[recipe] = dict(Counter(type(parameter).__name__ for parameter in parameters))
        dump(plain, folder / recipe / "plain", **given)
        if recipe == IN_BLOCKS:
            dump(chunks, folder / recipe / "numbers", **given)
        dumping = dump_async(chunks, folder / recipe / "dequantized", dequantize=True, **given)
        for raw in [getattr(one, held, None) for one in parameters for held in RAW]:
            if isinstance(raw, torch.Tensor):
                raw.zero_()
        dumping.wait()
    return {"classes": classes}


def both_models(recipe: str, family: Family, topology: Topology, device: torch.device) -> tuple[Any, Any]:
    """This rank's chunks with FP8 parameters, and chunks that hold what they stand for in bfloat16."""
    from tests.worlds.fake import build_model
    from tests.worlds.filling import fill

    plain = build_model(family, topology, te=True, device=str(device))
    if device.type == "cuda":
        own: dict[str, Any] = {
            "fp8": RECIPES[recipe],
            "fp8_recipe": recipe,
            "fp8_param": True,
            "use_cpu_initialization": False,
        }
        chunks = build_model(family, topology, te=True, device=str(device), **own)
    else:
        chunks = build_model(family, topology, te=True)
        fill(chunks, family, topology, dist.get_rank())
        _by_hand(recipe, chunks)
    generator = torch.Generator(device).manual_seed(7)  # the same on all ranks, as what they all hold must be
    with torch.no_grad():
        for held, meant in zip(_tensors(chunks), _tensors(plain), strict=True):
            # drawn anew on all ranks alike: norms and biases begin as constants, and routers differ before training
            if type(held) in (nn.Parameter, torch.Tensor) and held.ndim == 1:
                held.uniform_(0.5, 1.5, generator=generator)
            elif type(held) in (nn.Parameter, torch.Tensor):
                held.normal_(0, 0.02, generator=generator)
            meant.copy_(meant_by(held))
    return chunks, plain


def _tensors(chunks: Any) -> Iterator[torch.Tensor]:
    """Every parameter, and every bias of a router."""
    for chunk in chunks:
        yield from chunk.parameters()
        yield from (one for name, one in chunk.named_buffers() if name.endswith("expert_bias"))


def meant_by(tensor: Any) -> torch.Tensor:
    """What a parameter stands for, as Transformer Engine says; its stub on a CPU says nothing."""
    if type(tensor) in (nn.Parameter, torch.Tensor):
        found: torch.Tensor = tensor
    elif tensor.is_cuda:
        found = tensor.dequantize()
    elif "rowwise_data" not in (held := tensor.get_metadata()):
        found = held["data"].view(torch.float8_e4m3fn).float() * held["fp8_scale_inv"]
    else:
        found = in_full(held["rowwise_data"].view(torch.float8_e4m3fn), held["rowwise_scale_inv"])
    return found


def in_full(numbers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """E4M3 numbers [N, K] times the scale of their block [N / 128, K / 128], in float32; more scales are padding."""
    rows, columns = numbers.shape
    spread = scales.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    return numbers.float() * spread


def _by_hand(recipe: str, chunks: Any) -> None:
    from tests.worlds import te_weights

    for chunk in chunks:
        te_weights.replace_all(chunk, te_weights.blockwise if recipe == IN_BLOCKS else te_weights.tensorwise)
