"""What of a model with Gated DeltaNets no key and no shape shows: norms stored minus one, orders of rows, heads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.models.gpt.gpt_model import GPTModel
from safetensors.torch import load_file, save_file

from shardmerge.common.errors import MismatchError, UnsupportedParameterError
from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import dumped
from tests.phase1_dump.refusing import refused_and_recorded
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.topology import SINGLE

NORM, HF_NORM = "decoder.layers.0.self_attention.out_norm", "model.layers.0.linear_attn.norm.weight"
INPUT_NORM, HF_INPUT_NORM = "decoder.layers.0.input_layernorm", "model.layers.0.input_layernorm.weight"
STORED = [-0.25, 0.0, 0.5, -0.75, 1.0, 0.125]
READ = [0.75, 1.0, 1.5, 0.25, 2.0, 1.125]


@pytest.fixture
def model() -> Iterator[GPTModel]:
    with fake_world(SINGLE, 0):
        model = build_model(by_name("qwen3_next"), SINGLE)[0]
        model.get_parameter(f"{NORM}.weight").data.copy_(torch.tensor(STORED))
        yield model


def written(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.rglob("*.safetensors"):
        found |= load_file(file)
    return found


def narrowed(folder: Path) -> dict[str, int]:
    """How many elements of each tensor lost bits, as the manifest says."""
    (manifest,) = folder.rglob("manifest.json")
    told = json.loads(manifest.read_text())["statistics"]["narrowed_elements"]
    return {name.partition("@")[0]: count for name, count in told.items()}


def test_one_is_added_where_readers_add_nothing(
    model: GPTModel, references: References, tmp_path: Path
) -> None:
    model.get_parameter(f"{INPUT_NORM}.weight").data.fill_(-0.25)

    dumped(model, tmp_path, references.config("qwen3_next"))

    found = written(tmp_path)
    assert found[HF_NORM].tolist() == READ
    assert found[HF_NORM].dtype == torch.bfloat16
    assert set(found[HF_INPUT_NORM].tolist()) == {-0.25}


def test_the_sum_is_rounded_once_to_what_the_reference_holds_and_counted(
    model: GPTModel, references: References, tmp_path: Path
) -> None:
    """2 ** -9 is a number of bfloat16, but 1 + 2 ** -9 is not."""
    model.get_parameter(f"{NORM}.weight").data.fill_(2**-9)
    reference = references.config("qwen3_next")
    wide = tmp_path / "hf"
    wide.mkdir()
    (wide / "config.json").write_text((reference / "config.json").read_text())
    save_file({HF_NORM: torch.zeros(6)}, wide / "model.safetensors", metadata={"format": "pt"})

    dumped(model, tmp_path / "narrow", reference)
    dumped(model, tmp_path / "wide", wide)

    assert set(written(tmp_path / "narrow")[HF_NORM].tolist()) == {1.0}
    assert set(written(tmp_path / "wide")[HF_NORM].tolist()) == {1 + 2**-9}
    assert narrowed(tmp_path / "narrow")[HF_NORM] == 6
    assert HF_NORM not in narrowed(tmp_path / "wide")


def test_a_norm_whose_module_stores_it_as_it_is_is_written_so(
    model: GPTModel, references: References, tmp_path: Path
) -> None:
    """As mcore-bridge does, by a word of the module."""
    model.get_submodule(NORM).zero_centered_gamma = False

    dumped(model, tmp_path, references.config("qwen3_next"))

    assert written(tmp_path)[HF_NORM].tolist() == STORED


def test_one_is_subtracted_from_another_norm_that_is_stored_as_it_is(
    model: GPTModel, references: References, tmp_path: Path
) -> None:
    model.get_submodule(INPUT_NORM).zero_centered_gamma = False
    model.get_parameter(f"{INPUT_NORM}.weight").data.fill_(0.75)

    dumped(model, tmp_path, references.config("qwen3_next"))

    assert set(written(tmp_path)[HF_INPUT_NORM].tolist()) == {-0.25}


def test_other_heads_of_keys_of_the_same_width_are_a_mismatch(
    model: GPTModel, references: References, tmp_path: Path
) -> None:
    """4 heads of 11 channels are as many rows as 2 of 22, but they lie elsewhere."""
    reference = references.edited("qwen3_next", linear_num_key_heads=2, linear_key_head_dim=22)

    message = refused_and_recorded(MismatchError, 4, model, tmp_path / "out", reference)

    assert "linear_num_key_heads of the model is 4" in message
    assert "expected 2 by config.json" in message


def test_attention_of_another_program_is_refused_as_it_may_order_queries_and_gates_otherwise(
    model: GPTModel, references: References, tmp_path: Path
) -> None:
    """mcore-bridge has each gate behind its query, under the same key and in the same shape."""
    attention = model.get_submodule("decoder.layers.1.self_attention")

    class GatedSelfAttention(type(attention)):  # type: ignore[misc]
        def get_query_key_value_tensors(self, *arguments: object, **options: object) -> object:
            return super().get_query_key_value_tensors(*arguments, **options)

    attention.__class__ = GatedSelfAttention

    message = refused_and_recorded(
        UnsupportedParameterError, 5, model, tmp_path / "out", references.config("qwen3_next")
    )

    assert message.startswith("decoder.layers.1.self_attention.linear_qkv.weight on rank 0: ")
    assert "GatedSelfAttention takes it apart in a way of its own" in message


def test_a_projection_of_a_delta_net_that_is_not_described_in_parts_is_refused_by_name(
    model: GPTModel, references: References, tmp_path: Path
) -> None:
    """mcore-bridge describes it whole, and has the rows of each head of keys together."""
    net = model.get_submodule("decoder.layers.0.self_attention")
    described = net.sharded_state_dict

    def whole(prefix: str = "", *arguments: Any, **options: Any) -> Any:
        found = described(prefix, *arguments, **options)
        weight = net.in_proj.weight
        key = f"{prefix}in_proj.weight"
        return found | {key: ShardedTensor.from_rank_offsets(key, weight, replica_id=(0, 0, 0))}

    net.sharded_state_dict = whole

    message = refused_and_recorded(
        UnsupportedParameterError, 5, model, tmp_path / "out", references.config("qwen3_next")
    )

    assert message.startswith("decoder.layers.0.self_attention.in_proj.weight on rank 0: ")
    assert "mcore-bridge describes a DeltaNet so: one tensor whose rows" in message
