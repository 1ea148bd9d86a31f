"""Real ranks on real devices, with NCCL: dumps beside training and at once, merged, compared with where they came from.

Weights come from a Hugging Face checkpoint that transformers wrote, through Model-Optimizer's importer; the merge must
give it back byte for byte. Runs on as many GPUs as there are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardmerge.phase2_merge import merge
from tests.gpu.conftest import Launch, started
from tests.gpu.fp8 import FAMILIES, IN_BLOCKS, RECIPES, in_full
from tests.worlds.checkpoints import read_hf_tensors, write_config
from tests.worlds.topology import Topology

pytestmark = pytest.mark.gpu

TWO = [Topology(ep=2, dp=2), Topology(tp=2, etp=2), Topology(pp=2)]
FOUR = [Topology(tp=2, ep=2, dp=2), Topology(pp=2, ep=2, dp=2)]
Oracle = Callable[[str], Path]


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """The folder of a family's checkpoint, made once by a process that sees no GPU, or made elsewhere."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            if elsewhere := os.environ.get("SHARDMERGE_ORACLES"):
                shutil.copytree(Path(elsewhere) / name, made[name], dirs_exist_ok=True)
            else:
                started(["-m", "tests.gpu.oracle", name, str(made[name])], CUDA_VISIBLE_DEVICES="")
        return made[name]

    return folder


def require_as_before(dump: Path, checkpoint: Path, out: Path) -> None:
    """Merge, and compare every tensor with the checkpoint, and the logits that transformers computes of both."""
    import torch
    from transformers import AutoModelForCausalLM

    merge([dump], out, hf_reference=checkpoint, workers=1)
    found, wanted = read_hf_tensors(out), read_hf_tensors(checkpoint)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not _same(found[name], wanted[name])] == []
    tokens = torch.arange(1, 12).reshape(1, -1)
    with torch.no_grad():
        logits = [
            AutoModelForCausalLM.from_pretrained(one).eval()(tokens).logits for one in (out, checkpoint)
        ]
    assert torch.equal(*logits)


def _same(a: Any, b: Any) -> bool:
    import torch

    same = a.dtype == b.dtype and a.shape == b.shape
    return same and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3", "nemotron_h"])
@pytest.mark.parametrize("topology", [*TWO, *FOUR], ids=lambda topology: topology.name)
def test_what_ranks_dump_beside_training_is_what_they_were_filled_with(
    name: str, topology: Topology, launch: Launch, oracle: Oracle, tmp_path: Path
) -> None:
    """Where there are fewer GPUs than ranks, these share them and speak through gloo, which has no flight recorder."""
    folder = oracle(name)
    seen = launch("whole", folder, topology, name, sharing=True)
    assert all(one["same"] for one in seen)
    assert any("TEGroupedMLP" in one["mlps"] for one in seen)
    assert [one["before"] for one in seen] == [one["after"] for one in seen]  # NCCL's flight recorder
    for way in ("here", "there"):
        require_as_before(folder / topology.name / way, folder / "hf", tmp_path / way)


@pytest.mark.parametrize("name", FAMILIES)
def test_fp8_parameters_of_ranks_are_what_they_stand_for(name: str, launch: Launch, tmp_path: Path) -> None:
    """Every recipe, dequantized; in blocks also as it is. The expected model holds what Transformer Engine says."""
    import torch

    reference = write_config(FAMILIES[name], tmp_path / "config")
    seen = launch("fp8", tmp_path, Topology(ep=2, dp=2), name)
    for recipe in RECIPES:
        kind = "Float8BlockwiseQTensor" if recipe == IN_BLOCKS else "Float8Tensor"
        assert all(one["classes"][recipe][kind] > 5 for one in seen)
        plain, found = (merged(tmp_path / recipe / way, reference) for way in ("plain", "dequantized"))
        assert found.keys() == plain.keys()
        assert [key for key in plain if not _same(found[key], plain[key])] == []
    numbers = merged(tmp_path / IN_BLOCKS / "numbers", reference)
    scales = {key: numbers.pop(key) for key in list(numbers) if key.endswith("_scale_inv")}
    assert len(scales) > 10
    assert numbers.keys() == plain.keys()
    for key, scale in scales.items():
        weight = key.removesuffix("_scale_inv")
        numbers[weight] = in_full(numbers[weight], scale).to(torch.bfloat16)
    assert [key for key in plain if not _same(numbers[key], plain[key])] == []


def merged(dump: Path, reference: Path) -> dict[str, Any]:
    """Every tensor of the checkpoint that a dump becomes."""
    merge([dump], dump.with_suffix(".hf"), hf_reference=reference, workers=1)
    return read_hf_tensors(dump.with_suffix(".hf"))


def test_a_rank_that_is_stopped_keeps_nobody_waiting(launch: Launch, oracle: Oracle, tmp_path: Path) -> None:
    folder = oracle("qwen3_moe")
    seen = launch("stopped", folder, Topology(ep=2, dp=2), "qwen3_moe")
    assert seen[0]["still_stopped"]
    assert all(one["wrote"] for one in seen)
    require_as_before(folder / "stopped", folder / "hf", tmp_path / "out")


@pytest.mark.parametrize("topology", [Topology(), Topology(dp=2), Topology(ep=2, dp=2)], ids=lambda t: t.name)
def test_training_goes_on_as_without_a_dump(
    topology: Topology, launch: Launch, oracle: Oracle, tmp_path: Path
) -> None:
    """Values are those at the call although the optimizer steps at once, and losses stay the same bit for bit."""
    (tmp_path / "config").symlink_to(oracle("qwen3_moe") / "config")
    plain, again, dumped = (
        launch("trained", tmp_path, topology, how) for how in ("plain", "plain", "dumped")
    )
    assert [one["losses"] for one in plain] == [one["losses"] for one in again]  # or nothing could be said
    assert [one["losses"] for one in dumped] == [one["losses"] for one in plain]
    assert all(one["same"] and one["moved"] for one in dumped)
