"""How a table meets a config.json and a canonical key. What the tables say is compared with transformers elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from shardmerge.common.architectures import ARCHITECTURES, blueprint, key_ids
from shardmerge.common.architectures.keys import KeyIds, key_pattern
from shardmerge.common.errors import BadInputError, UnsupportedArchitectureError

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 24, "num_experts": 3,
    "moe_intermediate_size": 20, "mlp_only_layers": [0],
}  # fmt: skip
EXPERT = "decoder.layers.1.mlp.experts.experts.2.linear_fc1.weight_w"


def test_layers_and_experts_are_read_from_canonical_keys() -> None:
    assert key_ids(EXPERT) == KeyIds(None, 1, 2)
    assert key_ids("embedding.word_embeddings.weight") == KeyIds()
    inner = "mtp.layers.1.mtp_model_layer.layers.2.mlp.experts.experts.3.linear_fc2.weight"
    assert key_ids(inner) == KeyIds(1, 2, 3)
    assert key_pattern(inner).startswith("mtp.layers.{step}.mtp_model_layer.layers.{layer}.mlp.")
    assert key_pattern(EXPERT) == "decoder.layers.{layer}.mlp.experts.experts.{expert}.linear_fc1.weight_w"


def test_a_table_lists_every_tensor_once() -> None:
    names = [tensor.name for tensor in blueprint(CONFIG).tensors()]
    assert (
        len(names) == len(set(names)) == 3 + 2 * 8 + 3 + (1 + 3 * 3)
    )  # model, layers, one dense, one routed
    assert "model.layers.0.mlp.up_proj.weight" in names
    assert "model.layers.1.mlp.experts.2.down_proj.weight" in names
    assert "model.layers.0.mlp.experts.0.up_proj.weight" not in names


@pytest.mark.parametrize(
    "changes", [{}, {"mlp_only_layers": []}, {"num_experts": 0}, {"tie_word_embeddings": True}]
)
def test_tensors_are_counted_without_listing_them(changes: dict[str, Any]) -> None:
    table = blueprint(CONFIG | changes)
    assert table.num_tensors() == len(list(table.tensors()))


@pytest.mark.parametrize(
    "changes",
    [{"num_hidden_layers": 1 << 40}, {"num_hidden_layers": 20_000}, {"num_experts": 1 << 20},
     {"hidden_size": 8.0}, {"vocab_size": -1}, {"hidden_size": True}, {"head_dim": 1 << 31}],
)  # fmt: skip
def test_dimensions_that_cannot_be_are_refused_before_anything_is_listed(changes: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match="lacks or contradicts"):
        blueprint(CONFIG | changes)


def test_a_claim_names_tensor_and_shape() -> None:
    claim = blueprint(CONFIG).claim(EXPERT)
    assert claim is not None
    assert [(one.name, one.shape) for one in claim.tensors] == [
        ("model.layers.1.mlp.experts.2.gate_proj.weight", (20, 8))
    ]
    assert (claim.layer, claim.expert) == (1, 2)


@pytest.mark.parametrize(
    "key",
    [
        EXPERT.replace("experts.2", "experts.3"),  # there are experts 0 to 2
        EXPERT.replace("layers.1", "layers.0"),  # layer 0 is dense
        "decoder.layers.2.self_attention.linear_proj.weight",  # there are layers 0 and 1
        "decoder.layers.1.mlp.mystery.weight",
    ],
)
def test_nothing_else_is_claimed(key: str) -> None:
    assert blueprint(CONFIG).claim(key) is None


def test_tied_embeddings_have_no_head() -> None:
    names = {tensor.name for tensor in blueprint(CONFIG | {"tie_word_embeddings": True}).tensors()}
    assert "lm_head.weight" not in names
    assert blueprint(CONFIG | {"tie_word_embeddings": True}).claim("output_layer.weight") is None


def test_experts_may_be_counted_as_transformers_5_saves_it() -> None:
    saved = {key: value for key, value in CONFIG.items() if key != "num_experts"} | {"num_local_experts": 3}
    assert list(blueprint(saved).tensors()) == list(blueprint(CONFIG).tensors())
    with pytest.raises(BadInputError, match="contradicts num_experts and num_local_experts"):
        blueprint(CONFIG | {"num_local_experts": 4})


def test_an_architecture_without_a_table_lists_those_there_are() -> None:
    with pytest.raises(UnsupportedArchitectureError) as error:
        blueprint({"architectures": ["MysteryForCausalLM"]})
    assert (error.value.supported, error.value.reason) == (tuple(sorted(ARCHITECTURES)), "")


@pytest.mark.parametrize("config", [{}, {"architectures": []}, {"architectures": None}])
def test_a_config_that_names_no_architecture_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match='no "architectures"'):
        blueprint(config)


def test_an_architecture_that_is_no_list_is_refused_and_the_message_writes_the_list() -> None:
    with pytest.raises(BadInputError) as refused:
        blueprint({"architectures": "Qwen3ForCausalLM"})
    assert refused.value.message() == (
        'config.json has "architectures": "Qwen3ForCausalLM", which must be a list. '
        'Write "architectures": ["Qwen3ForCausalLM"].'
    )


def test_experts_that_are_not_counted_are_asked_for_as_published() -> None:
    with pytest.raises(BadInputError, match="lacks or contradicts 'num_experts'"):
        blueprint({key: value for key, value in CONFIG.items() if key != "num_experts"})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"decoder_sparse_step": 0}, "decoder_sparse_step = 0"),
        ({"decoder_sparse_step": None}, "decoder_sparse_step = None"),
        ({"num_attention_heads": 0, "head_dim": None}, "num_attention_heads = 0"),
    ],
)
def test_what_cannot_divide_is_named_with_its_value(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInputError, match=f"lacks or contradicts {says}"):
        blueprint(CONFIG | changes)


@pytest.mark.parametrize(
    "changes", [{"hidden_size": None}, {"num_attention_heads": 0, "head_dim": 0}, {"vocab_size": None}]
)
def test_a_config_without_a_dimension_is_refused(changes: dict[str, Any]) -> None:
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    with pytest.raises(BadInputError, match="lacks or contradicts"):
        blueprint(config)
