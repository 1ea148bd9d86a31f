"""What the report says of corrections, and what a later `metadata` does with that.

Decides how a correction is recorded. Must not know how it was written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from shardmerge.common.errors import BadInputError

from .changes import Change, at, corrected, placed
from .typed import recordable

Json = Any
Recorded = dict[str, dict[str, Json]]


def recorded(part: str, values: Mapping[str, Json], changes: Sequence[Change]) -> Recorded:
    """Describe the changes of one part for the report.

    Args:
        part: "facts", "config" or "quantization".
        values: What was said of that part before.
        changes: Those of other parts are ignored.

    Returns:
        What each changed key was, and what it is now.

    Raises:
        BadInputError: A key leads through something that is not an object.
    """
    now = corrected(part, values, changes)
    return {
        change.key: {"was": recordable(at(values, change.path)), "now": recordable(at(now, change.path))}
        for change in changes
        if change.part == part
    }


def replayed(recorded: Recorded) -> tuple[Change, ...]:
    """Return the changes that a report recorded, those of objects before those of what is inside of them."""
    return tuple(_change(key, recorded[key]["now"]) for key in sorted(recorded))


def undone(part: str, values: Mapping[str, Json], recorded: Recorded) -> dict[str, Json]:
    """Take back what a report recorded.

    Args:
        part: "facts", "config" or "quantization".
        values: What is said of that part now.
        recorded: Changes of other parts are ignored.

    Returns:
        The values as they were before. A key that was not there is null.
    """
    before = dict(values)
    for key in sorted(recorded, reverse=True):
        change = _change(key, recorded[key]["was"])
        if change.part == part:
            try:
                before = placed(before, change)
            except BadInputError:  # somebody else changed it since: nobody knows what it was
                continue
    return before


def followed_by(earlier: Sequence[Change], later: Sequence[Change]) -> tuple[Change, ...]:
    """Return changes and later ones, without what these replace."""
    return (
        *(change for change in earlier if not any(change.is_inside(other) for other in later)),
        *later,
    )


def lines(recorded: Recorded) -> list[str]:
    """Return a line per correction: `Corrected: facts.dimensions.vocab_size is 24, was 25.`"""
    return [
        f"Corrected: {key} is {json.dumps(change['now'])}, was {json.dumps(change['was'])}."
        for key, change in sorted(recorded.items())
    ]


def lines_of_dropped(dropped: Recorded) -> list[str]:
    """Return a line per correction that is none any more: `was` is what it had set, `now` what is there."""
    return [
        f"Not corrected any more: {key} is {json.dumps(change['now'])}, had been corrected to "
        f"{json.dumps(change['was'])}."
        for key, change in sorted(dropped.items())
    ]


def _change(key: str, value: Json) -> Change:
    part, *path = key.split(".")
    return Change(part, tuple(path), value)
