"""Norms that a model stores minus one and readers do not, and the reverse: what is written, told and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shardmerge.common.errors import UnsupportedParameterError
from shardmerge.phase2_merge import check
from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import dumped
from tests.phase1_dump.refusing import refused_and_recorded
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.topology import SINGLE

LLAMA = by_name("llama")
CENTRED = replace(LLAMA, norm="RMSNorm1P")
FINAL, HF_FINAL = "decoder.final_layernorm", "model.norm.weight"
FIRST, HF_FIRST = "decoder.layers.0.input_layernorm", "model.layers.0.input_layernorm.weight"
MIXED, HF_MIXED = "decoder.layers.0.mixer.norm", "backbone.layers.0.mixer.norm.weight"


def written(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.rglob("*.safetensors"):
        found |= load_file(file)
    return found


def shifted(folder: Path) -> dict[str, int]:
    """What the manifest says of norms."""
    (manifest,) = folder.rglob("manifest.json")
    found: dict[str, int] = json.loads(manifest.read_text())["health"].get("shifted_norms", {})
    return found


def row(stored: list[float], width: int) -> torch.Tensor:
    """These numbers again and again."""
    return torch.tensor(stored).repeat(width)[:width]


def test_one_is_added_to_every_norm_of_a_model_that_stores_them_minus_one(
    references: References, tmp_path: Path
) -> None:
    """Rounded once from float32: 1 + 3/256 lies between two numbers of bfloat16, and 1 + 1/256 is a tie."""
    with fake_world(SINGLE, 0):
        model = build_model(CENTRED, SINGLE)[0]
        norms = [name for name, _ in model.named_parameters() if "norm" in name]
        for name in norms:
            model.get_parameter(name).data.copy_(row([-0.25, 0.0, 3 / 256, -1.5, 1 / 256], LLAMA.hidden))

        dumped(model, tmp_path, references.config("llama"))

    found = written(tmp_path)
    assert len(norms) == 2 * LLAMA.layers + 1
    for name in ("model.norm", "model.layers.1.input_layernorm", "model.layers.2.post_attention_layernorm"):
        assert found[f"{name}.weight"].dtype == torch.bfloat16
        assert found[f"{name}.weight"][:5].tolist() == [0.75, 1.0, 1.015625, -0.5, 1.0]
    each = [-0.25, 0.0, 3 / 256, -1.5, 1 / 256]
    rounded = sum(each[at % 5] in (3 / 256, 1 / 256) for at in range(LLAMA.hidden))
    assert shifted(tmp_path) == {
        "added": LLAMA.hidden * len(norms),
        "subtracted": 0,
        "rounded": rounded * len(norms),
    }


def test_what_was_rounded_is_a_warning_of_the_proof(references: References, tmp_path: Path) -> None:
    with fake_world(SINGLE, 0):
        model = build_model(CENTRED, SINGLE)[0]
        model.get_parameter(f"{FINAL}.weight").data[:3] = 2**-9
        dumped(model, tmp_path / "dump", references.config("llama"))

    report = check([tmp_path / "dump"], hf_reference=references.config("llama"))

    (told,) = (line for line in report.warnings if line.startswith("norms: "))
    elements = LLAMA.hidden * (2 * LLAMA.layers + 1)
    assert f"1 was added to {elements:,} elements in float32, and 3 of the sums were rounded" in told


def test_a_reference_with_norms_in_float32_keeps_the_sum_whole(
    references: References, tmp_path: Path
) -> None:
    wide = tmp_path / "hf"
    wide.mkdir()
    (wide / "config.json").write_text((references.config("llama") / "config.json").read_text())
    save_file({HF_FINAL: torch.zeros(LLAMA.hidden)}, wide / "model.safetensors", metadata={"format": "pt"})
    with fake_world(SINGLE, 0):
        model = build_model(CENTRED, SINGLE)[0]
        model.get_parameter(f"{FINAL}.weight").data.fill_(2**-9)

        dumped(model, tmp_path / "out", wide)

    assert set(written(tmp_path / "out")[HF_FINAL].tolist()) == {1 + 2**-9}
    assert shifted(tmp_path / "out")["rounded"] == 0


def test_one_is_subtracted_where_readers_add_it_but_not_from_biases(
    references: References, tmp_path: Path
) -> None:
    nemotron = by_name("nemotron")
    with fake_world(SINGLE, 0):
        model = build_model(replace(nemotron, norm="LayerNorm1P"), SINGLE)[0]
        for _, module in model.named_modules():
            if hasattr(module, "zero_centered_gamma"):
                module.zero_centered_gamma = False
        model.get_parameter(f"{FINAL}.weight").data.fill_(1.25)
        model.get_parameter(f"{FINAL}.bias").data.fill_(0.5)
        model.get_parameter(f"{FIRST}.weight").data.copy_(row([1.0, 0.75, -0.5, 2**-9], nemotron.hidden))

        dumped(model, tmp_path, references.config("nemotron"))

    found = written(tmp_path)
    assert set(found[HF_FINAL].tolist()) == {0.25}
    assert set(found["model.norm.bias"].tolist()) == {0.5}
    assert found[HF_FIRST][:4].tolist() == [0.0, -0.25, -1.5, -1.0]
    assert shifted(tmp_path)["rounded"] == nemotron.hidden // 4
    assert shifted(tmp_path)["added"] == 0


def test_torchs_own_norms_are_as_they_are_whatever_the_config_says(
    references: References, tmp_path: Path
) -> None:
    with fake_world(SINGLE, 0):
        model = build_model(LLAMA, SINGLE)[0]
        model.config.layernorm_zero_centered_gamma = True
        model.get_parameter(f"{FINAL}.weight").data.fill_(0.75)

        dumped(model, tmp_path, references.config("llama"))

    assert set(written(tmp_path)[HF_FINAL].tolist()) == {0.75}
    assert shifted(tmp_path) == {}


def test_the_gated_norm_of_a_mamba_mixer_is_as_it_is_beside_norms_stored_minus_one(
    references: References, tmp_path: Path
) -> None:
    """megatron-core takes it from mamba_ssm, which has no such option."""
    with fake_world(SINGLE, 0):
        model = build_model(by_name("nemotron_h"), SINGLE)[0]
        model.config.layernorm_zero_centered_gamma = True
        model.get_submodule("decoder.final_norm").zero_centered_gamma = True
        model.get_parameter("decoder.final_norm.weight").data.fill_(0.75)
        model.get_parameter(f"{MIXED}.weight").data.fill_(0.75)

        dumped(model, tmp_path, references.config("nemotron_h"))

    found = written(tmp_path)
    assert set(found[HF_MIXED].tolist()) == {0.75}
    assert set(found["backbone.norm_f.weight"].tolist()) == {1.75}


class OwnNorm(torch.nn.RMSNorm):
    """What a program put in place of torch's. It does not say what it computes."""


@pytest.mark.parametrize(
    ("name", "config", "readers"),
    [("llama", True, "add nothing to it"), ("nemotron", False, "add one to it")],
)
def test_a_norm_that_does_not_say_how_it_is_stored_is_refused_where_the_config_differs_from_readers(
    name: str, config: bool, readers: str, references: References, tmp_path: Path
) -> None:
    with fake_world(SINGLE, 0):
        model = build_model(by_name(name), SINGLE)[0]
        norm = OwnNorm(by_name(name).hidden)
        norm.weight = model.get_submodule(FINAL).weight
        if name == "nemotron":
            norm.bias = model.get_submodule(FINAL).bias
        model.decoder.final_layernorm = norm
        dumped(model, tmp_path / "agreed", references.config(name))
        model.config.layernorm_zero_centered_gamma = config

        message = refused_and_recorded(
            UnsupportedParameterError, 5, model, tmp_path / "out", references.config(name)
        )

    assert message.startswith(f"{FINAL}.weight on rank 0: ")
    assert "OwnNorm does not say whether it adds one to its weight" in message
    assert f"layernorm_zero_centered_gamma={config}, and readers {readers}" in message
