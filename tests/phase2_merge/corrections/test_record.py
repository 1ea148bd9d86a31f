"""What the report says of corrections, and that a later `metadata` can repeat it whatever is there."""

from __future__ import annotations

import json
from typing import Any

from shardmerge.phase2_merge.corrections import record
from shardmerge.phase2_merge.corrections.changes import Change, corrected
from shardmerge.phase2_merge.corrections.record import followed_by, recorded, replayed, undone
from shardmerge.phase2_merge.corrections.settle import settled
from shardmerge.phase2_merge.corrections.written import parse


def change(key: str, value: Any) -> Change:
    return Change("config", tuple(key.split(".")), value)


def test_an_infinity_that_is_corrected_is_recorded_as_a_string() -> None:
    """config.json of Nemotron-H has one."""
    values = json.loads('{"time_step_limit": [0.0, Infinity]}')
    changes = settled("config", values, parse(["config.time_step_limit=[0.0, 9.5]"]))
    assert corrected("config", values, changes) == {"time_step_limit": [0.0, 9.5]}
    assert recorded("config", values, changes) == {
        "config.time_step_limit": {"was": [0.0, "Infinity"], "now": [0.0, 9.5]}
    }


def test_what_was_recorded_can_be_replayed_whatever_the_types_are() -> None:
    changes = (change("a", 1), change("b.c", None), Change("facts", ("dtype",), "F16"))
    told = recorded("config", {"a": "word", "b": None}, changes) | recorded(
        "facts", {"dtype": "BF16"}, changes
    )
    assert told == {
        "config.a": {"was": "word", "now": 1},
        "config.b.c": {"was": None, "now": None},
        "facts.dtype": {"was": "BF16", "now": "F16"},
    }
    assert replayed(told) == changes
    assert record.lines(told)[0] == 'Corrected: config.a is 1, was "word".'


def test_a_key_inside_of_an_object_that_was_corrected_is_replayed_after_it() -> None:
    changes = (change("a", {"b": 1, "c": 2}), change("a.b", 3))
    told = recorded("config", {"a": {}}, changes)
    assert told["config.a"]["now"] == {"b": 3, "c": 2}
    assert corrected("config", {}, replayed(told)) == {"a": {"b": 3, "c": 2}}


def test_a_later_correction_of_an_object_ends_earlier_ones_inside_of_it() -> None:
    earlier = (change("a.b", 1), change("ab", 2), Change("facts", ("a", "b"), 3))
    later = (change("a", {"b": 9}),)
    assert followed_by(earlier, later) == (*earlier[1:], *later)


def test_what_was_recorded_can_be_undone() -> None:
    values = {"a": {"b": 1}, "c": 2}
    changes = (change("a", {"b": 5}), change("a.b", 6), change("c", 3))
    told = recorded("config", values, changes)
    assert undone("config", corrected("config", values, changes), told) == values
    assert undone("config", {"a": 5}, {"config.a.b": {"was": 1, "now": 2}}) == {"a": 5}
