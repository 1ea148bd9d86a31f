"""The router bias through both phases: float32 whatever the reference says, and as the reference says on request."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shardmerge.phase1_dump import dump
from shardmerge.phase2_merge import merge
from tests.worlds.checkpoints import read_hf_tensors, write_hf_checkpoint
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.filling import expected, fill
from tests.worlds.topology import SINGLE

FAMILY = by_name("deepseek_v3")
BIAS = "e_score_correction_bias"


@pytest.fixture
def rounded(tmp_path: Path) -> Path:
    """A reference that holds the router biases in bfloat16, as some exporters leave them."""
    reference = write_hf_checkpoint(FAMILY, tmp_path / "hf")
    tensors = load_file(reference / "model.safetensors")
    narrow = {name: tensor.to(torch.bfloat16) if BIAS in name else tensor for name, tensor in tensors.items()}
    save_file(narrow, reference / "model.safetensors", metadata={"format": "pt"})
    return reference


@pytest.mark.parametrize(("from_reference", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_the_bias_arrives_as_wanted(
    rounded: Path, tmp_path: Path, from_reference: bool, dtype: torch.dtype
) -> None:
    with fake_world(SINGLE, 0):
        chunks = build_model(FAMILY, SINGLE)
        fill(chunks, FAMILY, SINGLE, 0)
        dump(
            chunks,
            tmp_path / "d",
            hf_reference=rounded,
            run_id="bias",
            step=1,
            dtype_from_reference=from_reference,
        )
    merge([tmp_path / "d"], tmp_path / "out", hf_reference=rounded, workers=1)
    found = read_hf_tensors(tmp_path / "out")[f"model.layers.2.mlp.gate.{BIAS}"]
    wanted = expected("decoder.layers.2.mlp.router.expert_bias", range(found.shape[0]))
    assert found.dtype == dtype
    assert torch.equal(found, wanted.to(dtype))
