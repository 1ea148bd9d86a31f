"""What options may be: the words of --allow are those that errors name, and any other word is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from shardmerge.common.errors import BadInputError, ShardmergeError
from shardmerge.phase2_merge import check, merge, merge_part, verify
from shardmerge.phase2_merge.options import ALLOWANCES, UNCALIBRATED, Asked
from tests.dumps.worlds import MakeWorld


def classes(kind: type[ShardmergeError]) -> Iterator[type[ShardmergeError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from classes(child)


def test_allowances_are_exactly_the_words_that_errors_name() -> None:
    assert set(ALLOWANCES) == {kind.allow for kind in classes(ShardmergeError)} - {None}


@pytest.mark.parametrize("kind", [kind for kind in classes(ShardmergeError) if kind.allow])
def test_an_error_that_may_be_allowed_says_how(kind: Any) -> None:
    fields = {"tensor": "w", "rectangle": "[0:8]", "owner": 0, "ranks": (1,), "nan_count": 1, "inf_count": 0}
    fields |= dict.fromkeys(("setting", "meaning", "model", "config", "architecture", "key", "value"), "x")
    fields |= {"keys": ("k",), "other": "y", "other_value": "z", "promised_by": "k", "patterns": ("m.*",)}
    fields |= {"model_type": "x", "expected": ("y",)}
    message = kind(**{name: fields[name] for name in (f.name for f in dataclasses.fields(kind))}).message()
    assert f"--allow {kind.allow} " in message


@pytest.mark.parametrize(
    ("given", "what", "do"),
    [
        ({"allow": ["nan", "zeros"]}, "allow zeros", "Known: nan, replicas, config, vision."),
        ({"uncalibrated": "layer_max"}, "uncalibrated layer_max", "Known: error, layer-max."),
    ],
)
def test_an_unknown_word_is_refused_before_anything_is_read(given: Any, what: str, do: str) -> None:
    with pytest.raises(BadInputError) as error:
        Asked(["/nowhere"], "/nowhere", **given)
    assert (error.value.what, error.value.do) == (what, do)
    with pytest.raises(BadInputError, match=what):
        check(["/nowhere"], hf_reference="/nowhere", **given)


@pytest.mark.parametrize("word", ["Full", "none", "", True, None])
def test_another_word_for_verify_never_means_fewer_checks(world: MakeWorld, word: Any) -> None:
    one = world().write()
    dump, rest = one.dump, {"hf_reference": one.reference, "verify": word}
    for command in (
        lambda: check(dump, **rest),
        lambda: merge(dump, one.out, **rest),
        lambda: merge_part(dump, one.out, "1/1", **rest),
        lambda: verify(one.reference, verify=word),
    ):
        with pytest.raises(BadInputError, match="Known: full, size"):
            command()
    assert not list(one.folder.glob("out*"))


def test_every_known_word_is_taken(world: MakeWorld) -> None:
    one = world().write()
    for word in UNCALIBRATED:
        assert one.check(allow=ALLOWANCES, uncalibrated=word).warnings == ()
