"""The model this project was started for, as published but narrow, rank by rank: every expert, and MTP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from shardmerge.phase1_dump import dump
from shardmerge.phase2_merge import check, merge
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import Family
from tests.worlds.filling import fill
from tests.worlds.topology import Topology

from .nemotron import config_json, layer_tensors, layers, narrow, other_tensors

FLOAT32 = ("A_log", ".D", "e_score_correction_bias")
CASES = [
    pytest.param("ultra", Topology(pp=9, ep=8, dp=8), id="ultra-72-ranks-pp9-ep8"),
    pytest.param("ultra", Topology(tp=4, ep=8, dp=2), id="ultra-8-ranks-tp4-ep8"),
    pytest.param("super", Topology(pp=8, tp=2, ep=8, dp=4), id="super-64-ranks-tp2-pp8-ep8"),
    pytest.param("nano", Topology(pp=4, ep=8, dp=8), id="nano-32-ranks-pp4-ep8"),
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
