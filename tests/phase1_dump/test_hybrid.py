"""A packed Mamba projection: five keys of one Hugging Face tensor, cut by sections, with one scale of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shardmerge.common.manifest import read
from shardmerge.phase2_merge import merge
from tests.demo.compare import differing
from tests.dumps.quantized_dumps import dump_quantized
from tests.worlds.checkpoints import read_hf_tensors, write_hf_checkpoint
from tests.worlds.quantizing import NEMOTRON_H, range_of
from tests.worlds.topology import SINGLE, Topology

IN_PROJ = "backbone.layers.0.mixer.in_proj"
CUT = Topology(tp=2, pp=2, etp=2)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dump and the merged checkpoint of both topologies, in NVFP4."""
    folder = tmp_path_factory.mktemp("hybrid")
    reference = write_hf_checkpoint(NEMOTRON_H, folder / "hf")
    for topology in (SINGLE, CUT):
        dump = folder / topology.name
        dump_quantized(NEMOTRON_H, topology, "NVFP4", dump, reference)
        merge([dump], folder / f"{topology.name}-merged", hf_reference=reference, workers=1)
    return folder


def test_a_packed_projection_has_all_its_sections_and_one_scale_of_each_kind(merged: Path) -> None:
    found = read_hf_tensors(merged / f"{CUT.name}-merged")
    rows = 2 * 8 * 16 + 2 * 4 * 10 + 8  # z and x, B and C, dt
    assert found[f"{IN_PROJ}.weight"].shape == (rows, 96 // 2)
    assert found[f"{IN_PROJ}.weight_scale"].shape == (rows, 96 // 16)
    weights, inputs = (
        range_of(f"decoder.layers.0.mixer.in_proj.{kind}_quantizer") / (6 * 448)
        for kind in ("weight", "input")
    )
    # modelopt keeps the range of a weight in the dtype of the weight: half a bit of bfloat16
    torch.testing.assert_close(found[f"{IN_PROJ}.weight_scale_2"], weights, rtol=2**-9, atol=0)
    torch.testing.assert_close(found[f"{IN_PROJ}.input_scale"], inputs, rtol=1e-6, atol=0)


def test_how_a_packed_hybrid_is_cut_changes_no_byte(merged: Path) -> None:
    assert differing(merged / f"{SINGLE.name}-merged", merged / f"{CUT.name}-merged") == []


def test_a_rank_writes_a_section_of_a_cut_projection_where_it_belongs(merged: Path) -> None:
    """Of rank 1: the second halves of z, x, B, C and dt; those of dt end the tensor."""
    manifest = read(merged / CUT.name / "rank-00001" / "manifest.json")
    boxes = [one.rectangle for one in manifest.placed() if one.rectangle.name == f"{IN_PROJ}.weight"]
    assert [(box.global_offset[0], box.local_shape[0]) for box in sorted(boxes, key=lambda b: b.global_offset)] == [
        (64, 64), (192, 64), (276, 20), (316, 20), (340, 4)
    ]  # fmt: skip
