"""Which dtype a tensor is written in: the reference's word, the model's, or float32 for what must stay exact."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from safetensors.torch import save_file

from shardmerge.common.architectures import Tensor
from shardmerge.common.reference import Reference, ReferenceTensor
from shardmerge.phase1_dump.rectangles.written_dtypes import dtype_chooser
from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import dumped, pieces_of
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.topology import SINGLE

BIAS = "model.layers.2.mlp.gate.e_score_correction_bias"
EXACT = 1 + 2**-15  # no bfloat16


def reference(**dtypes: str) -> Reference:
    return Reference(Path(), {}, {name: ReferenceTensor(dtype, (4,)) for name, dtype in dtypes.items()})


@pytest.mark.parametrize(
    ("known", "float32", "from_reference", "expected"),
    [
        ({}, False, False, "BF16"),
        ({"t": "F32"}, False, False, "F32"),
        ({"t": "F16"}, False, True, "F16"),
        ({"other": "F32"}, False, False, "BF16"),
        ({"t": "F8_E4M3"}, False, False, "BF16"),  # quantized: the model's own dtype
        ({}, True, False, "F32"),
        ({"t": "BF16"}, True, False, "F32"),
        ({"t": "BF16"}, True, True, "BF16"),
        ({}, True, True, "F32"),
        ({"t": "U8"}, True, True, "F32"),
    ],
)
def test_the_dtype_of_a_tensor(
    known: dict[str, str], float32: bool, from_reference: bool, expected: str
) -> None:
    choose = dtype_chooser(reference(**known), "BF16", dtype_from_reference=from_reference)

    assert choose(Tensor("t", (4,), float32)) == expected


@pytest.fixture
def model() -> Iterator[GPTModel]:
    """A model with router biases that bfloat16 cannot hold."""
    with fake_world(SINGLE, 0):
        built = build_model(by_name("deepseek_v3"), SINGLE)[0]
        for layer in built.decoder.layers[1:]:
            layer.mlp.router.expert_bias.fill_(EXACT)
        yield built


@pytest.fixture
def rounded(references: References, tmp_path: Path) -> Path:
    """A reference that holds one router bias in bfloat16 and one norm in float32."""
    folder = tmp_path / "reference"
    folder.mkdir()
    config = json.loads((references.config("deepseek_v3") / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {BIAS: torch.ones(8, dtype=torch.bfloat16), "model.norm.weight": torch.ones(72)}
    save_file(tensors, folder / "model.safetensors")
    return folder


def written(out: Path) -> dict[str, torch.Tensor]:
    return {piece.name: piece.tensor for piece in pieces_of(out, load=True) if piece.tensor is not None}


def test_a_router_bias_stays_float32_whatever_the_reference_says(
    model: GPTModel, rounded: Path, tmp_path: Path
) -> None:
    found = dumped(model, tmp_path / "out", rounded)

    tensors = written(tmp_path / "out")
    assert torch.equal(tensors[BIAS], torch.full((8,), EXACT))
    assert tensors["model.norm.weight"].dtype == torch.float32
    assert tensors["model.layers.0.input_layernorm.weight"].dtype == torch.bfloat16
    assert found.statistics["narrowed_elements"] == {}
    assert found.statistics["router_bias_dtypes"] == {"torch.float32": 3}


def test_a_router_bias_follows_the_reference_on_request_and_its_loss_is_counted(
    model: GPTModel, rounded: Path, tmp_path: Path
) -> None:
    found = dumped(model, tmp_path / "out", rounded, dtype_from_reference=True)

    tensors = written(tmp_path / "out")
    assert torch.equal(tensors[BIAS], torch.ones(8, dtype=torch.bfloat16))
    assert tensors[BIAS.replace("2", "3")].dtype == torch.float32
    assert found.statistics["narrowed_elements"] == {BIAS: 8}


def test_a_bias_that_training_has_rounded_is_reported_as_it_was_found(
    model: GPTModel, references: References, tmp_path: Path
) -> None:
    """Float16Module casts it; sharded_state_dict casts it back before anyone can see."""
    model.decoder.layers[1].mlp.router.expert_bias = model.decoder.layers[1].mlp.router.expert_bias.bfloat16()

    found = dumped(model, tmp_path, references.config("deepseek_v3"))

    assert found.statistics["router_bias_dtypes"] == {"torch.bfloat16": 1, "torch.float32": 2}
    assert written(tmp_path)["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32
