"""One look at the numbers: what is not finite, all zero, or changed by narrowing."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, nan
from pathlib import Path

import pytest
import torch
from megatron.core.models.gpt.gpt_model import GPTModel

from shardmerge.common.manifest import Manifest
from shardmerge.phase1_dump.sources.health import Health, count_changed, count_nonfinite
from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import dumped
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.topology import SINGLE

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def verdict(*blocks: list[float], dtype: torch.dtype = torch.bfloat16) -> tuple[bool, bool]:
    health = Health()
    for block in blocks:
        health.look(torch.tensor(block, dtype=dtype))
    return health.verdict()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_one_element_that_is_not_finite_is_seen_in_any_block(value: float, dtype: torch.dtype) -> None:
    assert verdict([1.0, 2.0], [3.0, value, -1.0], [0.5], dtype=dtype) == (False, False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_but_finite_numbers_are_healthy(dtype: torch.dtype) -> None:
    ends = torch.finfo(dtype)

    assert verdict([ends.max, ends.min, ends.tiny], dtype=dtype) == (True, False)


def test_zeros_of_either_sign_are_all_zero() -> None:
    assert verdict([0.0, -0.0], [0.0]) == (True, True)


def test_one_number_among_zeros_is_not_all_zero() -> None:
    assert verdict([0.0, 0.0], [0.0, 1e-30]) == (True, False)


def test_nan_among_zeros_is_not_all_zero() -> None:
    assert verdict([0.0, nan]) == (False, False)


def test_no_elements_are_healthy_and_not_all_zero() -> None:
    assert verdict() == (True, False)
    assert verdict([]) == (True, False)


def test_nan_and_infinite_elements_are_counted_apart() -> None:
    assert count_nonfinite(torch.tensor([nan, 1.0, inf, -inf, nan, nan])) == (3, 2)


@pytest.mark.parametrize(
    ("values", "changed"),
    [
        ([1.0, -0.5, 0.0, 384.0], 0),  # eight bits of mantissa are enough
        ([1.0 + 2**-7], 0),
        ([1.0 + 2**-8], 1),
        ([1.0, 1.0 + 2**-20, 3.14159, 2.0], 2),
        ([nan, inf, -inf], 0),
        ([3.4e38], 1),  # rounds to infinity
    ],
)
def test_elements_changed_by_a_cast_to_bfloat16(values: list[float], changed: int) -> None:
    assert count_changed(torch.tensor(values), torch.bfloat16) == changed


def test_bfloat16_to_float16_may_overflow() -> None:
    assert count_changed(torch.tensor([1.0, 1e6, 2.0**-30], dtype=torch.bfloat16), torch.float16) == 2


@pytest.fixture
def model() -> Iterator[GPTModel]:
    """A dense model; its norms are float32, as the local spec makes them."""
    with fake_world(SINGLE, 0):
        built = build_model(by_name("llama"), SINGLE)[0]
        assert built.decoder.final_layernorm.weight.dtype == torch.float32
        yield built


def rows(manifest: Manifest, indices: list[int]) -> set[str]:
    """Names of the tensors in these rows of the columns."""
    return {manifest.names[manifest.columns.name[row]] for row in indices}


@torch.no_grad()
def test_a_manifest_says_which_tensors_are_not_finite_and_how_many_elements(
    model: GPTModel, references: References, tmp_path: Path
) -> None:
    model.decoder.layers[2].self_attention.linear_proj.weight[5, :3] = nan
    model.decoder.layers[2].self_attention.linear_proj.weight[40:42, 7] = inf
    model.decoder.layers[0].mlp.linear_fc1.weight[112:, 1] = -inf  # up rows
    model.embedding.word_embeddings.weight[211:] = nan  # padding

    found = dumped(model, tmp_path, references.config("llama"), staging_bytes=1000)

    counts = {
        found.names[found.columns.name[row]]: (nans, infs) for row, nans, infs in found.health.nonfinite or ()
    }
    assert counts == {
        "model.layers.2.self_attn.o_proj.weight": (3, 2),
        "model.layers.0.mlp.up_proj.weight": (0, 112),
    }
    assert found.health.all_zero == []


@torch.no_grad()
def test_a_manifest_says_which_tensors_are_all_zero(
    model: GPTModel, references: References, tmp_path: Path
) -> None:
    """Fused rows 48-59 and 120-131 are the two key heads."""
    weight = model.decoder.layers[1].self_attention.linear_qkv.weight
    weight[48:60] = weight[120:132] = 0
    model.decoder.layers[3].mlp.linear_fc2.weight[:] = 0

    found = dumped(model, tmp_path, references.config("llama"))

    assert rows(found, found.health.all_zero or []) == {
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.3.mlp.down_proj.weight",
    }


@torch.no_grad()
def test_narrowing_that_loses_bits_is_counted_and_other_narrowing_is_not(
    model: GPTModel, references: References, tmp_path: Path
) -> None:
    for layer in model.decoder.layers:
        layer.input_layernorm.weight.fill_(1.25)
    model.decoder.layers[1].input_layernorm.weight[:3] = 1 + 2**-15
    model.decoder.final_layernorm.weight[70] = 0.1

    found = dumped(model, tmp_path, references.config("llama"))

    assert found.statistics["narrowed_elements"] == {
        "model.layers.1.input_layernorm.weight": 3,
        "model.norm.weight": 1,
    }
    assert found.dtypes == ["BF16"]
