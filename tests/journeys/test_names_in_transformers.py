"""Every name of every table is one that transformers loads, in each spelling of experts that readers take.

Its own conversion of names (`conversion_mapping.py`) decides: nothing is missing, unexpected or of another shape.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from shardmerge.common.architectures import ARCHITECTURES, TABLES, Architecture, blueprint
from shardmerge.common.architectures.spelling import asked
from shardmerge.common.reference import read_config
from tests.worlds.checkpoints import hf_class
from tests.worlds.families import FAMILIES, Family
from tests.worlds.mtp import MTP_FAMILIES, write_bare

# what transformers calls whatever stands beside a language model, of which no table has rows
BESIDE = ("visual.", "vision_tower.", "mm_projector.", "vision_model", "multi_modal_projector")
# tables of classes that transformers lacks -> what reads their names
READ_BY_OTHERS = {"BailingMoeV2ForCausalLM": "vLLM (tests/vllm)"}


def spellings(family: Family) -> tuple[str | None, ...]:
    """How the family's experts may be spelled; None for one without experts."""
    known = ARCHITECTURES[family.architecture].experts
    return known.decoder if known else (None,)


CASES = [
    pytest.param(family, spelling, id=f"{family.name}-{spelling or 'dense'}")
    for family in (*FAMILIES, *MTP_FAMILIES)
    for spelling in spellings(family)
]

READ = {ARCHITECTURES[family.architecture].name for family in (*FAMILIES, *MTP_FAMILIES)}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_no_table_is_without_a_reader(table: Architecture) -> None:
    """transformers reads its names here, in each spelling, or has no class of any name of the table."""
    assert (table.name in READ) != (table.name in READ_BY_OTHERS)
    if table.name in READ_BY_OTHERS:
        assert [name for name in (table.name, *table.aliases) if hasattr(transformers, name)] == []


@pytest.mark.parametrize(("family", "spelling"), CASES)
def test_transformers_finds_all_that_the_table_names_and_nothing_else(
    family: Family, spelling: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = read_config(write_bare(family, tmp_path))
    table = blueprint(config)
    if spelling is not None:
        number = table.dimensions["num_experts"]
        table = blueprint(config, experts=asked(table.architecture, number, spelling))
    tensors = {
        name: torch.zeros(shape, dtype=torch.float32 if float32 else torch.bfloat16)
        for name, shape, float32 in table.tensors()
        if not table.is_mtp(name)  # transformers builds no step
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level(logging.ERROR):
        _, told = hf_class(family).from_pretrained(
            tmp_path, output_loading_info=True, dtype=torch.bfloat16, ignore_mismatched_sizes=True
        )
    missing = [name for name in told["missing_keys"] if not any(part in name for part in BESIDE)]
    assert [*missing, *told["unexpected_keys"], *told["mismatched_keys"]] == []
    assert not told.get("conversion_errors"), transformers.__version__


def test_a_name_that_is_wrong_would_be_noticed(tmp_path: Path) -> None:
    """One letter less in the name of the packed tensors of experts, and one row less."""
    family = next(family for family in FAMILIES if family.name == "qwen3_moe")
    table = blueprint(
        read_config(write_bare(family, tmp_path)),
        experts=asked(ARCHITECTURES[family.architecture], 8, "packed"),
    )
    tensors = {
        name.replace("gate_up_proj", "gate_up_pro"): torch.zeros(shape) for name, shape, _ in table.tensors()
    }
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, told = hf_class(family).from_pretrained(
        tmp_path, output_loading_info=True, ignore_mismatched_sizes=True
    )
    layers = range(family.layers)
    assert {*told["unexpected_keys"]} == {f"model.layers.{layer}.mlp.experts.gate_up_pro" for layer in layers}
    assert {*told["missing_keys"]} == {f"model.layers.{layer}.mlp.experts.gate_up_proj" for layer in layers}
    assert [key[0] for key in told["mismatched_keys"]] == ["model.norm.weight"]
