"""How corrections are written, and which are refused before anything is read."""

from __future__ import annotations

import pytest

from shardmerge.common.errors import BadInputError
from shardmerge.phase2_merge.corrections.written import parse


def test_a_correction_is_a_part_a_path_and_a_text() -> None:
    (one,) = parse(["config.rope_parameters.rope_theta=b=c"])
    assert (one.part, one.path, one.text) == ("config", ("rope_parameters", "rope_theta"), "b=c")
    assert (one.adds, one.new) == (False, False)
    assert one.said == "--set config.rope_parameters.rope_theta=b=c"


def test_plus_equals_adds() -> None:
    (one,) = parse(["quantization.exclude_modules+=a"])
    assert (one.adds, one.said) == (True, "--set quantization.exclude_modules+=a")


def test_what_is_new_comes_first() -> None:
    assert [one.said for one in parse(["config.a=1"], ["config.b=2"])] == [
        "--set-new config.b=2",
        "--set config.a=1",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "=1",
        ".=1",
        "config.a",
        "rope_theta=1",
        "config=1",
        "config.=1",
        "config.+=1",
        "model.a=1",
        "config..a=1",
    ],
)
def test_what_is_not_a_correction_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match=r"Write facts\.KEY=VALUE"):
        parse([text])
    with pytest.raises(BadInputError, match=r"Write config\.KEY=VALUE"):
        parse([], [text])


@pytest.mark.parametrize("text", ["facts.vendor=1", 'quantization.quant_algo="FP8"'])
def test_facts_and_quantization_take_no_new_keys(text: str) -> None:
    with pytest.raises(BadInputError, match="facts and quantization take no new keys"):
        parse([], [text])


def test_only_set_adds_to_a_list() -> None:
    with pytest.raises(BadInputError, match="--set adds to a list that is there"):
        parse([], ['config.architectures+="A"'])


def test_a_place_that_is_corrected_twice_is_refused_whatever_the_options() -> None:
    with pytest.raises(BadInputError, match=r"config\.a is set twice"):
        parse(["config.a=1", "config.a=2"])
    with pytest.raises(BadInputError, match=r"config\.a is set twice"):
        parse(["config.a=1"], ["config.a=2"])
    with pytest.raises(BadInputError, match=r"config\.a\.b is set, and so is config\.a, which holds it"):
        parse(["config.a.b=1"], ['config.a={"b": 2}'])


@pytest.mark.parametrize("key", ["quantization_config", "quantization_config.quant_algo"])
def test_the_declaration_of_a_quantization_is_no_business_of_config(key: str) -> None:
    """A plain checkpoint would declare what it is not, and one of two files would change."""
    with pytest.raises(BadInputError, match=r"--set quantization\.KEY=VALUE"):
        parse([f"config.{key}=null"])
    with pytest.raises(BadInputError, match=r"--set quantization\.KEY=VALUE"):
        parse([], [f'config.{key}={{"quant_algo": "FP8"}}'])


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(BadInputError, match="holds half a character"):
        parse(["config.a=\udc80"])
