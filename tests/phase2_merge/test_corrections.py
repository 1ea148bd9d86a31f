"""`--set`: how it is written, what it refuses, and that nothing it was given is changed."""

from __future__ import annotations

import json

import pytest

from shardmerge.common.errors import BadInputError
from shardmerge.common.manifest_facts import Facts
from shardmerge.phase2_merge.corrections import corrected, corrected_facts, parse, recorded, replayed


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("config.a=1", 1),
        ("config.a=1e6", 1e6),
        ("config.a=null", None),
        ("config.a=bfloat16", "bfloat16"),
        ('config.a="1"', "1"),
        ("config.a=[1, 2]", [1, 2]),
        ("config.a=b=c", "b=c"),
        ("config.a=", ""),
    ],
)
def test_a_value_is_json_or_else_a_string(text: str, value: object) -> None:
    assert parse([text])[0].value == value


@pytest.mark.parametrize(
    "text", ["config.a", "rope_theta=1", "config=1", "config.=1", "model.a=1", "config..a=1"]
)
def test_what_is_no_correction_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match=r"Write facts\.KEY=VALUE"):
        parse([text])


@pytest.mark.parametrize("value", ["Infinity", "-1e999", "NaN", "[0.0, Infinity]"])
def test_a_number_that_json_does_not_have_is_refused(value: str) -> None:
    with pytest.raises(BadInputError, match="JSON has no such number"):
        parse([f"config.time_step_limit={value}"])


def test_an_infinity_that_is_corrected_is_recorded_as_a_string() -> None:
    """config.json of Nemotron-H has one."""
    values = json.loads('{"time_step_limit": [0.0, Infinity]}')
    given = parse(["config.time_step_limit=[0.0, 9.5]"])
    assert corrected("config", values, given) == {"time_step_limit": [0.0, 9.5]}
    assert recorded("config", values, given) == {
        "config.time_step_limit": {"was": [0.0, "Infinity"], "now": [0.0, 9.5]}
    }


def test_the_same_key_twice_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"config\.a is set twice"):
        parse(["config.a=1", "config.a=2"])


def test_a_nested_key_is_corrected_and_its_neighbours_and_the_original_stay() -> None:
    original = {"z": 1, "rope": {"theta": 1, "kind": "x"}, "a": 2}
    got = corrected("config", original, parse(["config.rope.theta=9", "facts.z=5"]))
    assert got == {"z": 1, "rope": {"theta": 9, "kind": "x"}, "a": 2}
    assert list(got) == ["z", "rope", "a"]
    assert original["rope"] == {"theta": 1, "kind": "x"}


def test_config_takes_new_keys_and_facts_do_not() -> None:
    assert corrected("config", {}, parse(["config.rope.theta=9"])) == {"rope": {"theta": 9}}
    with pytest.raises(BadInputError, match=r"there is no dtpye to correct. There is dimensions, dtype"):
        corrected("facts", {"dtype": "BF16", "dimensions": {}}, parse(["facts.dtpye=F16"]))


def test_facts_are_corrected_by_their_keys_also_by_those_that_nobody_knows() -> None:
    facts = Facts(dtype="BF16", dimensions={"vocab": 25}, more={"vendor": "x"})
    given = parse(["facts.dimensions.vocab=24", "facts.vendor=y"])
    assert corrected_facts(facts, given) == Facts(
        dtype="BF16", dimensions={"vocab": 24}, more={"vendor": "y"}
    )
    assert corrected_facts(facts, parse(["config.vendor=y"])) is facts


@pytest.mark.parametrize(
    ("correction", "what"),
    [
        ("facts.dtype=5", "--set: facts.dtype is 5, which is not a string"),
        ("facts.dtype=null", "--set: facts.dtype is null"),
        ("facts.dimensions.vocab=many", "--set: facts.dimensions holds 'many', which is not an integer"),
        ("facts.dimensions=[]", "--set: facts.dimensions is a list, which is not an object"),
    ],
)
def test_a_correction_that_makes_facts_unreadable_is_refused(correction: str, what: str) -> None:
    facts = Facts(dtype="BF16", dimensions={"vocab": 25})
    with pytest.raises(BadInputError) as error:
        corrected_facts(facts, parse([correction]))
    assert (error.value.what, error.value.exit_code) == (what, 2)


def test_a_key_inside_a_number_is_refused() -> None:
    with pytest.raises(BadInputError, match="rope is 1, no object"):
        corrected("config", {"rope": 1}, parse(["config.rope.theta=9"]))


def test_what_was_recorded_can_be_replayed() -> None:
    given = parse(["config.rope.theta=9", "facts.dtype=F16"])
    told = recorded("config", {"rope": {"theta": 1}}, given) | recorded("facts", {"dtype": "BF16"}, given)
    assert told == {
        "config.rope.theta": {"was": 1, "now": 9},
        "facts.dtype": {"was": "BF16", "now": "F16"},
    }
    assert replayed(told) == given


def test_plus_equals_adds_to_a_list_what_it_lacks() -> None:
    told = {"exclude_modules": ["lm_head"], "quant_algo": "FP8"}
    given = parse(["quantization.exclude_modules+=model.layers.0.mlp.gate"])
    assert corrected("quantization", told, given) == told | {
        "exclude_modules": ["lm_head", "model.layers.0.mlp.gate"]
    }
    assert corrected(
        "quantization", told, parse(['quantization.exclude_modules+=["a", "lm_head"]'])
    ) == told | {"exclude_modules": ["lm_head", "a"]}
    assert recorded("quantization", told, given) == {
        "quantization.exclude_modules": {"was": ["lm_head"], "now": ["lm_head", "model.layers.0.mlp.gate"]}
    }


def test_plus_equals_needs_a_list() -> None:
    with pytest.raises(BadInputError, match=r'quantization\.quant_algo\+=: there is "FP8", no list'):
        corrected("quantization", {"quant_algo": "FP8"}, parse(["quantization.quant_algo+=NVFP4"]))
