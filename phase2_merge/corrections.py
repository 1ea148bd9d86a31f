"""Corrections from the command line: `--set facts.KEY=VALUE`, `config.KEY=VALUE`, `quantization.KEY=VALUE`.

What a rank, a reference or a dump says wrongly is corrected beside it, never in it: manifests and references stay as
they are, and what was corrected is kept in the report. Pure: knows no file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardmerge.common.errors import BadInputError
from shardmerge.common.manifest_facts import Facts

PARTS = ("facts", "config", "quantization")
OPEN = ("config",)  # parts in which a key may be new: whoever reads config.json decides what it knows
HOW = "Write facts.KEY=VALUE, config.KEY=VALUE or quantization.KEY=VALUE, for example config.rope_theta=1000000."
ADDS = "+"  # KEY+=VALUE adds to a list
Json = Any
Recorded = dict[str, dict[str, Json]]


@dataclass(frozen=True, slots=True)
class Correction:
    """`value` at `path` of a part; `path` leads into nested objects. `adds`: to the list that is there."""

    part: str
    path: tuple[str, ...]
    value: Json
    adds: bool = False

    @property
    def key(self) -> str:
        return ".".join((self.part, *self.path))


def parse(texts: Iterable[str]) -> tuple[Correction, ...]:
    """Corrections as they are written; a value that is no JSON is a string. Raises BadInputError."""
    found = tuple(map(_parse, texts))
    keys = [one.key for one in found]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise BadInputError(f"{twice[0]} is set twice", "Set it once.")
    return found


def _parse(text: str) -> Correction:
    key, equals, value = text.partition("=")
    part, *path = key.removesuffix(ADDS).split(".")
    if not equals or part not in PARTS or not path or not all(path):
        raise BadInputError(f"--set {text}", HOW)
    return Correction(part, tuple(path), _value(text, value), key.endswith(ADDS))


def _value(text: str, value: str) -> Json:
    """JSON, or else a string. Raises BadInputError for what a report could not record."""
    try:
        found = json.loads(value)
    except ValueError:
        return value
    if found != _tellable(found):
        raise BadInputError(
            f"--set {text}: JSON has no such number", "Write it into the reference's config.json."
        )
    return found


def _tellable(value: Json) -> Json:
    """A value for the report, in which infinities, which files like config.json may hold, are strings."""
    return json.loads(json.dumps(value), parse_constant=str)


def of_part(part: str, corrections: Sequence[Correction]) -> tuple[Correction, ...]:
    """Those that concern one part."""
    return tuple(one for one in corrections if one.part == part)


def corrected(part: str, values: Mapping[str, Json], corrections: Sequence[Correction]) -> dict[str, Json]:
    """`values` with the corrections of this part, in the old order of keys; `values` itself stays.

    Raises BadInputError for a key that is not there, or leads through something that is not an object.
    """
    found = dict(values)
    for one in of_part(part, corrections):
        found = _with(found, one.path, one)
    return found


def corrected_facts(facts: Facts, corrections: Sequence[Correction]) -> Facts:
    """Facts with their corrections. Raises BadInputError as `corrected`, and for a value of another type."""
    if not of_part("facts", corrections):
        return facts
    try:
        return Facts.of_json(corrected("facts", facts.as_json(), corrections))
    except ValueError as error:
        raise BadInputError(f"--set: {error}", "Set it to a value of that type.") from None


def recorded(part: str, values: Mapping[str, Json], corrections: Sequence[Correction]) -> Recorded:
    """For the report: what each corrected key was, and what it is now."""
    found = of_part(part, corrections)
    was = {one.key: _at(values, one.path) for one in found}
    return {
        one.key: {"was": _tellable(was[one.key]), "now": _tellable(_now(was[one.key], one))} for one in found
    }


def replayed(told: Recorded) -> tuple[Correction, ...]:
    """The corrections that a report recorded."""
    return tuple(
        Correction(key.split(".")[0], tuple(key.split(".")[1:]), one["now"]) for key, one in told.items()
    )


def lines(told: Recorded) -> list[str]:
    """`Corrected: facts.dimensions.vocab_size is 24, was 25.`"""
    return [
        f"Corrected: {key} is {json.dumps(one['now'])}, was {json.dumps(one['was'])}."
        for key, one in sorted(told.items())
    ]


def _with(values: Mapping[str, Json], path: tuple[str, ...], one: Correction) -> dict[str, Json]:
    first, *rest = path
    if first not in values and one.part not in OPEN:
        known = ", ".join(sorted(values)) or "nothing: it is not quantized"
        raise BadInputError(f"--set {one.key}: there is no {first} to correct", f"There is {known}.")
    if not rest:
        return {**values, first: _now(values.get(first), one)}
    inner = values.get(first, {})
    if not isinstance(inner, Mapping):
        raise BadInputError(
            f"--set {one.key}: {first} is {json.dumps(inner)}, no object", "Set it as a whole."
        )
    return {**values, first: _with(inner, tuple(rest), one)}


def _now(was: Json, one: Correction) -> Json:
    """What stands there after the correction: its value, or a list with the value, or its elements, at the end."""
    if not one.adds:
        return one.value
    if not isinstance(was, list):
        raise BadInputError(
            f"--set {one.key}+=: there is {json.dumps(was)}, no list", "Set it with = instead."
        )
    more = one.value if isinstance(one.value, list) else [one.value]
    return was + [each for each in more if each not in was]


def _at(values: Json, path: tuple[str, ...]) -> Json:
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values
