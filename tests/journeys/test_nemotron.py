"""The model this project was started for, as published but narrow, rank by rank: every expert, and MTP."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from shardmerge.phase1_dump import dump
from shardmerge.phase2_merge import check, merge
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import Family
from tests.worlds.filling import fill
from tests.worlds.gloo import GlooRanks
from tests.worlds.hybrid import IS_HYBRID
from tests.worlds.quantizing import quantize, recipe
from tests.worlds.topology import Topology

from .nemotron import config_json, layer_tensors, layers, narrow, other_tensors, shortened

FLOAT32 = ("A_log", ".D", "e_score_correction_bias")
CASES = [
    pytest.param("ultra", Topology(pp=9, ep=8, dp=8), id="ultra-72-ranks-pp9-ep8"),
    pytest.param("ultra", Topology(tp=4, ep=8, dp=2), id="ultra-8-ranks-tp4-ep8"),
    pytest.param(
        "super", Topology(pp=8, tp=2, ep=8, dp=4), marks=pytest.mark.scale, id="super-64-ranks-tp2-pp8-ep8"
    ),
    pytest.param("nano", Topology(pp=4, ep=8, dp=8), marks=pytest.mark.scale, id="nano-32-ranks-pp4-ep8"),
    pytest.param(
        "ultra",
        Topology(pp=4, vpp=3, ep=8, dp=8, stage_layers=(*[10] * 10, 8, 0)),
        marks=[pytest.mark.scale, pytest.mark.skipif(not IS_HYBRID, reason="megatron-core 0.16 cannot")],
        id="ultra-32-ranks-pp4-vpp3-ep8-steps-alone",
    ),
]


def write_reference(family: Family, folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_json(family)))
    return folder


@pytest.mark.parametrize(("name", "topology"), CASES)
def test_every_tensor_of_every_layer_has_its_own_values(
    name: str, topology: Topology, tmp_path: Path
) -> None:
    family = narrow(name)
    reference, folder = write_reference(family, tmp_path / "hf"), tmp_path / "dump"
    for rank in range(topology.world_size):
        with fake_world(topology, rank):
            chunks = build_model(family, topology)
            fill(chunks, family, topology, rank)
            dump(chunks, folder, hf_reference=reference, run_id="first", step=1)
    whole = check([folder], hf_reference=reference)
    assert whole.mtp == ("trained" if family.mtp else "")
    merge([folder], tmp_path / "merged", hf_reference=reference, workers=1)
    assert wrong(family, tmp_path / "merged") == []


ULTRA, SUPER, NANO = narrow("ultra"), narrow("super"), narrow("nano")
SHORT = shortened(ULTRA, "MEM*EM*E", num_experts=16)
PP9_EP8, PP4_EP8, PP2_EP8, TP4_EP8 = (
    Topology(pp=9, ep=8, dp=8),
    Topology(pp=4, ep=8, dp=8),
    Topology(pp=2, ep=8, dp=8),
    Topology(tp=4, ep=8, dp=2),
)
QUANTIZED = [
    pytest.param(SHORT, False, PP2_EP8, id="short-plain-mtp-16-ranks-pp2-ep8"),
    pytest.param(SHORT, True, TP4_EP8, id="short-quantized-mtp-8-ranks-tp4-ep8"),
    pytest.param(ULTRA, False, PP9_EP8, marks=pytest.mark.scale, id="ultra-plain-mtp-72-ranks-pp9-ep8"),
    pytest.param(ULTRA, True, TP4_EP8, marks=pytest.mark.scale, id="ultra-quantized-mtp-8-ranks-tp4-ep8"),
    pytest.param(
        SUPER,
        False,
        Topology(pp=4, vpp=2, ep=8, dp=8, stage_layers=(*[13] * 6, 10, 0)),
        marks=pytest.mark.scale,
        id="super-plain-mtp-32-ranks-pp4-vpp2-ep8-steps-alone",
    ),
    pytest.param(SUPER, True, TP4_EP8, marks=pytest.mark.scale, id="super-quantized-mtp-8-ranks-tp4-ep8"),
    # the published Nano has no steps
    pytest.param(NANO, False, PP4_EP8, marks=pytest.mark.scale, id="nano-32-ranks-pp4-ep8"),
    pytest.param(NANO, False, TP4_EP8, marks=pytest.mark.scale, id="nano-8-ranks-tp4-ep8"),
]


@pytest.mark.skipif(not IS_HYBRID, reason="megatron-core 0.16 builds no steps of hybrids")
@pytest.mark.parametrize(("family", "quantized_mtp", "topology"), QUANTIZED)
def test_a_mixture_of_formats_lists_every_module_in_both_files_and_stores_its_values(
    family: Family, quantized_mtp: bool, topology: Topology, te_ranks: GlooRanks, tmp_path: Path
) -> None:
    """Routed experts in NVFP4; attention, shared experts, Mamba's projections and KV caches in FP8; the rest plain."""
    reference, folder = write_reference(family, tmp_path / "hf"), tmp_path / "dump"
    for rank in range(topology.world_size):
        te_ranks.call(dump_quantized, rank, family, topology, quantized_mtp, folder, reference)
    merge([folder], tmp_path / "merged", hf_reference=reference, workers=1)
    told = json.loads((tmp_path / "merged" / "hf_quant_config.json").read_text())["quantization"]
    declared = json.loads((tmp_path / "merged" / "config.json").read_text())["quantization_config"]
    wanted = {
        name: form
        for name, form in formats(family).items()
        if not (name.startswith("mtp.") and not quantized_mtp)
    }
    assert (told["quant_algo"], told["kv_cache_quant_algo"]) == ("MIXED_PRECISION", "FP8")
    assert {name: entry["quant_algo"] for name, entry in told["quantized_layers"].items()} == wanted
    assert {name: entry["quant_algo"] for name, entry in declared["quantized_layers"].items()} == wanted
    excluded = {name for name in matrices(family) if name not in wanted}
    assert excluded <= set(told["exclude_modules"])
    assert excluded <= set(declared["ignore"])
    assert caches(tmp_path / "merged") == wanted_caches(family, plain=not quantized_mtp)
    assert wrong_numbers(family, tmp_path / "merged", wanted) == []


def dump_quantized(
    rank: int, family: Family, topology: Topology, quantized_mtp: bool, folder: Path, reference: Path
) -> None:
    """Dump a rank with Transformer Engine's modules, which alone have quantizers for a KV cache."""
    with fake_world(topology, rank):
        chunks = build_model(family, topology, te=True)
        fill(chunks, family, topology, rank)
        rules = recipe("MIXED_HYBRID", kv_cache=True, mtp=quantized_mtp)
        quantize(chunks, family, topology, rank, rules, shared_inputs=True)
        dump(chunks, folder, hf_reference=reference, run_id="first", step=1)


def caches(merged: Path) -> set[str]:
    """Names of all scales of KV caches."""
    weight_map = json.loads((merged / "model.safetensors.index.json").read_text())["weight_map"]
    return {name for name in weight_map if name.endswith((".k_scale", ".v_scale"))}


def wanted_caches(family: Family, *, plain: bool) -> set[str]:
    """Two for each attention, as published files name them; none in a step that is plain."""
    attentions = [
        hf for _, hf, letter in layers(family) if letter == "*" and not (plain and hf.startswith("mtp."))
    ]
    return {f"{hf}mixer.{side}_proj.{side}_scale" for hf in attentions for side in "kv"}


def matrices(family: Family) -> dict[str, torch.Tensor]:
    """Every matrix that a reader makes a linear layer of, by the name of its module."""
    groups = [layer_tensors(family, *layer) for layer in layers(family)]
    weights = {name: value for group in (*groups, other_tensors(family)) for name, value in group.items()}
    return {
        name.removesuffix(".weight"): value
        for name, value in weights.items()
        if value.ndim == 2 and name.endswith(".weight") and "embeddings" not in name
    }


def formats(family: Family) -> dict[str, str]:
    """The format of every module that is quantized."""
    named = {}
    for name in matrices(family):
        if ".mixer.experts." in name:
            named[name] = "NVFP4"
        elif (
            any(part in name for part in ("_proj", "shared_experts"))
            and "latent" not in name
            and "eh_proj" not in name
        ):
            named[name] = "FP8"
    return named


def wrong_numbers(family: Family, merged: Path, wanted: dict[str, str]) -> list[str]:
    """Names of modules whose stored numbers are further from what was trained than rounding takes them."""
    weight_map = json.loads((merged / "model.safetensors.index.json").read_text())["weight_map"]
    files = {name: safe_open(merged / name, "pt") for name in set(weight_map.values())}
    found = []
    for module, value in matrices(family).items():
        form = wanted.get(module, "plain")
        names = [f"{module}.{suffix}" for suffix in SUFFIXES[form]]
        parts = [files[weight_map[name]].get_tensor(name) for name in names]
        if not torch.allclose(NUMBERS[form](*parts), value, rtol=0, atol=ROUNDING[form]):
            found.append(module)
    return found


def _fp8(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return weight.float() * scale


def _nvfp4(weight: torch.Tensor, scale: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
    """Two numbers in a byte, the lower half first; 16 numbers share a scale, which has a scale itself."""
    halves = torch.stack((weight & 15, weight >> 4), -1).flatten(-2).long()
    numbers = E2M1[halves & 7] * (1 - 2 * (halves >> 3))
    return numbers * (scale.float() * outer).repeat_interleave(16, -1)


E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
SUFFIXES = {
    "plain": ["weight"],
    "FP8": ["weight", "weight_scale"],
    "NVFP4": ["weight", "weight_scale", "weight_scale_2"],
}
NUMBERS: dict[str, Callable[..., torch.Tensor]] = {
    "plain": lambda weight: weight.float(),
    "FP8": _fp8,
    "NVFP4": _nvfp4,
}
ROUNDING = {
    "plain": 0.0,
    "FP8": 1 / 16,
    "NVFP4": 0.2,
}  # of numbers below 1, whose largest step is a sixth in NVFP4


def wrong(family: Family, merged: Path) -> list[str]:
    """Names of tensors that are missing, strange or other than written down by hand."""
    weight_map = json.loads((merged / "model.safetensors.index.json").read_text())["weight_map"]
    files = {name: safe_open(merged / name, "pt") for name in set(weight_map.values())}
    left, found = set(weight_map), list[str]()
    groups = [layer_tensors(family, *layer) for layer in layers(family)]
    for wanted in (*groups, other_tensors(family)):
        for name, value in wanted.items():
            if name not in left or not equal(name, files[weight_map[name]].get_tensor(name), value):
                found.append(name)
        left -= set(wanted)
    return found + sorted(left)


def equal(name: str, found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Same shape and values, in bfloat16 but for what stays float32."""
    dtype = torch.float32 if name.endswith(FLOAT32) else torch.bfloat16
    return found.dtype == dtype and torch.equal(found, wanted.to(dtype))
