"""Dumps without bytes are whole in every other respect, and checking the largest stays within its bound of memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shardmerge.common.errors import MissingRankError, ProblemsFoundError
from shardmerge.phase2_merge import check

from .__main__ import BOUND_BYTES, cost
from .generate import generate
from .models import AS_PUBLISHED, LARGEST, NEMOTRON_3_ULTRA, QWEN3_235B, Case, Published, World

FOUR_LAYERS = QWEN3_235B | {"num_hidden_layers": 4}
SMALL = Case("four layers", FOUR_LAYERS, World(pp=2, ep=4, etp=2, tp=2))
# per layer 128 experts of 3 matrices in 2 parts; q, k, v, o in 2; the router and 4 norms entire
RECTANGLES = 4 * (128 * 3 * 2 + 4 * 2 + 1 + 4) + 2 * 2 + 1

PP9_EP8 = World(pp=9, ep=8, etp=1, tp=1)
HYBRID = NEMOTRON_3_ULTRA | {
    "hybrid_override_pattern": "ME*E",
    "n_routed_experts": 8,
    "num_nextn_predict_layers": 0,
}
PACKED = Case("four kinds", HYBRID, World(pp=2, ep=2, etp=2, tp=1), packed=True)
# a packed matrix is two tensors and two scalars; per expert 2 matrices, their two tensors in 2 parts
MAMBA = 2 * 4 + 2 + 3 + 2  # in_proj and out_proj; conv1d; A_log, D and dt_bias; norms
MOE = 8 * 2 * (2 * 2 + 2) + 2 + 2 * 4 + 2 + 1  # experts; router and its bias; shared; latent; norm
PACKED_RECTANGLES = MAMBA + 2 * MOE + (4 * 4 + 1) + 3


def test_a_generated_dump_is_whole_and_has_the_published_size(tmp_path: Path) -> None:
    assert generate(SMALL, tmp_path / "made", workers=1) == RECTANGLES
    found = check([tmp_path / "made" / "dump"], hf_reference=tmp_path / "made" / "reference", verify="size")
    assert found.num_rectangles == RECTANGLES
    layer = 128 * 3 * 4096 * 1536 + 4096 * 128 * (64 + 4 + 4 + 64) + 128 * 4096 + 2 * 4096 + 2 * 128
    assert found.num_parameters == 4 * layer + 2 * 151936 * 4096 + 4096


def test_a_packed_hybrid_is_whole(tmp_path: Path) -> None:
    assert generate(PACKED, tmp_path / "made", workers=1) == PACKED_RECTANGLES
    found = check([tmp_path / "made" / "dump"], hf_reference=tmp_path / "made" / "reference", verify="size")
    assert found.num_rectangles == PACKED_RECTANGLES


def test_a_generated_dump_without_a_rank_is_refused(tmp_path: Path) -> None:
    generate(SMALL, tmp_path / "made", workers=1)
    shutil.rmtree(tmp_path / "made" / "dump" / "rank-00011")
    with pytest.raises((MissingRankError, ProblemsFoundError)) as error:
        check([tmp_path / "made" / "dump"], hf_reference=tmp_path / "made" / "reference", verify="size")
    assert "rank 11 (pp 1, tp 1, ep 1" in str(error.value)
    assert "experts 32-63 of layers 2-3" in str(error.value)


@pytest.mark.parametrize("name", AS_PUBLISHED)
def test_published_checkpoints_are_planned_tensor_for_tensor_and_byte_for_byte(
    name: str, tmp_path: Path
) -> None:
    """As others counted the published files, multi-token prediction included; the dump follows their dtypes."""
    config, published = AS_PUBLISHED[name]
    found = cost(Case(name, config, PP9_EP8, as_published=True), tmp_path / "made")
    assert Published(found.tensors, found.values, found.num_bytes) == published


@pytest.mark.parametrize("name", AS_PUBLISHED)
def test_by_default_state_decay_and_skip_take_two_bytes_more_a_value_than_published(
    name: str, tmp_path: Path
) -> None:
    """A_log and D stay float32, as Megatron trains them. The published files hold them in bfloat16."""
    config, published = AS_PUBLISHED[name]
    found = cost(Case(name, config, PP9_EP8), tmp_path / "made")
    wider = 2 * 2 * config["hybrid_override_pattern"].count("M") * config["mamba_num_heads"]
    assert Published(found.tensors, found.values, found.num_bytes - wider) == published


@pytest.mark.scale
@pytest.mark.parametrize("case", LARGEST, ids=lambda case: case.name)
def test_ten_million_rectangles_on_ten_thousand_ranks_stay_within_the_bound_of_memory(
    case: Case, tmp_path: Path
) -> None:
    found = cost(case, tmp_path / "made")
    assert found.rectangles >= 10_000_000
    assert found.ranks >= 10_000
    assert found.peak_bytes < BOUND_BYTES
