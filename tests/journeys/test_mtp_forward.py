"""What a step of DeepSeek-V3 computes: megatron-core against the paper and transformers, on the checkpoint's names.

Bytes that come back say that names are the same on the way in and out. That they are the right ones is said by
arithmetic: with the norms or the halves of `eh_proj` exchanged, the paper's step computes something else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_layers import MtpModel

from tests.worlds.checkpoints import read_hf_tensors
from tests.worlds.deepseek_step import Weights, shifted, step
from tests.worlds.gloo import GlooRanks
from tests.worlds.mtp import DEEPSEEK_V3_MTP, write_mtp_checkpoint
from tests.worlds.mtp_oracle import step_logits
from tests.worlds.oracle import import_whole
from tests.worlds.topology import SINGLE

FAMILY = DEEPSEEK_V3_MTP
STEPS = (FAMILY.layers, FAMILY.layers + 1)
TOKENS = torch.randint(0, FAMILY.vocab, (2, 17), generator=torch.Generator().manual_seed(8))


def megatron_on_rank(_rank: int, path: Path, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Logits of megatron-core's model, filled by Model-Optimizer."""
    return step_logits(import_whole(FAMILY, path, torch.float32).eval(), tokens)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint."""
    return write_mtp_checkpoint(FAMILY, tmp_path_factory.mktemp("deepseek") / "hf", seed=9)


@pytest.fixture(scope="module")
def megatron(path: Path, ranks: GlooRanks) -> list[torch.Tensor]:
    """float32 logits of the decoder and of both steps."""
    found: list[torch.Tensor] = ranks.run(megatron_on_rank, SINGLE, path, TOKENS)[0]
    return found


@pytest.fixture(scope="module")
def model(path: Path) -> Any:
    """The decoder as transformers loads it. It knows that layer 61 is a step: told here which layers are."""
    found = transformers.DeepseekV3ForCausalLM.from_pretrained(path, dtype=torch.float32)
    found._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{number}\..*" for number in STEPS]
    return found


@pytest.fixture(scope="module")
def hidden(model: Any) -> torch.Tensor:
    """What transformers' decoder hands to the first step."""
    with torch.no_grad():
        states: torch.Tensor = model.model(TOKENS).last_hidden_state
    return states


@pytest.fixture(scope="module")
def tensors(path: Path) -> dict[str, torch.Tensor]:
    """The checkpoint's, in float32."""
    return {name: tensor.float() for name, tensor in read_hf_tensors(path).items()}


def by_the_paper(tensors: Weights, hidden: torch.Tensor) -> list[torch.Tensor]:
    """Logits of both steps. The second one reads what the first one gives."""
    found = []
    for place, number in enumerate(STEPS):
        hidden, logits = step(FAMILY, tensors, number, shifted(TOKENS, place + 1), hidden)
        found.append(logits)
    return found


def by_transformers(model: Any, hidden: torch.Tensor) -> list[torch.Tensor]:
    """The same by transformers' own reader of steps, which speculative decoding uses."""
    steps = MtpModel.from_pretrained(model)
    positions = torch.arange(TOKENS.shape[1]).expand_as(TOKENS)
    found = []
    with torch.no_grad():
        for place in range(len(STEPS)):
            read = shifted(TOKENS, place + 1)
            hidden = steps.forward_layer(place, hidden, positions, None, input_ids=read)
            found.append(steps._project_to_logits(hidden))
    return found


def differ(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> list[bool]:
    """Whether each step differs by more than rounding."""
    return [not torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(found, wanted, strict=True)]


def test_megatrons_steps_compute_what_the_paper_says(
    megatron: list[torch.Tensor], tensors: Weights, hidden: torch.Tensor
) -> None:
    for found, wanted in zip(by_the_paper(tensors, hidden), megatron[1:], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_transformers_reads_the_same_steps(
    megatron: list[torch.Tensor], model: Any, hidden: torch.Tensor
) -> None:
    """It takes embedding and head from the decoder."""
    for found, wanted in zip(by_transformers(model, hidden), megatron[1:], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("enorm.weight", "hnorm.weight"),
        ("shared_head.norm.weight", "enorm.weight"),
        ("input_layernorm.weight", "post_attention_layernorm.weight"),
        ("mlp.experts.0.up_proj.weight", "mlp.experts.0.gate_proj.weight"),
    ],
)
def test_tensors_under_each_others_names_compute_something_else(
    one: str, other: str, megatron: list[torch.Tensor], tensors: Weights, hidden: torch.Tensor
) -> None:
    first = f"model.layers.{STEPS[0]}."
    exchanged = {first + one: tensors[first + other], first + other: tensors[first + one]}
    assert differ(by_the_paper({**tensors, **exchanged}, hidden), megatron[1:]) == [True, True]


def test_halves_of_the_projection_in_the_other_order_compute_something_else(
    megatron: list[torch.Tensor], tensors: Weights, hidden: torch.Tensor
) -> None:
    """Its first columns are those of the embedding."""
    name = f"model.layers.{STEPS[1]}.eh_proj.weight"
    exchanged = {**tensors, name: tensors[name].roll(FAMILY.hidden, dims=1)}
    assert differ(by_the_paper(exchanged, hidden), megatron[1:]) == [False, True]


def test_steps_in_the_other_order_compute_something_else(
    megatron: list[torch.Tensor], tensors: Weights, hidden: torch.Tensor
) -> None:
    first, second = (f"model.layers.{number}." for number in STEPS)
    exchanged = {
        name.replace(first, "\n").replace(second, first).replace("\n", second): tensor
        for name, tensor in tensors.items()
    }
    assert differ(by_the_paper(exchanged, hidden), megatron[1:]) == [True, True]
