"""Models that modelopt quantized: what is packed on the GPU is what is packed on the CPU, beside training too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.conftest import started

pytestmark = pytest.mark.gpu


def dumped(name: str, folder: Path, device: str, **environment: str) -> dict[str, Any]:
    text = started(["-m", "tests.gpu.quantized", name, str(folder), device], **environment)
    found: dict[str, Any] = json.loads(text.split("SEEN ", 1)[1].splitlines()[0])
    return found


@pytest.mark.parametrize("name", ["FP8", "NVFP4", "MXFP8", "FP8_BLOCK"])
def test_what_is_packed_on_the_gpu_is_what_is_packed_on_the_cpu(name: str, tmp_path: Path) -> None:
    on_cpu = dumped(name, tmp_path, "cpu", CUDA_VISIBLE_DEVICES="")
    on_gpu = dumped(name, tmp_path, "cuda")
    assert on_cpu["same"]
    assert on_gpu["same"]
    assert len(on_gpu["dtypes"]) > 1
    assert on_gpu == on_cpu
