"""Modules that readers join and that a real model has quantized otherwise than each other."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from megatron.core.models.gpt.gpt_model import GPTModel

from shardmerge.common.errors import JoinedMismatchError, ShardmergeError
from tests.dumps.quantized_dumps import Spoil, dump_quantized
from tests.journeys.settings import Dumped, problems
from tests.worlds.checkpoints import write_config
from tests.worlds.families import Family
from tests.worlds.quantizing import DEEPSEEK_V3, QWEN3_MOE
from tests.worlds.topology import Topology

GUIDE = Path(__file__).parents[3] / "docs" / "guide" / "quantization.md"


def switched_off(part: str) -> Spoil:
    """No quantizer of the modules whose names hold this is on."""

    def spoil(_rank: int, model: GPTModel) -> None:
        found = [
            module
            for name, module in model.named_modules()
            if part in f"{name}." and hasattr(module, "weight_quantizer")
        ]
        assert found
        for module in found:
            module.weight_quantizer.disable()
            module.input_quantizer.disable()

    return spoil


def with_larger_range(part: str) -> Spoil:
    """The weights of the modules whose names hold this have twice the range."""

    def spoil(_rank: int, model: GPTModel) -> None:
        for name, module in model.named_modules():
            if part in f"{name}." and hasattr(module, "weight_quantizer"):
                module.weight_quantizer.amax = module.weight_quantizer.amax * 2

    return spoil


@pytest.fixture
def found(tmp_path: Path) -> Callable[..., list[ShardmergeError]]:
    """What `check` finds in a dump of one rank."""

    def dumped(family: Family, recipe: str, spoil: Spoil | None = None) -> list[ShardmergeError]:
        one = Dumped(tmp_path / "dump", write_config(family, tmp_path / "reference"))
        dump_quantized(family, Topology(), recipe, one.dump, one.reference, spoil=spoil)
        return problems(one)

    return dumped


def only(found: list[ShardmergeError]) -> JoinedMismatchError:
    """The one thing that was found."""
    (problem,) = found
    assert isinstance(problem, JoinedMismatchError)
    return problem


@pytest.mark.parametrize(
    ("part", "first", "second"),
    [
        (".layers.1.mlp.experts.local_experts.3.", "0.down_proj", "3.down_proj"),
        (".layers.1.mlp.experts.local_experts.0.linear_fc1.", "0.down_proj", "0.gate_proj"),
    ],
)
def test_experts_of_a_layer_that_are_quantized_otherwise_are_named(
    part: str, first: str, second: str, found: Callable[..., list[ShardmergeError]]
) -> None:
    """vLLM takes the whole block for plain if one expert is excluded."""
    problem = only(found(QWEN3_MOE, "FP8", switched_off(part)))
    block = "model.layers.1.mlp.experts."
    assert (problem.first, problem.second) == (block + first, block + second)
    assert {problem.value, problem.differs} == {"FP8", "not quantized"}


def test_a_whole_layer_of_experts_may_stay_plain(found: Callable[..., list[ShardmergeError]]) -> None:
    assert found(QWEN3_MOE, "NVFP4", switched_off(".layers.1.mlp.experts.")) == []


def test_down_projections_of_latent_attention_share_their_second_scale(
    found: Callable[..., list[ShardmergeError]],
) -> None:
    """vLLM reads both with the larger one: all of the other weight would be too large by their quotient."""
    problem = only(
        found(DEEPSEEK_V3, "NVFP4", with_larger_range(".layers.2.self_attention.linear_kv_down_proj."))
    )
    attention = "model.layers.2.self_attn."
    assert problem.first == attention + "q_a_proj.weight_scale_2"
    assert problem.second == attention + "kv_a_proj_with_mqa.weight_scale_2"
    assert float(problem.differs) == pytest.approx(2 * float(problem.value))


def test_what_the_guide_says_gives_both_one_scale(found: Callable[..., list[ShardmergeError]]) -> None:
    (block,) = re.findall("```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    given: dict[str, Any] = {}
    exec(block, given)
    larger = with_larger_range(".layers.2.self_attention.linear_kv_down_proj.")

    def spoil(rank: int, model: GPTModel) -> None:
        larger(rank, model)
        given["join_down_projections"](model)

    assert found(DEEPSEEK_V3, "NVFP4", spoil) == []


def test_a_scale_of_fp8_may_differ_as_readers_pack_the_smaller_again(
    found: Callable[..., list[ShardmergeError]],
) -> None:
    assert found(DEEPSEEK_V3, "FP8", with_larger_range(".linear_kv_down_proj.")) == []


def test_only_one_of_two_down_projections_that_is_quantized_is_named(
    found: Callable[..., list[ShardmergeError]],
) -> None:
    spoil = switched_off(".layers.0.self_attention.linear_kv_down_proj.")
    problem = only(found(DEEPSEEK_V3, "FP8", spoil))
    assert (problem.value, problem.differs) == ("FP8", "not quantized")
