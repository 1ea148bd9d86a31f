"""A model and a config.json that differ where no shape shows it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from megatron.core.models.gpt.gpt_model import GPTModel

from shardmerge.common.errors import MismatchError, UnsupportedParameterError
from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import dumped
from tests.phase1_dump.refusing import refused_and_recorded
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.topology import SINGLE


@pytest.fixture
def model() -> Iterator[GPTModel]:
    with fake_world(SINGLE, 0):
        yield build_model(by_name("llama"), SINGLE)[0]


def test_other_heads_of_the_same_fused_size_are_a_mismatch(
    model: GPTModel, references: References, tmp_path: Path
) -> None:
    """(8 + 2 * 2) * 12 rows are (4 + 2 * 1) * 24 rows, and 8 * 12 columns are 4 * 24."""
    reference = references.edited("llama", num_attention_heads=4, num_key_value_heads=1, head_dim=24)

    message = refused_and_recorded(MismatchError, 4, model, tmp_path / "out", reference)

    assert message.startswith(
        "model.layers.{layer}.self_attn.q_proj.weight: num_attention_heads of the model is 8"
    )
    assert "expected 4 by config.json" in message


def test_other_groups_are_a_mismatch(references: References, tmp_path: Path) -> None:
    """As many rows again: (8 + 2 * 2) * 12 are (6 + 2 * 3) * 12."""
    reference = references.edited("llama", num_key_value_heads=3, num_attention_heads=6)
    with fake_world(SINGLE, 0):
        model = build_model(replace(by_name("llama"), heads=6, groups=2), SINGLE)[0]

        message = refused_and_recorded(MismatchError, 4, model, tmp_path / "out", reference)

    assert "num_query_groups of the model is 2" in message


def test_other_groups_of_a_mamba_mixer_are_a_mismatch(references: References, tmp_path: Path) -> None:
    """4 groups of 10 states are as many rows as 10 groups of 4."""
    reference = references.edited("nemotron_h", n_groups=10, ssm_state_size=4)
    with fake_world(SINGLE, 0):
        model = build_model(by_name("nemotron_h"), SINGLE)[0]

        message = refused_and_recorded(MismatchError, 4, model, tmp_path / "out", reference)

    assert "mamba_num_groups of the model is 4" in message
    assert "expected 10 by config.json" in message


def test_latent_attention_has_no_groups_to_compare(references: References, tmp_path: Path) -> None:
    with fake_world(SINGLE, 0):
        model = build_model(by_name("deepseek_v3"), SINGLE)[0]
        model.config.kv_channels = 1000

        assert dumped(model, tmp_path, references.config("deepseek_v3")).rank == 0


def test_latent_attention_that_exchanges_neighbours_twice_is_refused(
    references: References, tmp_path: Path
) -> None:
    with fake_world(SINGLE, 0):
        model = build_model(by_name("deepseek_v3"), SINGLE)[0]
        model.config.rotary_interleaved = True

        message = refused_and_recorded(
            UnsupportedParameterError, 5, model, tmp_path / "out", references.config("deepseek_v3")
        )

    assert message.startswith("rotary_interleaved=True on rank 0: latent attention")


def test_a_layer_with_a_config_of_its_own_is_refused(
    model: GPTModel, references: References, tmp_path: Path
) -> None:
    """A copy that says the same is no matter: megatron-core makes some."""
    reference = references.config("llama")
    model.decoder.layers[1].config = replace_config(model, rotary_interleaved=False)
    dumped(model, tmp_path / "alike", reference)
    model.decoder.layers[2].config = replace_config(model, softmax_scale=0.5)

    message = refused_and_recorded(UnsupportedParameterError, 5, model, tmp_path / "out", reference)

    assert message.startswith("decoder.layers.2 on rank 0: its own config says softmax_scale=0.5")


def test_an_attention_with_heads_of_its_own_is_refused(
    model: GPTModel, references: References, tmp_path: Path
) -> None:
    """Half as many heads with twice the channels fill the same rows. Fewer key heads are megatron-core's."""
    reference = references.config("llama")
    model.decoder.layers[1].self_attention.config = replace_config(model, num_query_groups=1)
    dumped(model, tmp_path / "alike", reference)
    model.decoder.layers[2].self_attention.config = replace_config(
        model, num_attention_heads=4, kv_channels=24
    )

    message = refused_and_recorded(UnsupportedParameterError, 5, model, tmp_path / "out", reference)

    assert message.startswith("decoder.layers.2.self_attention on rank 0: its own config says")
    assert "num_attention_heads=4, kv_channels=24" in message


def replace_config(model: GPTModel, **values: object) -> object:
    config = copy.copy(model.config)
    for name, value in values.items():
        setattr(config, name, value)
    return config
