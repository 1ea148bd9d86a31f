"""Which keys a correction changes: those that are there, and all that say the same."""

from __future__ import annotations

from typing import Any

import pytest

from shardmerge.common.architectures import ARCHITECTURES
from shardmerge.common.architectures.settings import rope
from shardmerge.common.errors import BadInputError
from shardmerge.common.manifest_facts import Facts
from shardmerge.phase2_merge.corrections.changes import Change, corrected, corrected_facts
from shardmerge.phase2_merge.corrections.settle import settled, settled_config, settled_facts
from shardmerge.phase2_merge.corrections.written import parse

Json = dict[str, Any]
NOWHERE: tuple[Json, ...] = ({}, {"a": None}, {"a": {}})
GROUPS = (
    ("rope_scaling.rope_theta", "rope_parameters.rope_theta", "rope_theta"),
    ("rope_scaling.factor", "rope_parameters.factor"),
    ("dtype", "torch_dtype"),
)
BOTH: Json = {"rope_theta": 10000, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}


def after(config: Json, *texts: str, new: tuple[str, ...] = ()) -> Json:
    changes = settled("config", config, parse(texts, new), GROUPS)
    return corrected("config", config, changes)


def refusal(config: Json, *texts: str, new: tuple[str, ...] = ()) -> str:
    with pytest.raises(BadInputError) as error:
        after(config, *texts, new=new)
    return error.value.message()


def test_a_nested_key_is_corrected_and_its_neighbours_and_the_original_stay() -> None:
    original = {"z": 1, "rope": {"theta": 1, "kind": "x"}, "a": 2}
    got = after(original, "config.rope.theta=9", "facts.z=5")
    assert got == {"z": 1, "rope": {"theta": 9, "kind": "x"}, "a": 2}
    assert list(got) == ["z", "rope", "a"]
    assert original["rope"] == {"theta": 1, "kind": "x"}


@pytest.mark.parametrize("key", ["rope_theta", "rope_parameters.rope_theta", "rope_scaling.rope_theta"])
def test_what_is_said_in_two_places_changes_in_both(key: str) -> None:
    got = after(BOTH, f"config.{key}=5000000")
    assert got == {
        "rope_theta": 5000000,
        "rope_parameters": {"rope_theta": 5000000.0, "rope_type": "default"},
    }
    assert (repr(got["rope_theta"]), repr(got["rope_parameters"]["rope_theta"])) == ("5000000", "5000000.0")


def test_where_only_the_other_place_says_it_that_one_changes_and_no_key_is_added() -> None:
    assert after({"rope_parameters": {"rope_theta": 1.0}}, "config.rope_theta=5") == {
        "rope_parameters": {"rope_theta": 5.0}
    }
    assert after({"torch_dtype": "bfloat16"}, "config.dtype=float16") == {"torch_dtype": "float16"}


def test_a_new_key_changes_what_says_the_same_too() -> None:
    config = {"rope_parameters": {"rope_theta": 1.0}}
    assert after(config, new=("config.rope_theta=5",)) == {
        "rope_parameters": {"rope_theta": 5},
        "rope_theta": 5,
    }


@pytest.mark.parametrize("option", ["set", "set-new"])
def test_an_object_changes_what_says_the_same_as_a_key_inside_of_it(option: str) -> None:
    text = 'config.rope_parameters={"rope_theta": 7, "rope_type": "yarn"}'
    got = after(BOTH, text) if option == "set" else after(BOTH, new=(text,))
    assert got == {"rope_theta": 7, "rope_parameters": {"rope_theta": 7, "rope_type": "yarn"}}


def test_a_correction_of_what_a_new_object_says_is_of_both() -> None:
    """What is added is there when --set looks for what says the same; they may not say different things."""
    config = {"rope_theta": 1.0}
    new = ('config.rope_parameters={"rope_theta": 5}',)
    assert after(config, "config.rope_theta=5", new=new) == {
        "rope_theta": 5.0,
        "rope_parameters": {"rope_theta": 5},
    }
    assert "contradict each other" in refusal(config, "config.rope_theta=6", new=new)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("rope_theta=5", "rope_parameters.rope_theta=6"),
        ("rope_theta=5", 'rope_parameters={"rope_theta": 6}'),
        ("rope_theta=5", "rope_scaling.rope_theta=6"),
    ],
)
def test_two_corrections_that_contradict_each_other_are_refused(one: str, other: str) -> None:
    said = refusal(BOTH, f"config.{one}", f"config.{other}")
    assert f"--set config.{one} and --set config.{other} contradict each other" in said
    assert "rope_scaling.rope_theta, rope_parameters.rope_theta, rope_theta say the same" in said


def test_a_correction_of_what_only_a_new_object_says_is_of_the_new_one() -> None:
    config = {"rope_parameters": {"rope_theta": 1.0, "rope_type": "default"}}
    texts = ["config.rope_theta=5", 'config.rope_parameters={"rope_type": "default"}']
    for order in (texts, texts[::-1]):
        assert "there is no rope_theta to correct" in refusal(config, *order)
    texts[1] = 'config.rope_parameters={"rope_theta": 6}'
    for order in (texts, texts[::-1]):
        assert "contradict each other" in refusal(config, *order)


def test_two_corrections_that_say_the_same_are_one() -> None:
    texts = ["config.rope_theta=5", "config.rope_parameters.rope_theta=5.0"]
    assert after(BOTH, *texts)["rope_parameters"]["rope_theta"] == 5
    assert len(settled("config", BOTH, parse(texts), GROUPS)) == 2


def test_another_type_in_the_second_place_is_refused_but_as_new() -> None:
    config = {"dtype": {"": "bfloat16"}, "torch_dtype": "bfloat16"}
    assert "which dtype says too" in refusal(config, "config.torch_dtype=float16")
    assert after(config, new=('config.torch_dtype="float16"',)) == {
        "dtype": "float16",
        "torch_dtype": "float16",
    }


def test_a_null_says_nothing_and_stays_alone() -> None:
    got = after(BOTH, new=("config.rope_theta=null",))
    assert got == {**BOTH, "rope_theta": None}


def test_an_unknown_key_is_refused_and_names_near_ones() -> None:
    config = {"rope_theta": 1.0, "rms_norm_eps": 1e-6, "inside": {"rms_norm_eps": 1.0}}
    said = refusal(config, "config.rms_norm_epsilon=1")
    assert "--set config.rms_norm_epsilon=1: there is no rms_norm_epsilon to correct" in said
    assert "Do you mean rms_norm_eps" in said
    assert "To add a key: --set-new config.rms_norm_epsilon=VALUE." in said
    assert "Do you mean rms_norm_eps, inside.rms_norm_eps?" in refusal(config, "config.insid.rms_norm_eps=1")
    assert "Do you mean" not in refusal(config, "config.zzz=1")


@pytest.mark.parametrize("text", ["config.a.b=1", "config.a.b.c=1"])
def test_a_key_inside_of_nothing_is_new(text: str) -> None:
    for config in NOWHERE:
        assert "To add a key" in refusal(config, text)
        held = {"b": 1} if text == "config.a.b=1" else {"b": {"c": 1}}
        assert after(config, new=(text,)) == {"a": held}


@pytest.mark.parametrize("held", [1, "text", True, [{"b": 1}], []])
def test_a_key_inside_of_something_else_than_an_object_is_refused(held: Any) -> None:
    for arguments in ({"texts": ["config.a.b=1"]}, {"new": ("config.a.b=1",)}):
        said = refusal({"a": held}, *arguments.get("texts", ()), new=tuple(arguments.get("new", ())))
        assert "which is not an object. Set it as a whole." in said


def test_facts_take_no_new_keys_and_say_which_there_are() -> None:
    with pytest.raises(BadInputError, match=r"there is no dtpye to correct. There is dimensions, dtype"):
        settled("facts", {"dtype": "BF16", "dimensions": {}}, parse(["facts.dtpye=F16"]))


def test_facts_are_corrected_by_their_keys_also_by_those_that_nobody_knows() -> None:
    facts = Facts(dtype="BF16", dimensions={"vocab": 25}, more={"vendor": "x"})
    changes = settled_facts(facts, parse(["facts.dimensions.vocab=24.0", "facts.vendor=y"]))
    assert corrected_facts(facts, changes) == Facts(
        dtype="BF16", dimensions={"vocab": 24}, more={"vendor": "y"}
    )
    assert corrected_facts(facts, settled_facts(facts, parse(["config.vendor=y"]))) is facts


@pytest.mark.parametrize(
    ("correction", "what"),
    [
        ("facts.dtype=5", '5 is a number, and "BF16", which is there, is a string'),
        ("facts.dtype=null", "null is nothing"),
        ("facts.dimensions.vocab=many", "it is not JSON"),
        ("facts.dimensions.vocab=0.5", "facts.dimensions holds 0.5, which is not an integer"),
        ("facts.dimensions.vocab=1e30", "too large"),
        ("facts.dimensions=[]", "[] is a list"),
        ('facts.dtype="\\u001b"', "facts.dtype holds a text that cannot be printed"),
    ],
)
def test_a_correction_that_makes_facts_unreadable_is_refused(correction: str, what: str) -> None:
    facts = Facts(dtype="BF16", dimensions={"vocab": 25})
    with pytest.raises(BadInputError) as error:
        corrected_facts(facts, settled_facts(facts, parse([correction])))
    assert (what in error.value.what, error.value.exit_code) == (True, 2)


def test_a_config_of_an_unknown_architecture_has_what_all_have() -> None:
    for config in ({}, {"architectures": ["NobodyForCausalLM"]}, {"architectures": 5}):
        said = {**config, "dtype": "a", "torch_dtype": "a"}
        changes = settled_config(said, parse(["config.dtype=b"]))
        assert {change.key: change.value for change in changes} == {
            "config.dtype": "b",
            "config.torch_dtype": "b",
        }


def test_a_dtype_can_be_corrected_where_a_reference_says_none() -> None:
    """A merge writes both keys, whatever the reference says."""
    changes = settled_config({}, parse(["config.dtype=float16"]))
    assert changes == (Change("config", ("dtype",), "float16"), Change("config", ("torch_dtype",), "float16"))


def test_an_architecture_that_is_corrected_brings_its_own_pairs_of_keys() -> None:
    config = {"architectures": ["NobodyForCausalLM"], "rope_parameters": {"rope_theta": 1.0}}
    texts = ['config.architectures=["Qwen3ForCausalLM"]', "config.rope_theta=5"]
    got = corrected("config", config, settled_config(config, parse(texts)))
    assert got == {"architectures": ["Qwen3ForCausalLM"], "rope_parameters": {"rope_theta": 5.0}}
    with pytest.raises(BadInputError, match=r"Do you mean rope_parameters\.rope_theta"):
        settled_config(config, parse(texts[1:]))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_table_says_where_config_json_speaks_of_rotation_and_of_dtypes(name: str) -> None:
    table = ARCHITECTURES[name]
    inside = f"{table.composite.config}." if table.composite else ""
    dtypes = ("dtype", "torch_dtype")
    assert (*dtypes, *(inside + key for key in dtypes if inside)) in table.synonyms
    rotates = any(row.setting == "rope_frequencies" and row.keys for row in table.settings)
    expected = {tuple(inside + key for key in keys) for keys in rope.SYNONYMS}
    assert (expected <= {*table.synonyms}) == rotates
