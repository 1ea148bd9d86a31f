"""Models that modelopt quantizes and that carry the same calibration in every world: ranges are made from names.

Decides which architectures have widths that blocks divide, which recipes there are, and which range every quantizer
gets. No forward is needed: modelopt inserts its quantizers, and the ranges are a function of what a weight is in the
unsharded model. Must not import shardmerge.
"""

import copy
import os
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from megatron.core.models.gpt.gpt_model import GPTModel

from tests.worlds.families import Family, by_name
from tests.worlds.filling import identify
from tests.worlds.topology import Topology
from tests.worlds.widths import Experts, Latent, Mamba, Steps

# Every matrix divides into blocks of 16 and 32 columns, also halved; no width is another's.
QWEN3_MOE = replace(
    by_name("qwen3_moe"),
    hidden=96,
    head_channels=16,
    dense_width=192,
    experts=Experts(width=64),
    norm_eps=1e-6,
)
DEEPSEEK_V3 = replace(
    by_name("deepseek_v3"),
    hidden=96,
    dense_width=192,
    experts=replace(by_name("deepseek_v3").experts or Experts(), width=64, shared_width=128),
    latent=Latent(query_rank=64, key_value_rank=32, nope_channels=20, rope_channels=12, value_channels=16),
)
NEMOTRON_H = replace(
    by_name("nemotron_h"),
    hidden=96,
    head_channels=16,
    dense_width=192,
    experts=replace(by_name("nemotron_h").experts or Experts(), width=64, shared_width=128),
    mamba=Mamba("ME*-", head_channels=16),
)
NEMOTRON_H_LATENT = replace(
    NEMOTRON_H,
    experts=replace(NEMOTRON_H.experts or Experts(), latent_width=32),
    mamba=Mamba("EM*E", head_channels=16),
)
# A step of attention and experts, stored once and applied twice.
NEMOTRON_H_MTP = replace(NEMOTRON_H, mtp=Steps(1, "*E", passes=2))
# Every matrix divides into blocks of 128x128, also halved.
QWEN3_MOE_IN_BLOCKS = replace(
    by_name("qwen3_moe"),
    layers=2,
    hidden=384,
    heads=4,
    groups=2,
    head_channels=128,
    dense_width=512,
    experts=Experts(num_experts=4, width=256),
)

FP8 = {"num_bits": (4, 3), "axis": None}
NVFP4 = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
NEVER = [{"quantizer_name": name, "enable": False} for name in ("*output_layer*", "*router*", "*embedding*")]
MIXTURES = {  # format by what a module is called; nothing else is quantized
    "MIXED": (("*mlp.experts*", NVFP4), ("*self_attention*", FP8)),
    "MIXED_HYBRID": (
        ("*mlp.experts*", NVFP4),
        ("*self_attention*", FP8),
        ("*mixer.*_proj*", FP8),
        ("*shared_experts*", FP8),
    ),
}
RECIPES = ("FP8", "NVFP4", "W4A16_NVFP4", "MIXED", "MXFP8", "FP8_BLOCK")
_PRESETS = {
    "FP8": "FP8_DEFAULT_CFG",
    "NVFP4": "NVFP4_DEFAULT_CFG",
    "W4A16_NVFP4": "W4A16_NVFP4_CFG",
    "MXFP8": "MXFP8_DEFAULT_CFG",
    "FP8_BLOCK": "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG",
}


def recipe(name: str, *, kv_cache: bool = False, mtp: bool = True) -> dict[str, Any]:
    """modelopt's own preset, or a mixture of formats; without `mtp` no layer of multi-token prediction is quantized."""
    import modelopt.torch.quantization as mtq

    if name in MIXTURES:
        rules = [{"quantizer_name": "*", "enable": False}]
        for where, numbers in MIXTURES[name]:
            kinds = ("weight", "input")
            rules += [{"quantizer_name": f"{where}{kind}_quantizer", "cfg": numbers} for kind in kinds]
        found: dict[str, Any] = {"quant_cfg": rules + NEVER, "algorithm": "max"}
    else:
        found = copy.deepcopy(getattr(mtq, _PRESETS[name]))
    if kv_cache:
        found["quant_cfg"] += copy.deepcopy(mtq.FP8_KV_CFG["quant_cfg"])
    if not mtp:
        found["quant_cfg"] += [{"quantizer_name": "*mtp*", "enable": False}]
    return found


def quantize(
    chunks: list[GPTModel],
    family: Family,
    topology: Topology,
    rank: int,
    config: dict[str, Any],
    *,
    shared_inputs: bool = False,
) -> list[GPTModel]:
    """Let modelopt insert its quantizers, and calibrate them; `shared_inputs` as grouped experts have to.

    One range per weight and per input of the unsharded model; the ranges of weights exceed every drawn weight.
    """
    import modelopt.torch.quantization as mtq

    for chunk in chunks:
        # modelopt refuses a model that its rules leave plain, as a stage is that holds plain steps alone
        unchecked = {} if chunk.decoder.layers else {"MODELOPT_SKIP_WEIGHT_QUANT_CHECK": "1"}
        with warnings.catch_warnings(), mock.patch.dict(os.environ, unchecked):
            warnings.simplefilter("ignore")  # modelopt about its own modules, and its kernels that need a GPU
            mtq.quantize(chunk, copy.deepcopy(config), forward_loop=None)
        for identity, quantizer in identified(chunk, family, topology, rank):
            if quantizer.is_enabled and not _finds_its_own_range(quantizer):
                quantizer.amax = range_of(_without_expert(identity) if shared_inputs else identity)
    return chunks


def compress(chunks: list[GPTModel]) -> None:
    """Let modelopt pack every quantized weight in place."""
    import modelopt.torch.quantization as mtq

    for chunk in chunks:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # modelopt's use of pydantic
            mtq.compress(chunk)


def identified(chunk: GPTModel, family: Family, topology: Topology, rank: int) -> Iterator[tuple[str, Any]]:
    """(identity, quantizer): the identity of the weight, then what is quantized."""
    place = topology.coordinates(rank)
    for name, module in chunk.named_modules():
        held = getattr(module, "weight_quantizer", None)
        if isinstance(held, torch.nn.ModuleList):
            for local, quantizer in enumerate(held):
                identity = identify(f"{name}.weight{local}", chunk, family, topology, place)
                yield f"{identity}_quantizer", quantizer
            identity = identify(f"{name}.weight0", chunk, family, topology, place)
            yield _without_expert(identity.replace(".weight", ".input_quantizer")), module.input_quantizer
        elif held is not None:
            identity = identify(f"{name}.weight", chunk, family, topology, place)
            yield f"{identity}_quantizer", held
            yield identity.replace(".weight", ".input_quantizer"), module.input_quantizer
        if hasattr(module, "k_bmm_quantizer"):
            identity = identify(f"{name}.core", chunk, family, topology, place)
            yield f"{identity}.k", module.k_bmm_quantizer
            yield f"{identity}.v", module.v_bmm_quantizer


def range_of(identity: str) -> torch.Tensor:
    """A range between 4 and 8 that only this identity has, more or less; keys and values reach beyond 448.

    Both down projections of latent attention have one, as readers join them.
    """
    identity = identity.replace("linear_kv_down_proj", "linear_q_down_proj")
    spread = 4 + zlib.crc32(identity.encode()) % 4093 / 1024
    return torch.tensor(spread * (150 if identity.endswith((".k", ".v")) else 1), dtype=torch.float32)


def _finds_its_own_range(quantizer: Any) -> bool:
    """MXFP8 takes powers of two from the numbers; static blocks have a range each, of the weight itself."""
    sizes = quantizer.block_sizes
    return bool(sizes) and (sizes.get("scale_bits") == (8, 0) or sizes.get("type") != "dynamic")


def _without_expert(identity: str) -> str:
    """The same for all experts of a layer, for an input quantizer."""
    if "input_quantizer" not in identity:
        return identity
    parts = identity.split(".")
    return ".".join(
        part for at, part in enumerate(parts) if not (part.isdigit() and parts[at - 1] == "experts")
    )
