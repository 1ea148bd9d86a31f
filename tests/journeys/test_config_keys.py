"""config.json says something else than real models compute: each key that a table reads is changed, and noticed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardmerge.common.architectures import blueprint
from shardmerge.common.errors import (
    BadInputError,
    ConfigContradictionError,
    ConfigMismatchError,
    ShardmergeError,
)
from shardmerge.phase2_merge import check, merge, metadata, verify
from tests.journeys.settings import NAMES, Dumped, Json, dumped, mismatches, problems
from tests.worlds import fake, megatron_config
from tests.worlds.families import by_name

# of Llama 4, whose small models have no sequences as long: tests/common/test_family_words.py shows what they say then
OF_LONG_SEQUENCES = (
    "attention_chunk_size",
    "attn_scale",
    "attn_temperature_tuning",
    "floor_scale",
    "max_position_embeddings",
)


def edits(config: Json) -> Iterator[tuple[str, Json, set[str]]]:
    """Each key that the table reads, with another value: its name, the config.json, the settings that must differ."""
    table = blueprint(config)
    before = {name: said.value for name, said in table.settings().items()}
    for key in sorted({key for row in table.architecture.settings for key in row.keys}):
        changed = _changed(config, key)
        if changed is None:
            continue
        try:
            after = blueprint(changed).settings()
        except BadInputError:
            yield key, changed, set()
            continue
        yield key, changed, {name for name, said in after.items() if said.value != before.get(name)}


def _is_idle(key: str, config: Json) -> bool:
    """Whether a key says nothing: without groups of experts, of which DeepSeek-V2 speaks by its method, and of Llama's
    window without kinds of layers.
    """
    if key == "sliding_window" and config["model_type"] == "llama":
        return "layer_types" not in config
    if config["model_type"] == "llama4_text" and key in (*OF_LONG_SEQUENCES, "no_rope_layer_interval"):
        return key in OF_LONG_SEQUENCES or bool(config.get("no_rope_layers"))
    if config.get("topk_method") == "greedy":
        return key in ("n_group", "topk_group", "topk_method")
    return key == "topk_group" and config["n_group"] == 1


def _changed_inside(held: Any, key: str) -> Json | None:
    """Return the same of what a key holds: the config of a composite's language model, or options of rotation."""
    if not isinstance(held, dict):
        return None
    if "model_type" in held:
        return _changed(held, key)
    return {**held, key: held[key] * 3} if isinstance(held.get(key), int | float | list) else None


def _changed(config: Json, key: str) -> Json | None:
    """Return a config.json in which a key holds another value of its type, None where none is known."""
    name, _, inner = key.partition(".")
    if inner:
        own = _changed_inside(config.get(name), inner)
        return own and {**config, name: own}
    others: Json = {
        "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        "rope_theta": None, "topk_method": "greedy", "time_step_limit": [0.5, 2.0],
        "mamba_dt_limit": [0.5, 2.0], "sliding_window": 24, "use_sliding_window": True, "layer_types": None,
        "max_window_layers": None, "mtp_hybrid_override_pattern": None, "mtp_layers_block_type": None,
        "sliding_window_pattern": None,
        "num_nextn_predict_layers": None, "mamba_n_groups": 2, "norm_eps": None,
    }  # fmt: skip
    if _is_idle(key, config):
        return None
    others["scoring_func"] = "sigmoid" if config["model_type"] == "deepseek_v2" else "softmax"
    if key in others:
        more: Json = {"use_sliding_window": True, "sliding_window": 24}
        more |= {"layer_types": ["sliding_attention"] * 4} if "layer_types" in config else {}
        given = (
            more
            if key in more and {"use_sliding_window", "layer_types"} & config.keys()
            else {key: others[key]}
        )
        return None if others[key] is None else {**config, **given}
    held = config.get(key)
    if isinstance(held, bool):
        return {**config, key: not held}
    if isinstance(held, str):
        return {**config, key: "gelu"}
    return {**config, key: held * 2} if isinstance(held, int | float) else None


@pytest.mark.parametrize("name", NAMES)
def test_a_config_that_says_something_else_is_noticed(
    name: str, dumps: dict[str, Dumped], tmp_path: Path
) -> None:
    one = dumps[name]
    tried = list(edits(one.config()))
    assert len(tried) >= 9
    silent = []
    for number, (key, config, wanted) in enumerate(tried):
        found = problems(one, one.saying(tmp_path / str(number), config), allow=["vision"])
        by_setting = mismatches(found)
        shapes = [problem for problem in found if not isinstance(problem, ConfigMismatchError)]
        if not (wanted and wanted <= by_setting.keys()) and not shapes:
            silent.append((key, wanted, sorted(by_setting)))
    assert silent == []


def test_the_error_names_key_and_both_values(dumps: dict[str, Dumped], tmp_path: Path) -> None:
    one = dumps["qwen3_moe"]
    config = one.config() | {"num_experts_per_tok": 3, "norm_topk_prob": False}
    found = mismatches(problems(one, one.saying(tmp_path / "ref", config)))
    assert found["experts_per_token"].message() == (
        "experts_per_token (experts that a token is sent to) is 2 in the model, 3 by config.json "
        "(num_experts_per_tok). Correct it (--set config.num_experts_per_tok=...); --allow config publishes it as it "
        "is."
    )
    config = one.config() | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6},
        "rope_theta": 5e6,
    }
    (problem,) = problems(one, one.saying(tmp_path / "other", config))
    assert "6 pairs, from 1 to 0.0004642, as of base 10000 in the model" in str(problem)
    assert "as of base 5e+06 by config.json (rope_parameters.rope_theta, rope_theta, rope_scaling)" in str(
        problem
    )


def test_both_spellings_of_rotation_agree(dumps: dict[str, Dumped], tmp_path: Path) -> None:
    one = dumps["llama"]
    config = one.config()
    del config["rope_parameters"]
    assert problems(one, one.saying(tmp_path / "old", config | {"rope_theta": 10000.0})) == []
    assert problems(one, one.saying(tmp_path / "none", config)) == []
    assert mismatches(problems(one, one.saying(tmp_path / "other", config | {"rope_theta": 1e5})))


def test_what_is_said_twice_and_differs_is_told(dumps: dict[str, Dumped], tmp_path: Path) -> None:
    one = dumps["llama"]
    (problem,) = problems(one, one.saying(tmp_path / "ref", one.config() | {"rope_theta": 500000.0}))
    assert isinstance(problem, ConfigContradictionError)
    assert (problem.key, problem.other) == ("rope_parameters.rope_theta", "rope_theta")


@pytest.mark.parametrize("value", ["False", 1, [True]])
def test_a_value_of_another_type_is_bad_input(value: Any, dumps: dict[str, Dumped], tmp_path: Path) -> None:
    one = dumps["qwen3_moe"]
    (problem,) = problems(one, one.saying(tmp_path / "ref", one.config() | {"norm_topk_prob": value}))
    assert isinstance(problem, BadInputError)
    assert "router_normalized (norm_topk_prob)" in str(problem)
    assert "is not true or false" in str(problem)


# ---- what is published ----------------------------------------------------------------------------------------------


def test_what_is_allowed_is_kept_and_what_is_corrected_is_not(
    dumps: dict[str, Dumped], tmp_path: Path
) -> None:
    """merge, verify and metadata agree, and a difference is told until it is corrected."""
    one, out = dumps["llama"], tmp_path / "out"
    wrong = one.saying(tmp_path / "ref", one.config() | {"rms_norm_eps": 3e-4})
    with pytest.raises(ConfigMismatchError):
        merge([one.dump], out, hf_reference=wrong, workers=1)
    assert not out.exists()

    merged = merge([one.dump], out, hf_reference=wrong, workers=1, allow=["config"])
    assert merged.check.config.differing == ("norm_eps",)
    assert [text for text in merged.check.warnings if "norm_eps" in text and text.endswith("(allowed)")]
    (warning,) = verify(out).warnings
    assert "norm_eps" in warning
    assert any("norm_eps" in text for text in metadata(out).warnings)
    with pytest.raises(ConfigMismatchError):  # it was another value that was allowed
        metadata(out, corrections=["config.rms_norm_eps=5e-4"])
    report = json.loads((out / ".shardmerge" / "report.json").read_text())["check"]
    assert report["config"]["differing"] == ["norm_eps"]
    assert len([text for text in report["warnings"] if "norm_eps" in text]) == 1

    assert metadata(out, corrections=["config.rms_norm_eps=1e-5"]).warnings == ()
    assert verify(out).warnings == ()
    report = json.loads((out / ".shardmerge" / "report.json").read_text())["check"]
    assert (report["config"]["differing"], [text for text in report["warnings"] if "norm_eps" in text]) == (
        [],
        [],
    )
    with pytest.raises(ConfigMismatchError):
        metadata(out, corrections=["config.rms_norm_eps=3e-4"])
    assert metadata(out, corrections=["config.rms_norm_eps=3e-4"], allow=["config"]).warnings


def test_a_config_that_was_edited_afterwards_is_noticed(dumps: dict[str, Dumped], tmp_path: Path) -> None:
    one, out = dumps["mixtral"], tmp_path / "out"
    merge([one.dump], out, hf_reference=one.reference, workers=1)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"num_experts_per_tok": 1}))
    with pytest.raises(ConfigMismatchError, match="experts_per_token"):
        verify(out)
    (out / "config.json").write_text(json.dumps(config | {"rope_theta": 7.0}))
    with pytest.raises(ConfigContradictionError):
        verify(out)
    (out / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": "False"}))
    with pytest.raises(ShardmergeError, match="tie_word_embeddings"):
        verify(out)


def test_options_of_a_config_class_of_ones_own_are_listed(
    dumps: dict[str, Dumped], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = megatron_config.transformer_config

    def own(*args: Any, **options: Any) -> Any:
        config = made(*args, **options)
        kind = dataclasses.make_dataclass("Own", [("residual_mix", float, 0.5)], bases=(type(config),))
        config.__class__ = kind
        config.residual_mix = 0.25
        return config

    monkeypatch.setattr(fake, "transformer_config", own)
    one = dumped(by_name("llama"), dumps["llama"].reference, tmp_path / "dump")
    report = check([one.dump], hf_reference=one.reference)
    assert "residual_mix, an option of the model's own config class" in report.config.not_compared
    assert "residual_mix" in report.text()
