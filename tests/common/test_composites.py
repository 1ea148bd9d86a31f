"""Tables of composites: names, keys, config.json, and what it must say alike in two places. Expected by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from shardmerge.common.architectures import ARCHITECTURES, blueprint
from shardmerge.common.architectures.blueprint import Blueprint
from shardmerge.common.architectures.composites import composite_of
from shardmerge.common.architectures.rows import Composite
from shardmerge.common.architectures.settings.says import contradictions
from shardmerge.common.errors import BadInputError
from shardmerge.phase2_merge.corrections.settle import settled_config
from shardmerge.phase2_merge.corrections.written import parse
from shardmerge.phase2_merge.hf_files.config_json import edited

TEXT: dict[str, Any] = {
    "hidden_size": 10, "intermediate_size": 14, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "vocab_size": 26, "num_experts": 3, "num_experts_per_tok": 2,
    "moe_intermediate_size": 7, "mlp_only_layers": [0], "rms_norm_eps": 1e-6, "dtype": "bfloat16",
    "rope_theta": 5000000,
    "rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 1], "mrope_interleaved": True},
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3VLMoeForConditionalGeneration"], "model_type": "qwen3_vl_moe", "tie_word_embeddings": False,
    "text_config": TEXT, "vision_config": {"depth": 2, "out_hidden_size": 10, "dtype": "float32"},
}  # fmt: skip
DEEPSEEK: dict[str, Any] = {
    "hidden_size": 10, "intermediate_size": 14, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 26,
    "n_routed_experts": 3, "n_shared_experts": 1, "moe_intermediate_size": 7, "first_k_dense_replace": 1,
    "q_lora_rank": 5, "kv_lora_rank": 6, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 3,
    "num_nextn_predict_layers": 1,
}  # fmt: skip


def with_text(**changes: Any) -> dict[str, Any]:
    return CONFIG | {"text_config": TEXT | changes}


def without(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != key}


def kimi() -> Blueprint:
    """DeepSeek-V3 below a prefix that all its names get, its head and steps too."""
    place = Composite("text_config", "language_model.", ("tower.",), "vision_config", "by hand")
    table = composite_of(
        ARCHITECTURES["DeepseekV3ForCausalLM"],
        "Made",
        renamed=(("", "language_model."),),
        place=place,
        vision_keys=("tower.",),
        model_types=("made",),
    )
    return Blueprint(table, {"text_config": DEEPSEEK, "vision_config": {}})


def test_names_get_their_prefix_and_the_head_stays_where_readers_look() -> None:
    shapes = blueprint(CONFIG).shapes()
    layer = "model.language_model.layers."
    assert shapes["lm_head.weight"] == shapes["model.language_model.embed_tokens.weight"] == (26, 10)
    assert shapes[f"{layer}0.mlp.down_proj.weight"] == (10, 14)
    assert shapes[f"{layer}1.self_attn.q_proj.weight"] == (24, 10)
    # published: [experts, hidden, gate then up] and [experts, width, hidden]
    assert shapes[f"{layer}1.mlp.experts.gate_up_proj"] == (3, 10, 14)
    assert shapes[f"{layer}1.mlp.experts.down_proj"] == (3, 7, 10)
    outside = {name for name in shapes if not name.startswith("model.language_model.")}
    assert outside == {"lm_head.weight"}


def test_another_prefix_takes_the_head_and_the_steps_with_it() -> None:
    names = set(kimi().shapes())
    assert all(name.startswith("language_model.") for name in names)
    assert {"language_model.lm_head.weight", "language_model.model.norm.weight"} < names
    assert "language_model.model.layers.3.shared_head.norm.weight" in names
    assert kimi().copies() == {
        "language_model.model.layers.3.embed_tokens.weight": "language_model.model.embed_tokens.weight",
        "language_model.model.layers.3.shared_head.head.weight": "language_model.lm_head.weight",
    }
    assert kimi().is_mtp("language_model.model.layers.3.enorm.weight")
    assert not kimi().is_mtp("language_model.model.layers.2.input_layernorm.weight")
    assert kimi().mtp_patterns(["language_model.model.layers.3.enorm.weight", "tower.3.a"]) == (
        "language_model.model.layers.3.*",
    )


def test_steps_are_counted_and_dropped_where_they_are_said() -> None:
    table = kimi()
    assert list(table.mtp_layers) == [3]
    mtp = table.architecture.mtp
    assert mtp is not None
    fewer = mtp.without(table.config)
    assert fewer == {"text_config": DEEPSEEK | {"num_nextn_predict_layers": 0}, "vision_config": {}}
    assert table.settings()["mtp_steps"].keys == ("text_config.num_nextn_predict_layers",)


@pytest.mark.parametrize("prefix", ["", "language_model."])
def test_keys_of_the_whole_and_of_the_language_model_alone_are_the_same(prefix: str) -> None:
    table = blueprint(CONFIG)
    claim = table.claim(table.canonical(f"{prefix}decoder.layers.2.mlp.experts.experts.1.linear_fc2.weight"))
    assert claim is not None
    assert [tensor.name for tensor in claim.tensors] == [
        "model.language_model.layers.2.mlp.experts.down_proj"
    ]
    step = kimi().claim(kimi().canonical(f"{prefix}mtp.layers.0.eh_proj.weight"))
    assert step is not None
    assert step.tensors[0].name == "language_model.model.layers.3.eh_proj.weight"


def test_keys_of_a_vision_tower_are_dropped_with_a_reason_and_nothing_else_is() -> None:
    table = blueprint(CONFIG)
    for key in ("vision_model.decoder.layers.0.mlp.linear_fc1.weight", "visual.visual.pos_embed.weight"):
        assert "vision tower" in (table.drop_reason(key) or "")
    for key in ("vision_models.a", "decoder.layers.0.visual.a", "vision_model", "audio_model.a"):
        assert table.drop_reason(key) is None


def test_dimensions_and_settings_are_those_of_the_language_model() -> None:
    table = blueprint(CONFIG | {"hidden_size": 999, "num_experts_per_tok": 999})
    assert table.dimensions["hidden"] == 10
    said = table.settings()
    assert said["experts_per_token"] == (2, ("text_config.num_experts_per_tok",))
    assert said["rope_sections"].value == [1, 1, 1]
    assert said["rope_sections_interleaved"].value is True
    assert said["rope_frequencies"].value[1] == pytest.approx(5000000 ** (-1 / 3))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (without(CONFIG, "text_config"), "text_config"),
        (CONFIG | {"text_config": None}, "text_config = None"),
        (CONFIG | {"text_config": [TEXT]}, "text_config = "),
        (with_text(attention_bias=True), "attention_bias"),
        (CONFIG | {"text_config": without(TEXT, "hidden_size")}, "hidden_size"),
    ],
)
def test_a_config_without_a_language_model_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        blueprint(config)


def test_sections_that_take_no_turns_are_refused_since_transformers_takes_them_all_the_same() -> None:
    table = blueprint(with_text(rope_scaling={"mrope_section": [1, 1, 1], "mrope_interleaved": False}))
    with pytest.raises(BadInputError, match=r"mrope_interleaved.*not all readers heed"):
        table.settings()


@pytest.mark.parametrize(("outer", "inner", "tied"), [
    (True, None, True), (False, None, False), (None, False, False), (None, None, False), (True, True, True),
])  # fmt: skip
def test_tied_embeddings_are_read_in_both_places(outer: bool | None, inner: bool | None, tied: bool) -> None:
    """Who ties: transformers reads the outer config, vLLM that of the language model."""
    config = CONFIG | {"tie_word_embeddings": outer, "text_config": TEXT | {"tie_word_embeddings": inner}}
    table = blueprint(config)
    assert table.settings()["tied_embeddings"].value is tied
    assert ("lm_head.weight" in table.shapes()) is not tied
    assert list(contradictions(config, table.synonyms)) == []


def test_embeddings_that_only_vllm_would_tie_are_refused() -> None:
    config = without(with_text(tie_word_embeddings=True), "tie_word_embeddings")
    with pytest.raises(
        BadInputError, match=r"text_config\.tie_word_embeddings = True and no tie_word_embeddings"
    ):
        blueprint(config)


def test_what_transformers_takes_for_tied_embeddings_depends_on_the_class() -> None:
    text = DEEPSEEK | {"num_nextn_predict_layers": 0}
    config = {"architectures": ["KimiK25ForConditionalGeneration"], "text_config": text, "vision_config": {}}
    assert "language_model.lm_head.weight" not in blueprint(config).shapes()
    assert "language_model.lm_head.weight" in blueprint(config | {"tie_word_embeddings": False}).shapes()


@pytest.mark.parametrize(
    ("config", "pair"),
    [
        (with_text(tie_word_embeddings=True), ("tie_word_embeddings", "text_config.tie_word_embeddings")),
        (CONFIG | {"dtype": "float16"}, ("dtype", "text_config.dtype")),
        (
            CONFIG | {"vision_config": {"out_hidden_size": 12}},
            ("text_config.hidden_size", "vision_config.out_hidden_size"),
        ),
        (
            with_text(rope_parameters={"rope_theta": 1e4}),
            ("text_config.rope_parameters.rope_theta", "text_config.rope_theta"),
        ),
    ],
)
def test_what_two_places_say_differently_is_found(config: dict[str, Any], pair: tuple[str, str]) -> None:
    found = [(one[0], other[0]) for one, other in contradictions(config, blueprint(config).synonyms)]
    assert found == [pair]


@pytest.mark.parametrize(
    ("written", "changed"),
    [
        ("config.text_config.rope_theta=10000", {"text_config.rope_theta": 10000}),
        (
            "config.tie_word_embeddings=true",
            {"tie_word_embeddings": True, "text_config.tie_word_embeddings": True},
        ),
        (
            "config.text_config.tie_word_embeddings=true",
            {"tie_word_embeddings": True, "text_config.tie_word_embeddings": True},
        ),
        ("config.text_config.hidden_size=12", {"text_config.hidden_size": 12, "vision_config.out_hidden_size": 12}),
    ],
)  # fmt: skip
def test_a_correction_changes_what_both_places_say(written: str, changed: dict[str, Any]) -> None:
    changes = settled_config(with_text(tie_word_embeddings=False), parse([written]))
    assert {".".join(change.path): change.value for change in changes} == changed


def test_a_key_of_the_language_model_that_is_set_outside_is_refused_and_told_where_it_is() -> None:
    with pytest.raises(BadInputError, match=r"Do you mean text_config\.rope_theta\?"):
        settled_config(CONFIG, parse(["config.rope_theta=10000"]))


def test_the_language_model_says_the_same_dtype_and_keeps_no_quantization_of_another_checkpoint() -> None:
    declared = {"quant_method": "compressed-tensors"}
    published = with_text(quantization_config=declared)
    assert edited(published, "F32", None, "text_config") == CONFIG | {
        "dtype": "float32",
        "torch_dtype": "float32",
        "text_config": TEXT | {"dtype": "float32"},
    }
    # a config that is not a composite's keeps what it nests
    assert edited({"text_config": {"dtype": "x"}}, "F32")["text_config"] == {"dtype": "x"}


def test_what_vision_is_called_is_data() -> None:
    table = blueprint(CONFIG)
    names = ["model.visual.merger.norm.weight", "model.visual.pos_embed.weight", "lm_head.weight"]
    assert [table.is_vision(name) for name in names] == [True, True, False]
    assert table.vision_patterns(names) == ("model.visual.*",)
    assert table.vision_patterns(["lm_head.weight"]) == ()
    assert table.promises_vision == "vision_config"
    assert blueprint(CONFIG | {"vision_config": None}).promises_vision == ""
    text = replace(table.architecture, composite=None)
    assert not Blueprint(text, CONFIG).is_vision(names[0])
