"""Models that modelopt quantized: what is packed on the GPU is what modelopt packs there, beside training too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shardmerge.phase2_merge import merge
from tests.gpu.conftest import started
from tests.gpu.quantized import EXPORTED
from tests.worlds.checkpoints import read_hf_tensors

pytestmark = pytest.mark.gpu


def dumped(name: str, folder: Path, device: str, **environment: str) -> dict[str, Any]:
    text = started(["-m", "tests.gpu.quantized", name, str(folder), device], **environment)
    found: dict[str, Any] = json.loads(text.split("SEEN ", 1)[1].splitlines()[0])
    return found


@pytest.mark.parametrize("name", ["MXFP8", "FP8_BLOCK"])
def test_what_is_packed_on_the_gpu_is_what_is_packed_on_the_cpu(name: str, tmp_path: Path) -> None:
    on_cpu = dumped(name, tmp_path, "cpu", CUDA_VISIBLE_DEVICES="")
    on_gpu = dumped(name, tmp_path, "cuda")
    assert on_cpu["same"]
    assert on_gpu["same"]
    assert len(on_gpu["dtypes"]) > 1
    assert on_gpu == on_cpu


@pytest.mark.parametrize("name", EXPORTED)
def test_what_is_packed_is_what_modelopt_exports_from_the_same_device(name: str, tmp_path: Path) -> None:
    """Both divide ranges by a constant where they lie, and a GPU multiplies by its reciprocal instead.

    So scales of a GPU may differ from those of a CPU in the last place, and with them the rounding of a few numbers.
    """
    seen = {
        "cpu": dumped(name, tmp_path, "cpu", CUDA_VISIBLE_DEVICES=""),
        "cuda": dumped(name, tmp_path, "cuda"),
    }
    for device, one in seen.items():
        assert one["same"]
        merge(
            [tmp_path / device / "there"], tmp_path / f"{device}-hf", hf_reference=tmp_path / "hf", workers=1
        )
        ours, theirs = (read_hf_tensors(tmp_path / f"{device}-{who}") for who in ("hf", "modelopt"))
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if not _same(ours[key], theirs[key])] == []
    on_cpu, on_gpu = seen.values()
    assert on_gpu["dtypes"] == on_cpu["dtypes"]
    assert on_gpu["scalars"]["names"] == on_cpu["scalars"]["names"]
    assert on_gpu["scalars"]["values"] == pytest.approx(on_cpu["scalars"]["values"], rel=2**-22)
    a, b = (read_hf_tensors(tmp_path / f"{device}-hf") for device in seen)
    different = sum(
        int((a[key].view(torch.uint8) != b[key].view(torch.uint8)).sum()) for key in a if a[key].ndim
    )
    assert different < 1e-3 * sum(tensor.nbytes for tensor in a.values())


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether dtype and bytes are the same; modelopt writes scales of inputs as vectors of one element."""
    same = a.dtype == b.dtype and a.numel() == b.numel()
    return same and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
