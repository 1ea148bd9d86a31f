"""Scales of a model that modelopt quantized, spoiled on one rank."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from megatron.core.models.gpt.gpt_model import GPTModel

from shardmerge.common.problems import ProblemsFoundError
from shardmerge.common.quantization_errors import ScalarMismatchError
from shardmerge.phase2_merge import check
from tests.phase2_merge.quantized_dumps import dump_quantized
from tests.worlds.checkpoints import write_hf_checkpoint
from tests.worlds.quantizing import QWEN3_MOE
from tests.worlds.topology import Topology

from .conftest import Victim

WORLD = Topology(tp=2, pp=2)  # rank 3: tp 1 of the second stage, layers 2 and 3


def drifted(rank: int, model: GPTModel) -> None:
    """Rank 3 calibrated q, k and v of layer 2 on its own: its range is twice that of rank 2."""
    if rank == 3:
        model.decoder.layers[0].self_attention.linear_qkv.weight_quantizer._amax.mul_(2)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`reference`, `dump` in NVFP4, and `drifted`, the same of another calibration."""
    folder = tmp_path_factory.mktemp("quantized")
    weights = write_hf_checkpoint(QWEN3_MOE, folder / "weights")
    (folder / "reference").mkdir()
    shutil.copy(weights / "config.json", folder / "reference")
    dump_quantized(QWEN3_MOE, WORLD, "NVFP4", folder / "dump", folder / "reference")
    dump_quantized(QWEN3_MOE, WORLD, "NVFP4", folder / "drifted", folder / "reference", spoil=drifted)
    return folder


@pytest.fixture
def victim(quantized: Path, tmp_path: Path) -> Callable[[], Victim]:
    def copy() -> Victim:
        for part in ("dump", "reference"):
            shutil.copytree(quantized / part, tmp_path / part)
        return Victim(tmp_path)

    return copy


def test_the_quantized_dump_is_whole_before_it_is_spoiled(victim: Callable[[], Victim]) -> None:
    one = victim()
    assert check([one.dump], hf_reference=one.reference).warnings == ()


def test_unequal_scalars_name_tensors_ranks_and_both_values(
    victim: Callable[[], Victim], quantized: Path
) -> None:
    one = victim()
    shutil.rmtree(one.rank(3))
    shutil.copytree(quantized / "drifted" / "rank-00003", one.rank(3))
    found = one.refused(ProblemsFoundError, 4).problems
    assert {type(error) for error in found} == {ScalarMismatchError}
    assert [error.tensor for error in found] == [
        f"model.layers.2.self_attn.{name}_proj.weight_scale_2" for name in "kqv"
    ]
    for error in found:
        (first, of_first), (second, of_second) = error.values.items()
        assert (of_first, of_second) == ((2,), (3,))
        assert float(second) == pytest.approx(2 * float(first), rel=1e-6)
        assert f"{first} on rank 2; {second} on rank 3" in error.message()
