"""Corrections from the command line: `--set facts.KEY=VALUE`, `config.KEY=VALUE`, `quantization.KEY=VALUE`.

Decides what a corrected value is and how the report records it. Manifests and references stay as they are: corrections
apply to copies of what they say. Must not know any file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardmerge.common.errors import BadInputError, printable
from shardmerge.common.manifest_facts import Facts

PARTS = ("facts", "config", "quantization")
OPEN = ("config",)  # parts in which a key may be new: whoever reads config.json decides what it knows
HOW = "Write facts.KEY=VALUE, config.KEY=VALUE or quantization.KEY=VALUE, for example config.rope_theta=1000000."
ADDS = "+"  # KEY+=VALUE adds to a list
Json = Any
Recorded = dict[str, dict[str, Json]]


@dataclass(frozen=True, slots=True)
class Correction:
    """A `value` for the place `path` of a part; `path` leads into nested objects. `adds`: it is added to a list."""

    part: str
    path: tuple[str, ...]
    value: Json
    adds: bool = False

    @property
    def key(self) -> str:
        return ".".join((self.part, *self.path))


def parse(texts: Iterable[str]) -> tuple[Correction, ...]:
    """Parse corrections as they are written. A value that is not JSON is a string. Raises BadInputError."""
    corrections = tuple(map(_parse, texts))
    keys = [correction.key for correction in corrections]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise BadInputError(f"{twice[0]} is set twice", "Set it once.")
    return corrections


def _parse(text: str) -> Correction:
    key, equals, value = text.partition("=")
    part, *path = key.removesuffix(ADDS).split(".")
    if not equals or part not in PARTS or not path or not all(path):
        raise BadInputError(f"--set {text}", HOW)
    correction = Correction(part, tuple(path), _value(text, value), key.endswith(ADDS))
    try:
        json.dumps([correction.path, correction.value], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadInputError(
            f"--set {printable.one_line(text)} holds half a character", "Write text that UTF-8 can hold."
        ) from None
    return correction


def _value(text: str, value: str) -> Json:
    """Parse a value as JSON, or else take it as a string. Raises BadInputError for what a report could not record."""
    try:
        parsed = json.loads(value)
    except ValueError:
        return value
    if parsed != _recordable(parsed):
        raise BadInputError(
            f"--set {text}: JSON has no such number", "Write it into the reference's config.json."
        )
    return parsed


def _recordable(value: Json) -> Json:
    """Return a value for the report. Infinities, which files like config.json may hold, become strings in it."""
    return json.loads(json.dumps(value), parse_constant=str)


def of_part(part: str, corrections: Sequence[Correction]) -> tuple[Correction, ...]:
    """Return those that concern one part."""
    return tuple(one for one in corrections if one.part == part)


def corrected(part: str, values: Mapping[str, Json], corrections: Sequence[Correction]) -> dict[str, Json]:
    """Apply the corrections of one part to a copy of its values.

    Args:
        part: "facts", "config" or "quantization".
        values: What is said of that part now.
        corrections: All that were given. Those of other parts are ignored.

    Returns:
        The corrected values, in the old order of keys.

    Raises:
        BadInputError: A key is not there, or leads through something that is not an object.
    """
    result = dict(values)
    for correction in of_part(part, corrections):
        result = _with(result, correction.path, correction)
    return result


def corrected_facts(facts: Facts, corrections: Sequence[Correction]) -> Facts:
    """Apply corrections to facts. Raises BadInputError as `corrected` does, and for a value of another type."""
    if not of_part("facts", corrections):
        return facts
    try:
        return Facts.of_json(corrected("facts", facts.as_json(), corrections))
    except ValueError as error:
        raise BadInputError(f"--set: {error}", "Set it to a value of that type.") from None


def recorded(part: str, values: Mapping[str, Json], corrections: Sequence[Correction]) -> Recorded:
    """Describe the corrections of one part for the report.

    Args:
        part: "facts", "config" or "quantization".
        values: What was said of that part before.
        corrections: All that were given. Those of other parts are ignored.

    Returns:
        What each corrected key was, and what it is now.
    """
    result: Recorded = {}
    for correction in of_part(part, corrections):
        was = _at(values, correction.path)
        now = _now(was, correction)
        result[correction.key] = {"was": _recordable(was), "now": _recordable(now)}
    return result


def replayed(recorded: Recorded) -> tuple[Correction, ...]:
    """Return the corrections that a report recorded."""
    return tuple(
        Correction(key.split(".")[0], tuple(key.split(".")[1:]), change["now"])
        for key, change in recorded.items()
    )


def lines(recorded: Recorded) -> list[str]:
    """Return a line per correction: `Corrected: facts.dimensions.vocab_size is 24, was 25.`"""
    return [
        f"Corrected: {key} is {json.dumps(change['now'])}, was {json.dumps(change['was'])}."
        for key, change in sorted(recorded.items())
    ]


def _with(values: Mapping[str, Json], path: tuple[str, ...], correction: Correction) -> dict[str, Json]:
    """Return a copy of `values`, corrected at `path`, which is what is left of the correction's own path."""
    first, *rest = path
    if first not in values and correction.part not in OPEN:
        known = ", ".join(sorted(values)) or "nothing: it is not quantized"
        raise BadInputError(f"--set {correction.key}: there is no {first} to correct", f"There is {known}.")
    if not rest:
        return {**values, first: _now(values.get(first), correction)}
    inner = values.get(first, {})
    if not isinstance(inner, Mapping):
        raise BadInputError(
            f"--set {correction.key}: {first} is {json.dumps(inner)}, no object", "Set it as a whole."
        )
    return {**values, first: _with(inner, tuple(rest), correction)}


def _now(was: Json, correction: Correction) -> Json:
    """Return what stands there after the correction.

    That is its value, or the list that was there with this value, or the elements of this value, at the end.
    """
    if not correction.adds:
        return correction.value
    if not isinstance(was, list):
        raise BadInputError(
            f"--set {correction.key}+=: there is {json.dumps(was)}, no list", "Set it with = instead."
        )
    more = correction.value if isinstance(correction.value, list) else [correction.value]
    return was + [each for each in more if each not in was]


def _at(values: Json, path: tuple[str, ...]) -> Json:
    """Return the value at a path, None where there is none."""
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values
