"""Values: JSON, words in place of strings, and what has the type that is there."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shardmerge.common.errors import BadInputError
from shardmerge.phase2_merge.corrections.changes import corrected
from shardmerge.phase2_merge.corrections.settle import settled, settled_config
from shardmerge.phase2_merge.corrections.written import parse

THERE: dict[str, Any] = {
    "flag": True, "count": 3, "base": 10000.0, "name": "silu", "nothing": None, "names": ["a"], "numbers": [0.0, 1.0],
    "mixed": [1, "a"], "empty": [], "inside": {"base": 10000.0, "kind": "default", "deep": {"count": 1}},
    "endless": [0.0, math.inf], "objects": [{"a": 1}],
}  # fmt: skip


def becomes(text: str, *, new: bool = False) -> Any:
    key = text.partition("=")[0].removesuffix("+")
    given = parse([], [f"config.{text}"]) if new else parse([f"config.{text}"])
    got = corrected("config", THERE, settled_config(THERE, given))
    assert {k: v for k, v in got.items() if k != key} == {k: v for k, v in THERE.items() if k != key}
    return got[key]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("flag=false", False),
        ("count=5", 5),
        ("count=1e6", 1000000),
        ("count=2.0", 2),
        ("count=-0.0", 0),
        ("count=0.5", 0.5),
        ("base=5000000", 5000000.0),
        ("base=1e-3", 0.001),
        ("name=gelu", "gelu"),
        ("name=gelu tanh", "gelu tanh"),
        ("name=", ""),
        ("name=gr\u00fcn=blau", "gr\u00fcn=blau"),
        ('name="5"', "5"),
        ('name="\\u00fc"', "\u00fc"),
        ("nothing=3", 3),
        ('nothing="word"', "word"),
        ('nothing={"a": [1]}', {"a": [1]}),
        ("nothing=null", None),
        ('names=["b", "c"]', ["b", "c"]),
        ("names=[]", []),
        ("names+=b", ["a", "b"]),
        ('names+=["b", "a"]', ["a", "b"]),
        ("numbers=[0, 9]", [0.0, 9.0]),
        ("numbers+=2", [0.0, 1.0, 2.0]),
        ("mixed=[true]", [True]),
        ("empty=[1]", [1]),
        ("empty+=word", ["word"]),
        ("endless=[0, 9.5]", [0.0, 9.5]),
        ('inside={"base": 5, "more": 1}', {"base": 5.0, "more": 1}),
        ('inside={"deep": {"count": 2.0}}', {"deep": {"count": 2}}),
        ('objects=[{"a": "b"}]', [{"a": "b"}]),
    ],
)
def test_a_value_of_the_type_that_is_there_is_taken(text: str, value: object) -> None:
    got = becomes(text)
    assert (got, repr(got)) == (value, repr(value))


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("flag=False", "it is not JSON: it is written as false"),
        ("flag=TRUE", "it is not JSON: it is written as true"),
        ("flag=yes", 'it is not JSON: a string is written as "yes"'),
        ("flag=", 'it is not JSON: a string is written as ""'),
        ("name=None", "it is not JSON: it is written as null"),
        ("name=True", "it is not JSON: it is written as true"),
        ("name=.5", "it is not JSON: a number is written as 0.5 or 1000000"),
        ("name=1_000", "it is not JSON: a number is written as 0.5 or 1000000"),
        ("name=inf", "it is not JSON: a number is written as 0.5 or 1000000"),
        ("name='gelu'", "it is not JSON: strings and keys stand in double quotes"),
        ('name="gelu', "it is not JSON: strings and keys stand in double quotes"),
        ("names=['a']", "it is not JSON: strings and keys stand in double quotes"),
        ("inside={base: 1}", "it is not JSON: strings and keys stand in double quotes"),
        ("nothing=word", 'it is not JSON: a string is written as "word"'),
        ("count=many", 'it is not JSON: a string is written as "many"'),
        ("numbers+=word", 'it is not JSON: a string is written as "word"'),
        ('inside={"a": 1, "a": 2}', "key 'a' occurs twice"),
        ("nothing=" + "[" * 100_000, "nested too deeply"),
        ('name="\\ud800"', "it holds half a character"),
    ],
)
def test_what_is_not_json_is_refused_and_told_how_it_is_written(text: str, how: str) -> None:
    for new in (False, True):
        if new and ("+=" in text or text.startswith("nothing=[")):
            continue
        with pytest.raises(BadInputError) as error:
            becomes(text, new=new)
        assert how in error.value.message()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("flag=1", "1 is a number, and true, which is there, is true or false"),
        ('flag="false"', '"false" is a string, and true, which is there, is true or false'),
        ("count=true", "true is true or false, and 3, which is there, is a number"),
        ('count="5"', '"5" is a string, and 3, which is there, is a number'),
        ("base=null", "null is nothing, and 10000.0, which is there, is a number"),
        ("name=5", '5 is a number, and "silu", which is there, is a string'),
        ("name=null", 'null is nothing, and "silu", which is there, is a string'),
        ("names=word", "it is not JSON"),
        ('names="word"', '"word" is a string, and ["a"], which is there, is a list'),
        ("names=[1]", '1 is a number, and "a", which is there, is a string'),
        ("names+=1", '1 is a number, and "a", which is there, is a string'),
        ("names=[null]", 'null is nothing, and "a", which is there, is a string'),
        ("numbers=[true]", "true is true or false, and 0.0, which is there, is a number"),
        ("inside=[]", "[] is a list, and {"),
        ('inside={"base": "5e6"}', '"5e6" is a string, and 10000.0, which is there, is a number'),
        ('inside={"deep": {"count": null}}', "null is nothing, and 1, which is there, is a number"),
        ("objects=[1]", "1 is a number, and {}, which is there, is an object"),
    ],
)
def test_a_value_of_another_type_is_refused_but_as_new(text: str, what: str) -> None:
    with pytest.raises(BadInputError) as error:
        becomes(text)
    assert what in error.value.message()
    key, _, value = text.partition("=")
    if value != "word" and "+" not in key:
        assert f"--set-new config.{key}=VALUE" in error.value.message()
        becomes(text, new=True)


@pytest.mark.parametrize("value", ["Infinity", "-1e999", "NaN", "[0.0, Infinity]", '{"a": NaN}'])
def test_a_number_that_json_does_not_have_is_refused(value: str) -> None:
    for new in (False, True):
        with pytest.raises(BadInputError, match="JSON has no such number"):
            becomes(f"nothing={value}", new=new)


def test_an_integer_that_is_too_large_for_a_fraction_is_refused() -> None:
    with pytest.raises(BadInputError, match="JSON has no such number"):
        becomes("base=1" + "0" * 400)
    assert becomes("count=1" + "0" * 400) == 10**400
    with pytest.raises(BadInputError, match="digits"):
        becomes("count=" + "1" * 5000)


def test_what_cannot_be_recorded_with_the_rest_of_its_list_is_refused() -> None:
    """The report would hold the word Infinity, and its replay would write that word."""
    with pytest.raises(BadInputError, match="JSON has no such number"):
        becomes("endless+=5.0")


def test_plus_equals_needs_a_list() -> None:
    with pytest.raises(
        BadInputError, match=r'quantization\.quant_algo\+=NVFP4: there is "FP8", which is not a list'
    ):
        settled("quantization", {"quant_algo": "FP8"}, parse(["quantization.quant_algo+=NVFP4"]))


def test_a_long_value_is_cut_in_a_message() -> None:
    there = {
        "quant_algo": "FP8",
        "exclude_modules": [f"model.layers.{layer}.mlp.gate" for layer in range(999)],
    }
    with pytest.raises(BadInputError) as error:
        settled("quantization", there, parse(["quantization.exclude_modules=5"]))
    assert len(error.value.message()) < 300


@pytest.mark.parametrize("key", ["quant_algo", "kv_cache_quant_algo"])
def test_an_algorithm_is_a_word_or_null(key: str) -> None:
    for was, text, now in (
        ("FP8", "null", None),
        (None, "FP8", "FP8"),
        (None, "null", None),
        ("FP8", "", ""),
    ):
        changes = settled("quantization", {key: was}, parse([f"quantization.{key}={text}"]))
        assert [change.value for change in changes] == [now]
    with pytest.raises(BadInputError, match="3 is a number"):
        settled("quantization", {key: None}, parse([f"quantization.{key}=3"]))
